"""The arithmetic of a step: what each precision keeps, and that both ways of the cell are one function."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.lstm import cell as reference_cell
from service.engine.arithmetic import cell, kept, packed, plain_cell, product, token_table
from tests.engine.making import DEVICES, make_network, make_spec

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_fp32_keeps_everything() -> None:
    weight = random(12, 5)
    assert torch.equal(kept(weight, "fp32"), weight)


def test_bf16_keeps_eight_bits_of_each_weight() -> None:
    weight = random(12, 5)
    error = (kept(weight, "bf16") - weight).abs() / weight.abs()
    assert 0 < error.max() <= 2**-8


def test_int8_keeps_steps_of_each_rows_own_scale() -> None:
    weight = random(12, 50) * torch.logspace(-3, 3, 12)[:, None]
    weight[5] = 0
    error = (kept(weight, "int8") - weight).abs().amax(1)
    step = weight.abs().amax(1) / 127
    assert (error <= step / 2 + weight.abs().amax(1) * 2**-8).all()
    assert not kept(weight, "int8")[5].any()
    # more than 255 values a row would not be int8
    assert all(len(row.unique()) <= 255 for row in kept(random(4, 4000), "int8"))


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_product_in_bf16_is_summed_in_float32(device: torch.device) -> None:
    rows, weight = random(7, 64).bfloat16(), random(64, 24, seed=1).bfloat16()
    got = product(rows.to(device), weight.to(device)).cpu()
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, rows.double() @ weight.double(), atol=2e-5)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_product_in_fp32_has_no_fewer_digits(device: torch.device) -> None:
    """Nor on a GPU: TF32, which rounds at 1e-3, is not asked for."""
    rows, weight = random(7, 64), random(64, 24, seed=1)
    got = product(rows.to(device), weight.to(device)).cpu()
    np.testing.assert_allclose(got, rows.double() @ weight.double(), atol=2e-5)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("addend", ["bias", "rows"])
@pytest.mark.parametrize("B", [1, 2, 33])
def test_the_cell_is_the_reference(device: torch.device, addend: str, B: int) -> None:
    """The addend is one row for all, without memory for each, or a row for each; c may be a strided view."""
    H = 5
    w_ih, w_hh, bias = random(4 * H, 3), random(4 * H, H, seed=1), random(4 * H, seed=2)
    x, h, c = random(B, 3, seed=3), random(B, H, seed=4), random(B, 2 * H, seed=5)[:, :H]
    more = bias.expand(B, -1) if addend == "bias" else x @ w_ih.T + bias
    gates = h @ w_hh.T + (x @ w_ih.T if addend == "bias" else 0)
    before = c.clone()
    expected_h, expected_c, _ = reference_cell(x, h, c, w_ih, w_hh, bias)
    for way in (cell, plain_cell):
        got_h, got_c = way(gates.to(device), more.to(device), c.to(device))
        np.testing.assert_allclose(got_h.cpu(), expected_h, atol=1e-6)
        np.testing.assert_allclose(got_c.cpu(), expected_c, atol=1e-6)
    assert torch.equal(c, before)


@pytest.mark.parametrize("task", ["series", "text"])
def test_packed_matrices_give_the_gates(task: str) -> None:
    network = make_network(make_spec(task, inputs=5))
    layers = [tuple(p.detach() for p in network.lstm.layer(k)) for k in range(2)]
    (w_ih, w_hh, bias), h = layers[0], random(4, 16)
    text = task == "text"
    first, second = packed(layers, torch.float32, tokens=text)  # type: ignore[arg-type]
    assert second.shape == (32, 64)
    if network.embedding is not None:
        x = torch.tensor([0, 7, 3, 3])
        got = h @ first + token_table(network.embedding.weight, layers[0])[x]  # type: ignore[arg-type]
        expected = network.embedding(x) @ w_ih.T + h @ w_hh.T + bias
    else:
        assert first.shape == (16 + 8, 64)
        x = random(4, 5, seed=1)
        got = torch.cat((h, x, torch.ones(4, 3)), 1) @ first + bias
        expected = x @ w_ih.T + h @ w_hh.T + bias
    np.testing.assert_allclose(got, expected.detach(), atol=1e-5)
