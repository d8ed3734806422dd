"""Stored weights: what int8 costs a weight, and that it is exact and stable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.storage import DTYPES, SCALE, Unreadable, decode, encode, rounded


def make_matrix(rows: int = 7, columns: int = 40, seed: int = 0) -> Tensor:
    """Rows of very different magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 10.0 ** torch.arange(-rows, 0)[:, None]


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    """A step is a 127th of the row's largest magnitude, so a small row is as fine as a large one."""
    matrix = make_matrix()
    error = (rounded({"w": matrix}, "int8")["w"] - matrix).abs()
    step = matrix.abs().amax(1, keepdim=True) / 127
    assert (error <= 0.5001 * step).all()
    assert (error.amax(1, keepdim=True) > 0.3 * step).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 30))
def test_each_weight_is_the_exact_product(seed: int, exponent: int) -> None:
    """In float64 as in float32: no machine rounds it otherwise."""
    stored = encode({"w": make_matrix(seed=seed) * 2.0**exponent}, "int8")
    exact = stored["w"].double() * stored["w" + SCALE].double()[:, None]
    assert torch.equal(decode(stored)["w"].double(), exact)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES))
def test_rounding_again_changes_nothing(seed: int, dtype: str) -> None:
    once = rounded({"w": make_matrix(seed=seed), "b": torch.randn(5)}, dtype)
    again = rounded(once, dtype)
    assert torch.equal(once["w"], again["w"])
    assert torch.equal(once["b"], again["b"])


def test_vectors_stay_as_they_are() -> None:
    bias = torch.randn(9)
    assert torch.equal(rounded({"b": bias}, "int8")["b"], bias)


@pytest.mark.parametrize("row", [0.0, 1e-45, 1e-38])
def test_a_row_of_nothing_is_nothing(row: float) -> None:
    weights = rounded({"w": torch.tensor([[row, -row], [1.0, 0.0]])}, "int8")["w"]
    assert weights[0].tolist() == [0.0, 0.0]
    assert weights[1].tolist() == pytest.approx([1.0, 0.0], rel=4e-5)


def test_the_largest_of_a_row_stays_the_largest() -> None:
    stored = encode({"w": make_matrix()}, "int8")["w"]
    assert stored.dtype == torch.int8
    assert (stored.abs().amax(1) == 127).all()


def test_another_type_is_refused_by_name() -> None:
    with pytest.raises(Unreadable, match=r"w is torch\.int32, must be one of \['float32', .*'int8'\]"):
        decode({"w": torch.ones(2, 2, dtype=torch.int32)})
