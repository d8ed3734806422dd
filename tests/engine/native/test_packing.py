"""Weights as the kernels read them: nothing lost but what the precision loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.engine.native.packing import (
    TERMS,
    Array,
    Packed,
    aligned,
    dense_units,
    dense_width,
    filled,
    gate_units,
    keep,
    pack,
    tiles,
    to_bf16,
)

PRECISIONS = list(TERMS)
HIDDEN = [1, 3, 15, 16, 17, 100]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_torch(numbers: Array) -> Array:
    return torch.from_numpy(numbers).bfloat16().float().numpy()


def widened(halves: NDArray[np.uint16]) -> Array:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def unpacked(packed: Packed, precision: str) -> Array:
    """[panels, columns, lanes, K], by the layout that the module states."""
    panels, words, columns, lanes, together = packed.panels.shape
    numbers = widened(packed.panels) if precision == "bf16" else packed.panels.astype(np.float32)
    numbers = numbers.transpose(0, 2, 3, 1, 4).reshape(panels, columns, lanes, words * together)
    return np.asarray(numbers * packed.scales[..., None])


def assert_holds(packed: Packed, parts: list[Array], row: NDArray[np.int_], precision: str) -> None:
    """Every place of the panels has the number of its row, `row` [panels, columns, lanes], or zero."""
    found, first = unpacked(packed, precision), 0
    for part in keep(parts, precision)[0]:
        width = filled(part.shape[1], precision)
        expected = np.zeros((*row.shape, width), np.float32)
        for place in np.ndindex(*row.shape):
            if row[place] >= 0:
                expected[place][: part.shape[1]] = part[row[place]]
        np.testing.assert_array_equal(found[..., first : first + width], expected)
        first += width
    assert found.shape[-1] == first


def test_bf16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    one, place = 0x3F80, 2.0**-7
    cases = [
        (1.0, one),
        (1 + 0.49 * place, one),
        (1 + 0.5 * place, one),  # the even of two as near
        (1 + 0.51 * place, one + 1),
        (1 + 1.5 * place, one + 2),
        (-1 - 1.5 * place, 0x8000 + one + 2),
        (2 - place / 4, 0x4000),  # up to the next power
        (0.0, 0),
        (-0.0, 0x8000),
    ]
    for number, halves in cases:
        assert to_bf16(np.array([number], np.float32))[0] == halves


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_bf16_is_torchs(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    np.testing.assert_array_equal(widened(to_bf16(array)), by_torch(array))


def test_bf16_is_torchs_for_numbers_of_every_size() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 16, dtype=np.uint32).view(np.float32)
    bits = bits[np.isfinite(bits)]
    np.testing.assert_array_equal(widened(to_bf16(bits)), by_torch(bits))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_kept_is_kept_again(precision: str) -> None:
    """To the bit; an int8 scale is found again to a place of float32."""
    kept, scales = keep([normal(20, 3), normal(20, 7, seed=1)], precision)
    again, scales_again = keep(kept, precision)
    ulp = 1.2e-7 if precision == "int8" else 0
    for a, b in zip([*kept, scales], [*again, scales_again], strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=ulp, atol=0)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0.0), ("bf16", 2.0**-8), ("int8", 0.5 / 127)])
def test_what_is_kept_is_near(precision: str, error: float) -> None:
    """bf16 within half a place of each number; int8 within half a step of the largest of its row."""
    parts = [normal(20, 3), 100 * normal(20, 7, seed=1)]
    kept, _ = keep(parts, precision)
    largest = np.abs(np.concatenate(parts, 1)).max(1, keepdims=True)
    for a, b in zip(kept, parts, strict=True):
        size = largest if precision == "int8" else np.abs(b)
        assert (np.abs(a - b) <= error * size * 1.0001).all()


def test_int8_scales_make_the_largest_of_a_row_127() -> None:
    """Over all its parts: they are terms of one sum."""
    parts = [normal(20, 3), 5 * normal(20, 7, seed=1)]
    _, scales = keep(parts, "int8")
    np.testing.assert_allclose(scales * 127, np.abs(np.concatenate(parts, 1)).max(1), rtol=1e-6)
    packed = pack(parts, [[np.arange(20)]], "int8")
    assert packed.panels.dtype == np.int8
    assert (np.abs(packed.panels.astype(int)).max((0, 1, 4)) == 127).all()
    np.testing.assert_array_equal(packed.scales[0, 0], scales)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_of_zeros_stays_one(precision: str) -> None:
    parts = [normal(4, 5)]
    parts[0][2] = 0
    kept, scales = keep(parts, precision)
    np.testing.assert_array_equal(kept[0][2], np.zeros(5))
    assert np.isfinite(scales).all()
    assert not unpacked(pack(parts, [[np.arange(4)]], precision), precision)[0, 0, 2].any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_layers_weights_are_where_the_kernels_look(precision: str, lanes: int, hidden: int) -> None:
    """Panel p, gate q, lane l: row q H + p lanes + l; rows behind the last unit and terms behind a part's
    last are zeros."""
    blocks = -(-hidden // lanes)
    unit = np.arange(blocks * lanes).reshape(blocks, 1, lanes)
    row = np.where(unit < hidden, unit + hidden * np.arange(4)[:, None], -1)
    for inputs in (0, 1, 3, 32, 70):
        parts = [normal(4 * hidden, inputs)] if inputs else []
        parts.append(normal(4 * hidden, hidden, seed=1))
        assert_holds(pack(parts, gate_units(hidden, lanes), precision), parts, row, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("outputs", [1, 24, 65])
def test_a_heads_weights_are_where_the_kernels_look(precision: str, lanes: int, outputs: int) -> None:
    """Outputs in their order, up to four vectors a panel."""
    panels, columns = dense_width(outputs, lanes)
    assert 1 <= columns <= 4
    assert (panels - 1) * columns * lanes < outputs <= panels * columns * lanes
    number = np.arange(panels * columns * lanes).reshape(panels, columns, lanes)
    row, parts = np.where(number < outputs, number, -1), [normal(outputs, 17)]
    assert_holds(pack(parts, dense_units(outputs, lanes), precision), parts, row, precision)


@pytest.mark.parametrize("outputs", [1, 17, 64, 65, 100, 1000, 10_000])
def test_a_head_has_no_more_panels_than_it_needs(outputs: int) -> None:
    panels, columns = dense_width(outputs, 16)
    assert panels == -(-outputs // 64)
    assert panels * columns * 16 - outputs < 16 * (panels + 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_terms_are_filled_up_to_what_lies_together(precision: str) -> None:
    for terms in range(1, 71):
        assert 0 <= filled(terms, precision) - terms < TERMS[precision]
        assert filled(terms, precision) % TERMS[precision] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64, np.uint16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (1 << 19,), (1 << 21,), (700, 1001)])
def test_aligned_memory_is_zeros_from_a_cache_line_on(shape: tuple[int, ...], dtype: type) -> None:
    array = aligned(shape, dtype)
    assert array.ctypes.data % 64 == 0
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert not array.any()
    array[...] = 1  # all of it is ours to write
    assert array.flags.c_contiguous


def test_aligned_arrays_do_not_overlap() -> None:
    arrays = [aligned((100,)) for _ in range(10)]
    for n, array in enumerate(arrays):
        array[:] = n
    assert [set(array.tolist()) for array in arrays] == [{n} for n in range(10)]


@pytest.mark.parametrize("columns", [1, 3, 4])
def test_a_tile_is_1_kb_in_a_row(columns: int) -> None:
    """16 pairs of terms of 16 units: what is in it, and the order of the tiles of a panel."""
    units = [list(np.arange(16 * columns).reshape(columns, 16))] * 2
    packed = pack([normal(16 * columns, 70)], units, "bf16")
    ordered = tiles(packed)
    assert ordered.panels.shape == (2, 3, columns, 16, 16, 2)
    assert ordered.panels.flags.c_contiguous
    assert ordered.panels[0, 0, 0].nbytes == 1024
    assert ordered.panels.ctypes.data % 64 == 0
    for step in range(3):
        for column in range(columns):
            expected = packed.panels[:, 16 * step : 16 * step + 16, column]
            np.testing.assert_array_equal(ordered.panels[:, step, column], expected)
