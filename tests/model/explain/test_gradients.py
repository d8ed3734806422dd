"""The gradient norms against plain formulas and against autograd through the whole sequence, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.explain.gradients import (
    EXPLODING,
    PlainRNN,
    States,
    backward,
    classics,
    forward,
    fresh_lstm,
    lstm_step,
    reach,
)


def test_the_norms_are_those_of_autograd_through_all_the_steps() -> None:
    """Two layers, five steps: every part of the state, at every distance."""
    lstm = fresh_lstm(3, 4, 2, seed=0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 1, 3, dtype=torch.float64, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(1, 4, dtype=torch.float64, generator=generator))
    step = lstm_step(lstm)
    states = forward(step, x, lstm.zero_state(1))
    found = backward(step, x, states, direction)
    assert found.squared.shape == (6, 2, 2, 1)
    for k in range(6):
        h, c = (part.clone().requires_grad_() for part in states[5 - k])
        state: States = (h, c)
        for row in x[5 - k :]:
            state = step(row, state)
        gradients = torch.autograd.grad((direction * state[0][-1]).sum(), (h, c), materialize_grads=True)
        for part, gradient in enumerate(gradients):
            torch.testing.assert_close(
                found.squared[k, part], gradient.square().sum(-1), rtol=1e-10, atol=1e-15
            )
    torch.testing.assert_close(found.norms, found.squared.sum((1, 2)).sqrt())


def test_the_norms_are_those_of_finite_differences() -> None:
    lstm = fresh_lstm(2, 3, 1, seed=3)
    x = torch.ones(4, 1, 2, dtype=torch.float64)
    direction = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    step = lstm_step(lstm)
    states = forward(step, x, lstm.zero_state(1))
    found = backward(step, x, states, direction)

    def first_output(c: Tensor) -> float:
        return forward(step, x, (states[0][0], c))[-1][0][0, 0, 0].item()

    nudges = 1e-6 * torch.eye(3, dtype=torch.float64).view(3, 1, 1, 3)
    gradient = [(first_output(states[0][1] + n) - first_output(states[0][1] - n)) / 2e-6 for n in nudges]
    assert math.hypot(*gradient) == pytest.approx(found.squared[4, 1, 0, 0].sqrt().item(), rel=1e-6)


def test_a_plain_rnn_at_rest_multiplies_by_its_weights_once_a_step() -> None:
    """With no input and h = 0 the derivative of tanh is 1: G(k) = |v W^k|."""
    weight = torch.tensor([[0.9, 0.4], [0.0, 1.1]], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    rnn = PlainRNN(zeros[0], weight, zeros[1])
    x = torch.zeros(20, 1, 1, dtype=torch.float64)
    direction = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    found = backward(
        rnn.step, x, forward(rnn.step, x, (torch.zeros(1, 1, 2, dtype=torch.float64),)), direction
    )
    for k in (0, 1, 7, 20):
        expected = (direction @ torch.linalg.matrix_power(weight.detach(), k)).norm().item()
        assert found.norms[k, 0].item() == pytest.approx(expected, rel=1e-12)


@torch.no_grad()
def test_a_cell_with_constant_gates_keeps_f_to_the_power_of_the_distance() -> None:
    lstm = fresh_lstm(1, 2, 1, seed=0)
    for parameter in lstm.parameters():
        parameter.zero_()
    lstm.layer(0)[2][2:4] = math.log(0.95 / 0.05)  # f = 0.95, whatever comes
    x = torch.zeros(30, 1, 1, dtype=torch.float64)
    step = lstm_step(lstm)
    direction = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    cells = backward(step, x, forward(step, x, lstm.zero_state(1)), direction).squared[:, 1, 0, 0].sqrt()
    # dh/dc = o (1 - tanh(c)^2) = 0.5 at the last step
    torch.testing.assert_close(cells[1:], 0.5 * 0.95 ** torch.arange(1, 31, dtype=torch.float64))


def test_what_the_steps_add_to_the_gradient_of_the_weights_is_that_gradient() -> None:
    rnn = PlainRNN.fresh(2, 3, 2.0, torch.Generator().manual_seed(0))
    x = torch.randn(6, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = torch.nn.functional.normalize(torch.ones(4, 3, dtype=torch.float64))
    state: States = (torch.zeros(1, 4, 3, dtype=torch.float64),)
    weights = rnn.weight_ih, rnn.weight_hh, rnn.bias
    found = backward(rnn.step, x, forward(rnn.step, x, state), direction, weights)
    for row in x:
        state = rnn.step(row, state)
    whole = torch.autograd.grad((state[0][0] * direction).sum() / 4, weights)
    assert found.total == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in whole)), rel=1e-12)
    assert len(found.by_step) == 6
    assert found.total <= found.by_step.sum() + 1e-12


def test_chrono_biases_are_spread_over_the_time_scales_up_to_the_longest() -> None:
    bias = fresh_lstm(2, 500, 1, seed=0, chrono=300).layer(0)[2].detach()
    i, f, _, _ = bias.chunk(4)
    assert torch.equal(i, -f)
    scales = f.exp()  # uniform between 1 and 299
    assert 1 <= scales.min() < 10
    assert 290 < scales.max() <= 299
    assert scales.mean().item() == pytest.approx(150, rel=0.1)


def test_the_fresh_networks_do_what_the_textbooks_say() -> None:
    found = classics(60)
    small, large, forget_1, chrono = (curve[60].item() for curve in found.curves.values())
    assert small < 1e-12
    assert small < forget_1 < 0.01 < chrono < 1
    assert large > 100
    assert all(curve[0].item() == pytest.approx(1) for curve in found.curves.values())
    assert list(found.curves)[1] == EXPLODING


def test_clipping_bounds_the_whole_and_leaves_the_near_steps_nothing() -> None:
    found = classics(60)
    assert found.clip_factor * found.exploding.total == pytest.approx(1)
    assert found.exploding.by_step[0] > 0.1
    assert found.exploding.by_step[0] * found.clip_factor < 1e-2


def test_making_fresh_networks_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fresh_lstm(2, 3, 1, seed=0, chrono=10)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("curve", "share", "expected"),
    [((1.0, 0.5, 0.05, 0.2, 0.05), 0.1, 4), ((1.0, 0.5), 0.1, None), ((0.0, 0.0), 0.1, 0)],
)
def test_the_reach_is_where_a_curve_stays_below(
    curve: tuple[float, ...], share: float, expected: int | None
) -> None:
    assert reach(torch.tensor(curve), share) == expected
