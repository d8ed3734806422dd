"""A layer over a window in bfloat16 is the cell of `lstm`, step after step; its gradient is the true one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import window
from model.lstm import StackedLSTM, cell
from tests.model.making import make_network, make_prepared, make_spec

T, B, INPUTS, HIDDEN = 4, 2, 3, 4


def make_layer(seed: int = 0) -> list[Tensor]:
    """x, h, c, weight_ih, weight_hh, bias in float64, each asking for its gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(T, B, INPUTS), (B, HIDDEN), (B, HIDDEN), (4 * HIDDEN, INPUTS), (4 * HIDDEN, HIDDEN)]
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors += [torch.randn(4 * HIDDEN, generator=generator, dtype=torch.float64)]
    return [(0.5 * tensor).requires_grad_() for tensor in tensors]


def by_the_cell(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    hs = []
    for row in x:
        h, c, _ = cell(row, h, c, *weights)
        hs.append(h)
    return torch.stack(hs), c


def test_it_is_the_cell_step_after_step() -> None:
    layer = make_layer()
    hs, c = window.Window.apply(*layer)  # type: ignore[no-untyped-call]
    expected, last = by_the_cell(*layer)
    torch.testing.assert_close(hs, expected)
    torch.testing.assert_close(c, last)


def test_its_gradient_is_the_difference_quotient() -> None:
    assert torch.autograd.gradcheck(window.Window.apply, make_layer())


def test_in_bfloat16_it_stays_near() -> None:
    """Each result and each gradient within 2 % of float64's, as a whole."""
    layer = make_layer()
    low = [tensor.detach().float().requires_grad_() for tensor in layer]
    x, h, c, *weights = low
    hs, (h, c) = window.run(x, (h[None], c[None]), *weights)
    assert (hs.dtype, h.dtype, c.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    expected, last = by_the_cell(*layer)
    (hs.float().sum() + c.sum()).backward()  # type: ignore[no-untyped-call]
    (expected.sum() + last.sum()).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(h[0], hs[-1])
    pairs = [(hs, expected), (c[0], last), *((a.grad, b.grad) for a, b in zip(low, layer, strict=True))]
    for mine, true in pairs:
        assert mine is not None
        assert true is not None
        assert (mine.double() - true).norm() < 0.02 * true.norm()


@pytest.mark.parametrize("task", ["series", "text"])
def test_a_network_in_bfloat16_is_the_network(task: str) -> None:
    network = make_network(make_spec(task, hidden=32)).train()
    x = make_prepared(network.spec, 12, 4)
    plain, (h, c) = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = network(x)
    torch.testing.assert_close(y.float(), plain, atol=0.02, rtol=0)
    torch.testing.assert_close(state[0].float(), h, atol=0.02, rtol=0)
    torch.testing.assert_close(state[1], c, atol=0.02, rtol=0)


def test_the_state_goes_on_from_one_window_to_the_next() -> None:
    torch.manual_seed(0)
    lstm = StackedLSTM(4, 16, 2)
    x = torch.randn(10, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        whole, _ = lstm(x)
        first, state = lstm(x[:6])
        second, _ = lstm(x[6:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole, atol=1e-2, rtol=0)
