"""How weights lie in memory for the kernels, and memory that begins where they want it.

A panel is what one turn of a kernel reads from front to end. Of a matrix [N, K] whose rows are grouped in
panels of `columns` vectors of `lanes` rows (units, for a gate):

    fp32  [panels, K, columns, lanes]       float32
    bf16  [panels, K / 2, columns, lanes, 2]  upper halves of float32, rounded; K filled up to 32 with zeros
    tiles [panels, K / 32, columns, 16, 16, 2]  the same, for AMX: 32 terms of one column together
    int8  [panels, K / 4, columns, lanes, 4]  whole multiples of a scale of its own for each row
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
#: Terms of a panel are filled up to a multiple of this: a bf16 tile takes 32 of them at once
TERMS = {"fp32": 1, "bf16": 32, "int8": 4}
_PAGE = 2 << 20
#: Rows of a matrix by panel, column and lane; -1 for none.
Units = Sequence[Sequence[NDArray[np.int_]]]


def aligned(shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
    """Zeros that begin at a cache line; in large pages where the system gives them."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < _PAGE:
        return _begin(np.zeros(size + 64, np.uint8), 64, size, dtype).reshape(shape)
    memory = mmap.mmap(-1, size + _PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return _begin(np.frombuffer(memory, np.uint8), _PAGE, size, dtype).reshape(shape)


def _begin(raw: NDArray[np.uint8], alignment: int, size: int, dtype: Any) -> NDArray[Any]:
    """So many bytes, from the first address that is a multiple on."""
    part: NDArray[Any] = raw[-raw.ctypes.data % alignment :][:size].view(dtype)
    return part


@dataclass(frozen=True, slots=True)
class Packed:
    """Panels, and for int8 what their numbers are multiples of, [panels, columns, lanes] float32."""

    panels: NDArray[Any]
    scales: Array

    @property
    def bytes(self) -> int:
        return self.panels.nbytes + self.scales.nbytes


def filled(terms: int, precision: str) -> int:
    """Terms of a packed panel."""
    return -(-terms // TERMS[precision]) * TERMS[precision]


def panels_of(rows: Array, units: Units) -> Array:
    """Rows [N, K] in the order of the panels, [panels, columns, lanes, K]; number -1 is a row of zeros."""
    order = np.array(units)
    return np.where((order >= 0)[..., None], rows[order], np.float32(0))


def gate_units(hidden: int, lanes: int) -> list[list[NDArray[np.int_]]]:
    """Rows of a matrix [4H, K], gates i, f, g, o, by panel, gate and lane; -1 behind the last unit."""
    units = np.arange(-(-hidden // lanes) * lanes).reshape(-1, lanes)
    return [[np.where(block < hidden, gate * hidden + block, -1) for gate in range(4)] for block in units]


def dense_width(outputs: int, lanes: int) -> tuple[int, int]:
    """Panels, and vectors in each, for so many outputs."""
    vectors = -(-outputs // lanes)
    panels = -(-vectors // 4)
    return panels, -(-vectors // panels)


def dense_units(outputs: int, lanes: int) -> list[list[NDArray[np.int_]]]:
    panels, columns = dense_width(outputs, lanes)
    numbers = np.arange(panels * columns * lanes).reshape(panels, columns, lanes)
    return [list(panel) for panel in np.where(numbers < outputs, numbers, -1)]


def keep(parts: Sequence[Array], precision: str) -> tuple[list[Array], Array]:
    """A matrix [N, K], in parts, as a precision keeps it, in float32 again; and the rows' scales [N]."""
    scales = np.ones(len(parts[0]), np.float32)
    if precision == "bf16":
        return [(to_bf16(part).astype(np.uint32) << 16).view(np.float32) for part in parts], scales
    if precision == "int8":
        largest = np.max([np.abs(part).max(1) for part in parts], 0)
        scales = np.maximum(largest, np.finfo(np.float32).tiny) / np.float32(127)
        return [np.rint(part / scales[:, None]) * scales[:, None] for part in parts], scales
    return list(parts), scales


def pack(parts: Sequence[Array], units: Units, precision: str) -> Packed:
    """Panels of a matrix [N, K] that comes in parts [N, K1], [N, K2] ..., each filled up by itself, in a
    precision of `TERMS`."""
    parts, of_rows = keep(parts, precision)
    if precision == "int8":
        parts = [np.rint(part / of_rows[:, None]) for part in parts]
    ordered = [panels_of(part, units) for part in parts]  # [panels, columns, lanes, K]
    panels, columns, lanes, _ = ordered[0].shape
    padding = [filled(part.shape[-1], precision) - part.shape[-1] for part in ordered]
    wide = np.concatenate(
        [np.pad(part, [(0, 0)] * 3 + [(0, more)]) for part, more in zip(ordered, padding, strict=True)], -1
    )
    together, dtype = {"fp32": (1, np.float32), "bf16": (2, np.uint16), "int8": (4, np.int8)}[precision]
    numbers = to_bf16(wide) if precision == "bf16" else wide
    packed = aligned((panels, wide.shape[-1] // together, columns, lanes, together), dtype)
    packed[:] = numbers.reshape(panels, columns, lanes, -1, together).transpose(0, 3, 1, 2, 4)
    scales = aligned((panels, columns, lanes))
    scales[:] = panels_of(of_rows[:, None], units)[..., 0]
    return Packed(packed, scales)


def tiles(packed: Packed) -> Packed:
    """bf16 panels of 16 lanes as AMX reads them."""
    panels, words, columns, lanes, _ = packed.panels.shape
    ordered = aligned((panels, words // 16, columns, 16, lanes, 2), np.uint16)
    ordered[:] = packed.panels.reshape(panels, words // 16, 16, columns, lanes, 2).swapaxes(2, 3)
    return Packed(ordered, packed.scales)


def to_bf16(numbers: Array) -> NDArray[np.uint16]:
    """The upper halves of finite float32 numbers, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
