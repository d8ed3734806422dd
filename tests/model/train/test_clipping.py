"""Gradients that are too large are made smaller, and others left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.train.clipping import KINDS, REMEMBERED, clip, clip_to_median


def make_parameters() -> list[nn.Parameter]:
    matrix, vector = (
        nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]])),
        nn.Parameter(torch.tensor([1.0, 0.0])),
    )
    matrix.grad, vector.grad = torch.tensor([[30.0, 40.0], [0.3, 0.4]]), torch.tensor([0.0, -0.05])
    return [matrix, vector]


def test_by_norm_all_gradients_keep_their_direction() -> None:
    parameters = make_parameters()
    before = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    clip(parameters, "norm", 1.0)
    after = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    assert after.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert torch.allclose(after, before / before.norm(), rtol=1e-5)


def test_by_value_each_number_is_bounded() -> None:
    matrix, vector = make_parameters()
    clip([matrix, vector], "value", 0.35)
    assert torch.equal(matrix.grad, torch.tensor([[0.35, 0.35], [0.3, 0.35]]))  # type: ignore[arg-type]
    assert torch.equal(vector.grad, torch.tensor([0.0, -0.05]))  # type: ignore[arg-type]


def test_adaptively_a_units_gradient_is_bounded_by_its_weights() -> None:
    matrix, vector = make_parameters()
    clip([matrix, vector], "adaptive", 0.1)
    assert matrix.grad is not None
    assert torch.allclose(matrix.grad[0], torch.tensor([0.3, 0.4]))  # a tenth of the norm 5
    assert matrix.grad[1].norm().item() == pytest.approx(1e-4)  # weights of zero count as a little
    assert torch.equal(vector.grad, torch.tensor([0.0, -0.05]))  # type: ignore[arg-type]


@pytest.mark.parametrize("by", KINDS)
def test_small_gradients_stay_bit_by_bit(by: str) -> None:
    parameters = make_parameters()
    before = [p.grad.clone() for p in parameters if p.grad is not None]
    clip(parameters, by, 1e6)
    assert all(torch.equal(p.grad, b) for p, b in zip(parameters, before, strict=True))  # type: ignore[arg-type]


def test_none_leaves_the_largest() -> None:
    matrix, _ = make_parameters()
    clip([matrix], "none", 1e-3)
    assert matrix.grad is not None
    assert matrix.grad.max() == 40


def test_a_gradient_that_is_no_number_is_not_to_be_followed() -> None:
    parameters = make_parameters()
    assert clip(parameters, "norm", 1.0)
    assert parameters[0].grad is not None
    parameters[0].grad[0, 0] = torch.inf
    assert not clip(parameters, "norm", 1.0)


def test_by_the_median_one_gradient_among_many_is_no_larger_than_they() -> None:
    recent: list[float] = []
    for norm in (0.1, 0.3, 0.2, 1e15):
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([0.6, 0.8]) * norm
        assert clip_to_median([parameter], 1.0, recent)
    assert recent == pytest.approx([0.1, 0.3, 0.2, 1.0])  # what is remembered of it is the limit
    assert torch.allclose(parameter.grad, torch.tensor([0.6, 0.8]) * 0.25)  # type: ignore[arg-type]


def test_the_median_is_of_the_newest_and_a_gradient_below_it_stays_as_it_is() -> None:
    recent = [0.5] * (3 * REMEMBERED)
    matrix, vector = make_parameters()
    before = matrix.grad.clone()  # type: ignore[union-attr]
    assert clip_to_median([matrix, vector], 100.0, recent)
    assert len(recent) == REMEMBERED
    assert torch.allclose(matrix.grad, before * (0.5 / recent[-1]))  # type: ignore[arg-type]
    for parameter in (matrix, vector):
        parameter.grad = torch.full_like(parameter, 1e-3)
    assert clip_to_median([matrix, vector], 100.0, recent)
    assert torch.equal(matrix.grad, torch.full((2, 2), 1e-3))  # type: ignore[arg-type]


def test_by_the_median_a_gradient_that_is_no_number_is_not_followed_and_not_remembered() -> None:
    matrix, vector = make_parameters()
    matrix.grad[0, 0] = float("inf")  # type: ignore[index]
    recent = [0.5]
    assert not clip_to_median([matrix, vector], 1.0, recent)
    assert recent == [0.5]
