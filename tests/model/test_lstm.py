"""One maths, four ways: written out, fused, torch's own module, and the float64 reference.

Tolerances: float32 rounds at 6e-8 and a step sums some hundred products, so 2e-6 absolute on values below 1;
in float64 the same comparison must hold to 1e-12.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from model.convert import from_torch
from model.dropout import Dropout
from model.lstm import StackedLSTM, cell
from model.network import Network
from model.reference import Reference, sigmoid
from tests.model.making import make_network, make_prepared, make_spec, make_weights

FLOAT32, FLOAT64 = 2e-6, 1e-12


def make_pair(layers: int, dtype: torch.dtype) -> tuple[StackedLSTM, nn.LSTM]:
    """A stacked LSTM and torch's own with the same weights."""
    torch.manual_seed(layers)
    theirs = nn.LSTM(3, 16, layers).to(dtype)
    ours = StackedLSTM(3, 16, layers).to(dtype)
    state = theirs.state_dict()
    with torch.no_grad():
        for k in range(layers):
            weight_ih, weight_hh, bias = ours.layer(k)
            weight_ih.copy_(state[f"weight_ih_l{k}"])
            weight_hh.copy_(state[f"weight_hh_l{k}"])
            bias.copy_(state[f"bias_ih_l{k}"] + state[f"bias_hh_l{k}"])
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
@torch.no_grad()
def test_written_out_fused_and_torch_agree(layers: int, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = make_pair(layers, dtype)
    x = torch.randn(40, 6, 3, dtype=dtype)
    state = (torch.randn(layers, 6, 16, dtype=dtype), torch.randn(layers, 6, 16, dtype=dtype))
    expected, (h, c) = theirs(x, state)
    fused, (fused_h, fused_c) = ours(x, state)
    rows = []
    for t in range(len(x)):
        top, state = ours.step(x[t], state)
        rows.append(top)
    for a, b in (
        (fused, expected), (fused_h, h), (fused_c, c),
        (torch.stack(rows), expected), (state[0], h), (state[1], c),
    ):  # fmt: skip
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@torch.no_grad()
def test_a_cell_gives_its_gates_in_the_order_i_f_g_o() -> None:
    """With one gate at a time driven to its end by its bias, exactly that row is at its end."""
    x, h, c = torch.zeros(1, 1), torch.zeros(1, 2), torch.full((1, 2), 0.5)
    for gate, end in ((0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)):
        bias = torch.zeros(8)
        bias[2 * gate : 2 * gate + 2] = 50.0
        new_h, new_c, gates = cell(x, h, c, torch.zeros(8, 1), torch.zeros(8, 2), bias)
        rest = [0.5, 0.5, 0.0, 0.5]  # sigmoid(0), and tanh(0) for g
        rest[gate] = end
        torch.testing.assert_close(gates[:, 0, 0], torch.tensor(rest))
        torch.testing.assert_close(new_c[0, 0], torch.tensor(rest[1] * 0.5 + rest[0] * rest[2]))
        torch.testing.assert_close(new_h, rest[3] * new_c.tanh())


def test_the_gradients_are_torchs() -> None:
    ours, theirs = make_pair(2, torch.float64)
    x = torch.randn(20, 3, 3, dtype=torch.float64)
    ours(x)[0].square().sum().backward()
    theirs(x)[0].square().sum().backward()
    for k in range(2):
        weight_ih, weight_hh, bias = ours.layer(k)
        for mine, name in ((weight_ih, "weight_ih"), (weight_hh, "weight_hh"), (bias, "bias_ih")):
            torch.testing.assert_close(mine.grad, theirs.get_parameter(f"{name}_l{k}").grad)


def test_a_sequence_in_two_pieces_is_the_sequence_in_one() -> None:
    ours, _ = make_pair(2, torch.float32)
    x = torch.randn(30, 4, 3)
    with torch.no_grad():
        whole, (h, c) = ours(x)
        first, state = ours(x[:11])
        second, (h2, c2) = ours(x[11:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=FLOAT32, rtol=0)
    torch.testing.assert_close((h2, c2), (h, c), atol=FLOAT32, rtol=0)


def test_the_forget_gate_starts_open() -> None:
    lstm = StackedLSTM(3, 7, 2, forget_bias=1.5)
    for k in range(2):
        bias = lstm.layer(k)[2]
        assert (bias[7:14] == 1.5).all()
        assert (bias[:7].abs() <= 7**-0.5).all()
        assert (bias[14:].abs() <= 7**-0.5).all()


def test_chrono_spreads_the_times_after_which_units_forget() -> None:
    """sigmoid(log t) = t / (1 + t): a unit keeps half of its cell for about t steps, 1 <= t <= 999."""
    torch.manual_seed(0)
    lstm = StackedLSTM(2, 400, 2, chrono=1000)
    for layer in range(2):
        i, f, _, _ = lstm.layer(layer)[2].detach().chunk(4)
        times = f.exp()
        assert 1 <= times.min() < 20
        assert 980 < times.max() <= 999
        assert times.mean().item() == pytest.approx(500, abs=50)
        assert torch.equal(i, -f)


def test_without_chrono_the_first_weights_are_as_they_were() -> None:
    networks = []
    for chrono in (0, 50):
        torch.manual_seed(3)
        networks.append(StackedLSTM(2, 8, 1, chrono=chrono))
    plain, spread = networks
    assert torch.equal(plain.layer(0)[1], spread.layer(0)[1])
    assert not torch.equal(plain.layer(0)[2], spread.layer(0)[2])
    assert torch.equal(plain.layer(0)[2][8:16], torch.ones(8))


@pytest.mark.parametrize(("rank", "residual"), [(0, False), (2, False), (3, True)])
def test_a_head_of_low_rank_and_its_quantiles_are_the_references(rank: int, residual: bool) -> None:
    spec = make_spec(hidden=24, leads=7, rank=rank, quantiles=(0.1, 0.5, 0.9), residual=residual)
    network = make_network(spec).double()
    assert network.spread is not None
    with torch.no_grad():
        network.spread.offsets.copy_(torch.randn(network.spread.offsets.shape))
        x = make_prepared(spec, 20).double()
        y, quantiles, _ = network.with_quantiles(x[:, None])
        weight, bias = network.head.first_lead()
        first = network.lstm(x[:, None])[0][:, 0] @ weight.T + bias
    reference = Reference(spec, {k: v.numpy() for k, v in network.state_dict().items()})
    for t, row in enumerate(x.numpy()):
        expected = reference.step(row)
        np.testing.assert_allclose(y[t, 0].numpy(), expected, atol=FLOAT64)
        np.testing.assert_allclose(quantiles[t, 0].numpy(), reference.quantiles(expected), atol=FLOAT64)
        next_step = first[t].numpy() + (row if residual else 0)
        np.testing.assert_allclose(next_step, expected[0], atol=FLOAT64)


@pytest.mark.parametrize(("task", "residual"), [("series", False), ("series", True), ("text", False)])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_network_is_the_reference(task: str, residual: bool, layers: int) -> None:
    spec = make_spec(task, hidden=24, layers=layers, residual=residual)
    network = make_network(spec).double()
    x = make_prepared(spec, 50).double() if task == "series" else make_prepared(spec, 50)
    reference = Reference(spec, {k: v.numpy() for k, v in network.state_dict().items()})
    expected = np.array([reference.step(row) for row in x.numpy()])
    with torch.no_grad():
        y, (h, c) = network(x[:, None])
        single, _ = Network(spec).eval(), network.load_state_dict(network.state_dict())
        single.load_state_dict({k: v.float() for k, v in network.state_dict().items()})
        y32, _ = single(x[:, None].float() if task == "series" else x[:, None])
    np.testing.assert_allclose(y[:, 0].numpy(), expected, atol=FLOAT64)
    np.testing.assert_allclose(h[:, 0].numpy(), reference.h, atol=FLOAT64)
    np.testing.assert_allclose(c[:, 0].numpy(), reference.c, atol=FLOAT64)
    np.testing.assert_allclose(y32[:, 0].numpy(), expected, atol=5e-6)


def test_a_residual_head_of_zeros_says_like_now() -> None:
    spec = make_spec(residual=True)
    network = make_network(spec)
    x = make_prepared(spec, 4, 3)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        y, _ = network(x)
    torch.testing.assert_close(y, x[:, :, None, :].expand_as(y))


def test_log_probabilities_add_up_to_one() -> None:
    spec = make_spec("text")
    y, _ = make_network(spec)(make_prepared(spec, 5, 3))
    torch.testing.assert_close(y.exp().sum(-1), torch.ones(5, 3, 1))


def test_the_reference_runs_what_it_steps_and_starts_from_nothing() -> None:
    spec = make_spec()
    weights = {k: v.numpy() for k, v in make_weights(spec).items()}
    x = make_prepared(spec, 6).numpy()
    stepped = Reference(spec, weights)
    np.testing.assert_array_equal(Reference(spec, weights).run(x), [stepped.step(row)[0] for row in x])
    assert Reference(spec, weights).run(x[:0]).shape == (0, 2)
    assert not Reference(spec, weights).h.any()


def test_the_references_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        np.testing.assert_allclose(sigmoid(np.array([-1e30, 0.0, 1e30])), [0.0, 0.5, 1.0])


def test_dropout_acts_only_while_training() -> None:
    network = make_network(make_spec(hidden=32))
    x = make_prepared(network.spec, 8, 4)
    with torch.no_grad():
        plain, _ = network(x)
        torch.testing.assert_close(network(x, None, Dropout(0.5))[0], plain)
        assert not torch.allclose(network.train()(x, None, Dropout(0.5))[0], plain)


@pytest.mark.parametrize("task", ["series", "text"])
def test_dropout_leaves_the_inputs_alone(task: str) -> None:
    """With one layer all of it is before the head: the state does not see it."""
    network = make_network(make_spec(task, layers=1)).train()
    x = make_prepared(network.spec, 8, 4)
    with torch.no_grad():
        plain, state = network(x)
        dropped, same_state = network(x, None, Dropout(0.5))
    torch.testing.assert_close(same_state, state)
    assert not torch.allclose(dropped, plain)


def test_torch_weights_drive_the_network_as_they_drove_torch() -> None:
    spec = make_spec(hidden=16, layers=3, leads=1)
    theirs = nn.ModuleDict({"lstm": nn.LSTM(2, 16, 3), "head": nn.Linear(16, 2)})
    network = Network(spec).eval()
    network.load_state_dict(from_torch(theirs.state_dict(), spec.architecture))
    x = make_prepared(spec, 20, 5)
    with torch.no_grad():
        expected = theirs["head"](theirs["lstm"](x)[0])
        torch.testing.assert_close(network(x)[0][:, :, 0], expected, atol=FLOAT32, rtol=0)
