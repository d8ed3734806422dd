"""The rows of a batch side by side: gathered once, and read for every block of units.

A session's input and state lie anywhere in the arena, at distances that are powers of two, which a cache
likes least. Side by side they are read in order, at a distance that spreads over the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ll

from service.engine.native.ir import HALF, WORD, Kernel, Value, floats


@dataclass(frozen=True, slots=True)
class Operand:
    """Rows of a matrix, float32 [?, terms], each reached through an index, int64 [B]; without one, by its own
    number in the batch. stride: bytes from one to the next, if they are not dense."""

    rows: Value
    index: Value | None
    terms: int
    stride: Value | None = None

    def row(self, k: Kernel, number: Value) -> Value:
        """The address of a row."""
        number = number if self.index is None else k.load_int(self.index, number)
        return k.at(self.rows, number * (4 * self.terms if self.stride is None else self.stride))


@dataclass(frozen=True, slots=True)
class Layout:
    """Gathered rows: so many terms each, float32 or rounded to bf16."""

    terms: int
    half: bool = False

    @property
    def size(self) -> int:
        return 2 if self.half else 4

    @property
    def stride(self) -> int:
        """Bytes from one row to the next: an odd number of cache lines."""
        return (-(-self.terms * self.size // 64) | 1) * 64


Span = tuple[Value, Value]  # rows begin ... end of a batch


def gather(
    k: Kernel, operand: Operand, span: Span, to: Value, layout: Layout, lanes: int, first: int, width: int
) -> None:
    """Copies rows to the terms `first` ... of rows that lie side by side at `to`, and zeros behind them up to
    `width` terms."""
    begin, end = span
    with k.loop(begin, end) as row:
        source = operand.row(k, row)
        out = k.at(k.at(to, row - begin, layout.stride), first * layout.size)
        _copy(k, source, out, operand.terms, lanes, layout.half)
        # Whatever lies there is multiplied by zero, and must not be NaN
        nothing = Value(k, ll.Constant(HALF if layout.half else WORD, 0))
        for term in range(operand.terms, width):
            k.store(nothing, k.at(out, term * layout.size), align=layout.size)


def scatter(
    k: Kernel, rows: Value, to: Operand, span: Span, layout: Layout, lanes: int, blocks: Span
) -> None:
    """Writes float32 rows that lie side by side to the operand's rows; of each the blocks of `lanes` terms
    that are given."""
    begin, end = span
    with k.loop(begin, end) as row:
        _copy(k, k.at(rows, row - begin, layout.stride), to.row(k, row), to.terms, lanes, blocks=blocks)


def _copy(
    k: Kernel,
    source: Value,
    to: Value,
    terms: int,
    lanes: int,
    half: bool = False,
    blocks: Span | None = None,
) -> None:
    whole = terms // lanes * lanes
    begin, end = (k.number(0), k.number(terms)) if blocks is None else (block * lanes for block in blocks)
    for least, most, width in ((0, whole, lanes), (whole, terms, 1)):
        if least == most:
            continue
        with k.loop(k.most(begin, k.number(least)), k.least(end, k.number(most)), width) as t:
            numbers = k.load(k.at(source, t, 4), floats(width))
            if half:
                k.store(_round(k, numbers), k.at(to, t, 2), align=2)
            else:
                k.store(numbers, k.at(to, t, 4))


def _round(k: Kernel, numbers: Value) -> Value:
    """The upper halves of float32 numbers, rounded to the nearest, ties to even: bf16."""
    bits = numbers.bits(ll.VectorType(WORD, numbers.ssa.type.count))
    return k.narrowed((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, HALF)
