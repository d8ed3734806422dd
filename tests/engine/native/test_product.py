"""Rows times a panel, of every precision and on every unit, against float64.

Where rows and weights are small whole numbers every sum is exact in whatever order it is taken, so that a
term left out, doubled or taken from beside it shows whatever its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import llvmlite.ir as ll
import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.native.host import Library
from service.engine.native.ir import INT, POINTER, Kernel, Value
from service.engine.native.packing import Array, aligned, filled, keep, pack, tiles, to_bf16
from service.engine.native.product import (
    PRODUCT,
    Kind,
    Unit,
    add_product,
    by_groups,
    kind_for,
    rows_at_once,
)
from service.engine.native.rows import Layout
from tests.engine.native.making import PATHS, PROCESSORS, Call, function_of, make_function

COUNTS = range(1, 71)
FEW = [1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 49, 64, 70]
UNTOUCHED = np.float32(-12345.0)


@pytest.fixture(params=list(PATHS))
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@lru_cache(maxsize=64)
def native(path: str, columns: int) -> Call:
    target, kind = PATHS[path]
    module = ll.Module("test")
    function = add_product(module, columns, kind, target)
    return function_of(Library(module, target), function.name, PRODUCT)


@dataclass
class Panel:
    """A matrix of one panel, [columns * lanes, terms], and rows [70, terms] that it is multiplied with."""

    path: str
    columns: int
    rows: Array
    weights: Array

    def __post_init__(self) -> None:
        target, self.kind = PATHS[self.path]
        self.lanes, self.terms = target.lanes, self.rows.shape[1]
        units = [list(np.arange(self.columns * self.lanes).reshape(self.columns, self.lanes))]
        packed = pack([self.weights], units, self.kind.precision)
        self.packed = tiles(packed) if self.kind.unit is Unit.TILE else packed

    @property
    def expected(self) -> NDArray[np.float64]:
        """[70, columns, lanes], of numbers as they are kept; an int8 scale is not the product's to apply."""
        (weights,), scales = keep([self.weights], self.kind.precision)
        rows = keep([self.rows], "bf16")[0][0] if self.kind.half else self.rows
        sums = rows.astype(np.float64) @ (weights.astype(np.float64) / scales[:, None]).T
        return sums.reshape(len(rows), self.columns, self.lanes)

    def sums(self, count: int, first: int = 0) -> Array:
        """The sums of so many rows from `first` on, with 20 more in memory. Behind the rows and their terms
        are NaNs."""
        width = filled(self.terms, self.kind.precision)
        layout = Layout(width, self.kind.half)
        dtype = np.uint16 if self.kind.half else np.float32
        rows = aligned((count + 15, layout.stride // layout.size), dtype)
        rows.view(np.uint8)[...] = 0xFF  # NaN in both
        mine = self.rows[first : first + count]
        rows[:count, :width] = 0
        rows[:count, : self.terms] = to_bf16(mine) if self.kind.half else mine
        sums = aligned((count + 20, self.columns, self.lanes))
        sums[...] = UNTOUCHED
        words = width // self.kind.together
        native(self.path, self.columns)(rows, layout.stride, count, self.packed.panels, words, sums)
        return sums


def whole(path: str, columns: int, terms: int) -> Panel:
    """Numbers that are exact in bf16, and in int8: a row's largest is 127 steps."""
    rng = np.random.default_rng(terms)
    rows = rng.integers(-3, 4, (70, terms)).astype(np.float32)
    weights = rng.integers(-3, 4, (columns * PATHS[path][0].lanes, terms)).astype(np.float32)
    if PATHS[path][1].precision == "int8":
        weights[:, rng.integers(terms)] = 127
    return Panel(path, columns, rows, weights)


def real(path: str, columns: int, terms: int) -> Panel:
    rng = np.random.default_rng(terms)
    rows = rng.standard_normal((70, terms)).astype(np.float32)
    weights = rng.standard_normal((columns * PATHS[path][0].lanes, terms)).astype(np.float32)
    return Panel(path, columns, rows, weights)


def assert_sums(panel: Panel, count: int) -> None:
    """The rows' are exact; behind them vectors write nothing, and tiles up to a multiple of 16 rows."""
    sums = panel.sums(count)
    np.testing.assert_array_equal(sums[:count], panel.expected[:count])
    last = -(-count // 16) * 16 if panel.kind.unit is Unit.TILE else count
    np.testing.assert_array_equal(sums[last:], UNTOUCHED)


@pytest.mark.parametrize("columns", [1, 3, 4])
def test_every_count_of_rows_is_exact(path: str, columns: int) -> None:
    for count in COUNTS:
        assert_sums(whole(path, columns, 37), count)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 16, 31, 32, 33, 64, 65, 203])
def test_every_number_of_terms_is_exact(path: str, terms: int) -> None:
    for count in (1, 6, 17, 33):
        assert_sums(whole(path, 4, terms), count)


def test_a_panel_of_several_pieces_is_exact(path: str) -> None:
    """Pieces begin with the sums of the one before; the last is shorter."""
    panel = whole(path, 4, 1601)
    for count in FEW:
        assert_sums(panel, count)


def test_real_numbers_are_summed_in_float32(path: str) -> None:
    """1601 terms: a place of float32 of the sum of their sizes, at most; 1e-6 of it, at the worst seen."""
    panel = real(path, 4, 1601)
    (weights,), scales = keep([panel.weights], panel.kind.precision)
    sizes = np.abs(panel.rows) @ np.abs(weights / scales[:, None]).T
    error = np.abs(panel.sums(70)[:70] - panel.expected) / sizes.reshape(70, 4, -1)
    assert error.max() < 1e-6


@pytest.mark.parametrize("terms", [37, 1601])
def test_a_rows_sums_do_not_depend_on_the_others(path: str, terms: int) -> None:
    """To the bit, in a batch of any size, at any place of it."""
    panel = real(path, 4, terms)
    every = panel.sums(70)[:70]
    for count in FEW if terms > 100 else COUNTS:
        np.testing.assert_array_equal(panel.sums(count)[:count], every[:count])
    for first in range(0, 69, 5):
        np.testing.assert_array_equal(panel.sums(1, first)[0], every[first])
        np.testing.assert_array_equal(panel.sums(2, first)[:2], every[first : first + 2])


def groups_of(group: int) -> Call:
    """Writes down the row and the number of every call that `by_groups` makes, int64 [calls, 2]."""

    def write(k: Kernel) -> None:
        calls = k.room(INT)
        k.store(k.number(0), calls, align=8)

        def one(row: Value, number: int) -> None:
            n = k.load(calls, INT, 8)
            k.store(row, k.at(k.arguments["seen"], n, 16), align=8)
            k.store(k.number(number), k.at(k.arguments["seen"], n * 16 + 8), align=8)
            k.store(n + 1, calls, align=8)

        by_groups(k, k.arguments["count"], group, one)

    return make_function(next(iter(PROCESSORS.values())), {"count": INT, "seen": POINTER}, write)


@pytest.mark.parametrize("group", [1, 2, 5, 6])
def test_groups_are_every_row_once(group: int) -> None:
    """Full groups first, in order, then one of what is left."""
    native = groups_of(group)
    for count in range(20):
        seen = np.full((21, 2), -1)
        native(count, seen)
        full = count // group * group
        expected = [[row, group] for row in range(0, full, group)]
        expected += [[full, count - full]] if count > full else []
        assert seen[seen[:, 0] >= 0].tolist() == expected


def test_a_groups_sums_fit_in_the_registers() -> None:
    for target in PROCESSORS.values():
        for columns in (1, 2, 3, 4):
            rows = rows_at_once(target, columns)
            assert 1 <= rows <= 6
            assert rows * columns + columns + 1 <= target.registers


def test_a_product_is_written_once_for_a_module() -> None:
    module, (target, kind) = ll.Module("test"), next(iter(PATHS.values()))
    assert add_product(module, 4, kind, target) is add_product(module, 4, kind, target)
    assert add_product(module, 3, kind, target) is not add_product(module, 4, kind, target)


def test_the_unit_is_the_fastest_that_the_processor_has() -> None:
    for target in PROCESSORS.values():
        best = Unit.TILE if target.amx else Unit.DOT if target.dot else Unit.VECTOR
        assert kind_for("bf16", target) == Kind("bf16", best)
        for precision in ("fp32", "int8"):
            assert kind_for(precision, target) == Kind(precision, Unit.VECTOR)
