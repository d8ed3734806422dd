"""The gates' functions against float64, on vectors of every width."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import pytest
from numpy.typing import NDArray

from model.reference import sigmoid
from service.engine.native.gates import LARGEST, cell, exp_minus, reciprocal
from service.engine.native.host import Processor
from service.engine.native.ir import INT, POINTER, Kernel, Value, floats
from tests.engine.native.making import VECTORS, make_function

Array = NDArray[np.float32]
N = 1 << 16
#: Lanes, a row's or two rows' side by side, and whether a reciprocal is a division.
WAYS = [
    (target, rows * lanes, exact)
    for lanes, target in VECTORS.items()
    for rows in (1, 2)
    for exact in ((True, False) if target.estimates else (True,))
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0].lanes} lanes, {way[1]} numbers, exact={way[2]}")
def way(request: pytest.FixtureRequest) -> tuple[Processor, int, bool]:
    chosen: tuple[Processor, int, bool] = request.param
    return chosen


@lru_cache(maxsize=128)
def mapped(
    target: Processor, width: int, function: Callable[..., list[Value]], inputs: int, outputs: int
) -> Callable[..., list[Array]]:
    """A native function over arrays, for a function of a kernel and vectors of `width` numbers."""

    def write(k: Kernel) -> None:
        places = list(k.arguments.values())[1:]
        with k.loop(0, k.arguments["count"], width) as n:
            given = [k.load(k.at(place, n, 4), floats(width)) for place in places[:inputs]]
            for value, place in zip(function(k, *given), places[inputs:], strict=True):
                k.store(value, k.at(place, n, 4))

    names = [f"array{n}" for n in range(inputs + outputs)]
    native = make_function(target, {"count": INT} | dict.fromkeys(names, POINTER), write)

    def call(*arrays: Array) -> list[Array]:
        results = [np.full(len(arrays[0]), np.nan, np.float32) for _ in range(outputs)]
        native(len(arrays[0]), *arrays, *results)
        return results

    return call


def _exp(k: Kernel, x: Value) -> list[Value]:
    return [exp_minus(k, x), exp_minus(k, x, 2.0)]


def _reciprocal_exact(k: Kernel, x: Value) -> list[Value]:
    return [reciprocal(k, x, True)]


def _reciprocal(k: Kernel, x: Value) -> list[Value]:
    return [reciprocal(k, x, False)]


def _cell_exact(k: Kernel, i: Value, f: Value, g: Value, o: Value, c: Value) -> list[Value]:
    return list(cell(k, (i, f, g, o), c, True))


def _cell(k: Kernel, i: Value, f: Value, g: Value, o: Value, c: Value) -> list[Value]:
    return list(cell(k, (i, f, g, o), c, False))


def run_cell(way: tuple[Processor, int, bool], *of: Array) -> list[Array]:
    target, width, exact = way
    return mapped(target, width, _cell_exact if exact else _cell, 5, 2)(*of)


def true_cell(*of: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    i, f, g, o, c = (v.astype(np.float64) for v in of)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def drawn(scale: float, c: float) -> list[Array]:
    rng = np.random.default_rng(3)
    scales = [scale] * 4 + [c]
    return [rng.uniform(-most, most, N).astype(np.float32) for most in scales]


def test_the_exponential_is_exact_to_what_its_argument_is(way: tuple[Processor, int, bool]) -> None:
    """Relative: 1.5e-7 around zero; further out what rounding y does to 2^y, 1.8e-6 at 2^-40 and 2^40."""
    x = np.linspace(-27.7, 27.7, N).astype(np.float32)
    once, twice = mapped(way[0], way[1], _exp, 1, 2)(x)
    for times, found in ((1, once), (2, twice)):
        exponent = times * x.astype(np.float64)
        error = np.abs(found * np.exp(exponent) - 1)
        assert error[np.abs(exponent) < 27.7].max() < 1.8e-6
        assert error[np.abs(exponent) < 0.3].max() < 1.5e-7


def test_the_exponential_is_clipped_and_one_at_zero(way: tuple[Processor, int, bool]) -> None:
    tiny = float(np.finfo(np.float32).tiny)
    far = [1e38, 1e4, 28.0, tiny, 0.0, -0.0, -tiny, -28.0, -1e4, -3e38]
    x = np.zeros(32, np.float32)
    x[: len(far)] = far
    expected = [2**-LARGEST] * 3 + [1.0] * 4 + [2**LARGEST] * 3
    for found in mapped(way[0], way[1], _exp, 1, 2)(x):
        np.testing.assert_array_equal(found[: len(far)], np.array(expected, np.float32))


def test_a_reciprocal_is_right_to_the_last_place(way: tuple[Processor, int, bool]) -> None:
    """Of all numbers that the gates have, 1 ... 2^81: relative 6.2e-8, and of powers of two exact."""
    target, width, exact = way
    native = mapped(target, width, _reciprocal_exact if exact else _reciprocal, 1, 1)
    x = np.exp2(np.random.default_rng(1).uniform(0, 81, N)).astype(np.float32)
    (found,) = native(x)
    assert np.abs(found * x.astype(np.float64) - 1).max() < 6.2e-8
    powers = np.exp2(np.arange(96, dtype=np.float32))
    np.testing.assert_array_equal(native(powers)[0], 1 / powers)


@pytest.mark.parametrize(
    ("scale", "c", "h_tolerance"),
    [(1, 1, 3e-7), (8, 2, 3e-7), (30, 2, 3e-7), (1e4, 2, 3e-7), (8, 100, 6e-7), (1e4, 100, 6e-7)],
)
def test_a_cell_is_the_true_one(
    way: tuple[Processor, int, bool], scale: float, c: float, h_tolerance: float
) -> None:
    of = drawn(scale, c)
    (h, c_new), (true_h, true_c) = run_cell(way, *of), true_cell(*of)
    assert np.abs(h - true_h).max() < h_tolerance
    assert (np.abs(c_new - true_c) / (1 + np.abs(of[4]))).max() < 3e-7


def test_a_cell_of_tiny_numbers_is_tiny(way: tuple[Processor, int, bool]) -> None:
    """Around zero an absolute error of half a place of 1 is left, 6e-8: 1 - E(2x) is a difference."""
    for scale in (1e-3, 1e-6, 1e-20, 1e-38):
        of = drawn(scale, scale)
        for found, true in zip(run_cell(way, *of), true_cell(*of), strict=True):
            assert np.abs(found - true).max() < 6e-8


def saturated(i: float, f: float, g: float, o: float, c: Array) -> list[Array]:
    return [np.full(len(c), x, np.float32) for x in (i, f, g, o)] + [c]


def test_a_forget_gate_at_one_keeps_the_cell(way: tuple[Processor, int, bool]) -> None:
    """To the bit when the candidate is zero; a closed input gate lets 2^-40 of it through, which is lost in
    any c from 2^-15 on."""
    c = np.random.default_rng(2).uniform(-100, 100, N).astype(np.float32)
    for f in (20.0, 1e4):
        _, kept = run_cell(way, *saturated(-1e4, f, 0.0, 0.0, c))
        np.testing.assert_array_equal(kept, c)
    c = c[np.abs(c) > 2**-15][: N // 2]
    for g in (-1e4, -0.7, 1e4):
        _, kept = run_cell(way, *saturated(-1e4, 1e4, g, 0.0, c))
        np.testing.assert_array_equal(kept, c)
    _, left = run_cell(way, *saturated(-1e4, 1e4, 1e4, 0.0, np.zeros(32, np.float32)))
    np.testing.assert_allclose(left, 2.0**-LARGEST, rtol=1e-6)


def test_a_forget_gate_at_zero_and_a_full_write_replace_the_cell(way: tuple[Processor, int, bool]) -> None:
    c = np.random.default_rng(2).uniform(-100, 100, N).astype(np.float32)
    for g in (-1e4, 1e4):
        h, new = run_cell(way, *saturated(1e4, -1e4, g, 1e4, c))
        np.testing.assert_allclose(new, np.sign(g), rtol=1.2e-7)
        np.testing.assert_allclose(h, np.tanh(np.sign(g)), atol=2e-7)


def test_a_unit_of_nothing_stays_nothing(way: tuple[Processor, int, bool]) -> None:
    """What is behind the last unit has weights and a cell of zero."""
    for found in run_cell(way, *[np.zeros(32, np.float32)] * 5):
        np.testing.assert_array_equal(found, np.zeros(32, np.float32))


def test_h_never_passes_one(way: tuple[Processor, int, bool]) -> None:
    h, _ = run_cell(way, *drawn(1e4, 1e4))
    assert np.abs(h).max() <= 1.0
    assert np.isfinite(h).all()


def test_every_lane_computes_alone() -> None:
    """A row's numbers do not depend on the width that they are computed in, nor on the row beside it."""
    of = drawn(8, 2)
    for lanes, target in VECTORS.items():
        for exact in (True, False) if target.estimates else (True,):
            one, two = (partial(run_cell, (target, rows * lanes, exact)) for rows in (1, 2))
            for a, b in zip(one(*of), two(*of), strict=True):
                np.testing.assert_array_equal(a, b)
