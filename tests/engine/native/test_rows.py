"""Rows are copied whole and alone, from and to wherever they lie."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.native.ir import INT, POINTER, Kernel
from service.engine.native.packing import Array, to_bf16
from service.engine.native.rows import Layout, Operand, gather, scatter
from tests.engine.native.making import VECTORS, Call, make_function

TERMS = [1, 3, 15, 16, 17, 100]
ROWS, SLOTS, WIDTH = 7, 20, 130
NAMES = ("matrix", "index", "side", "stride", "begin", "end", "first", "last")
ARGUMENTS = {name: POINTER if n < 3 else INT for n, name in enumerate(NAMES)}


@lru_cache(maxsize=64)
def gathering(lanes: int, terms: int, half: bool, indexed: bool, first: int, width: int) -> Call:
    def write(k: Kernel) -> None:
        a = k.arguments
        operand = Operand(a["matrix"], a["index"] if indexed else None, terms, a["stride"])
        layout = Layout(WIDTH, half)
        gather(k, operand, (a["begin"], a["end"]), a["side"], layout, lanes, first, width)

    return make_function(VECTORS[lanes], ARGUMENTS, write)


@lru_cache(maxsize=64)
def scattering(lanes: int, terms: int) -> Call:
    def write(k: Kernel) -> None:
        a = k.arguments
        operand = Operand(a["matrix"], a["index"], terms, a["stride"])
        blocks = (a["first"], a["last"])
        scatter(k, a["side"], operand, (a["begin"], a["end"]), Layout(WIDTH), lanes, blocks)

    return make_function(VECTORS[lanes], ARGUMENTS, write)


def matrix_of(terms: int, gap: int) -> Array:
    """Rows of so many terms, and numbers between them that belong to nobody. Some lie in the middle of two of
    bf16, the lower of which is even, and some of two, the upper of which is."""
    matrix = np.random.default_rng(terms).standard_normal((SLOTS, terms + gap)).astype(np.float32)
    matrix[::2, ::3] = 1 + 2.0**-8
    matrix[1::2, ::3] = -1 - 3 * 2.0**-8
    return matrix


def side_by_side(half: bool = False) -> NDArray[np.generic]:
    """Room for all rows of a batch, full of NaNs."""
    layout = Layout(WIDTH, half)
    side = np.empty((ROWS, layout.stride // layout.size), np.uint16 if half else np.float32)
    side.view(np.uint8)[...] = 0xFF
    return side


@pytest.mark.parametrize("lanes", list(VECTORS))
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_rows_are_gathered_side_by_side_and_filled_with_zeros(
    lanes: int, terms: int, half: bool, indexed: bool
) -> None:
    """Terms 5 ... of rows 2 ... 7 of the batch, as `to_bf16` rounds them; what is around them is left."""
    matrix, index, side = matrix_of(terms, 9), np.array([3, 3, 19, 0, 7, 1, 3]), side_by_side(half)
    first, width, begin = 5, terms + 4, 2
    native = gathering(lanes, terms, half, indexed, first, width)
    native(matrix, index, side, 4 * matrix.shape[1], begin, ROWS, 0, 0)
    rows = matrix[index[begin:] if indexed else np.arange(begin, ROWS)][:, :terms]
    expected = side_by_side(half)
    expected[: ROWS - begin, first : first + width] = 0
    expected[: ROWS - begin, first : first + terms] = to_bf16(rows) if half else rows
    np.testing.assert_array_equal(side, expected)


@pytest.mark.parametrize("lanes", list(VECTORS))
@pytest.mark.parametrize("terms", TERMS)
def test_rows_are_scattered_to_where_they_belong_and_nowhere_else(lanes: int, terms: int) -> None:
    matrix, index, side = matrix_of(terms, 9), np.array([3, 4, 19, 0, 7, 1, 2]), side_by_side()
    begin = 2
    side[:, :terms] = np.random.default_rng(0).standard_normal((ROWS, terms))
    expected = matrix.copy()
    expected[index[begin:], :terms] = side[: ROWS - begin, :terms]
    blocks = -(-terms // lanes)
    scattering(lanes, terms)(matrix, index, side, 4 * matrix.shape[1], begin, ROWS, 0, blocks)
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("lanes", list(VECTORS))
@pytest.mark.parametrize("terms", TERMS)
def test_blocks_of_rows_are_scattered_and_none_beside_them(lanes: int, terms: int) -> None:
    """The last block ends where the row does."""
    index = np.array([3, 4, 19, 0, 7, 1, 2])
    side = side_by_side()
    side[:, :terms] = np.random.default_rng(0).standard_normal((ROWS, terms))
    blocks = -(-terms // lanes)
    for first in range(blocks + 1):
        for last in range(first, blocks + 1):
            matrix = matrix_of(terms, 9)
            expected = matrix.copy()
            part = slice(first * lanes, min(last * lanes, terms))
            expected[index, part] = side[:, part]
            scattering(lanes, terms)(matrix, index, side, 4 * matrix.shape[1], 0, ROWS, first, last)
            np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("half", [False, True])
def test_rows_side_by_side_are_an_odd_number_of_cache_lines_apart(half: bool) -> None:
    for terms in range(1, 300):
        layout = Layout(terms, half)
        assert layout.stride % 128 == 64
        assert 0 <= layout.stride - terms * layout.size < 128
