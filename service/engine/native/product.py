"""Gathered rows times a panel of weights: sums [rows, columns, lanes] float32.

A panel is taken in pieces that stay in the first-level cache while a group of rows after another passes by; a
group's sums are in registers during a piece, and in memory between two. What comes next is asked for from the
outer caches meanwhile.

On vectors a sum takes its terms in the order of k whatever the batch is, so a session's numbers do not depend
on its neighbours, to the last bit. On tiles they do not either: a row of a tile is a sum of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import llvmlite.ir as ll

from service.engine.native.host import Processor
from service.engine.native.ir import (
    BFLOAT,
    BYTE,
    FLOAT,
    HALF,
    INT,
    POINTER,
    VOID,
    WORD,
    Kernel,
    Value,
    floats,
)

ROWS = 64  #: rows that go through a panel together: their sums stay in the first-level cache
TILE_ROWS = 256  #: on tiles more, for a panel's piece is soon done with a few
PIECE = 16 * 1024  #: bytes of a panel's piece for vectors: rows fit in the first-level cache beside it
STEPS = 8  #: and 32 terms each for tiles
#: Lines of a panel to ask for ahead when it is read once: 8 KB of wide vectors. Less is late for what lies in
#: memory, more leaves the first-level cache before its turn.
NEAR = 32


class Unit(enum.Enum):
    """What a product is taken with."""

    VECTOR = "vector"  # float32 multiply-add on any processor; weights are widened on the way
    DOT = "dot"  # AVX-512's product of bf16 pairs
    TILE = "tile"  # AMX: 16 rows by 16 units by 32 terms an instruction


@dataclass(frozen=True, slots=True)
class Kind:
    """Precision of the weights, and the unit. Rows are bf16 for DOT and TILE, else float32."""

    precision: str
    unit: Unit

    @property
    def half(self) -> bool:
        return self.unit is not Unit.VECTOR

    @property
    def together(self) -> int:
        """Weights of one column that lie in one 32-bit word."""
        return {"fp32": 1, "bf16": 2, "int8": 4}[self.precision]


def kind_for(precision: str, target: Processor) -> Kind:
    """The fastest that the processor has."""
    if precision == "bf16" and target.lanes == 16 and (target.amx or target.dot):
        return Kind(precision, Unit.TILE if target.amx else Unit.DOT)
    return Kind(precision, Unit.VECTOR)


def rows_at_once(target: Processor, columns: int) -> int:
    """Rows whose sums, `columns` vectors each, fit in the registers beside a line of weights and a factor."""
    return max(1, min(6, (target.registers - columns - 1) // columns))


def by_groups(k: Kernel, count: Value, group: int, write: Callable[[Value, int], None]) -> None:
    """Full groups of rows, then what is left of them."""
    full = count // group * group
    with k.loop(0, full, group) as row:
        write(row, group)
    k.choose(count - full, {n: partial(write, full, n) for n in range(1, group)})


PRODUCT = {
    "rows": POINTER,  # [count, words * together], float32 or bf16 by the kind
    "stride": INT,  # bytes from one to the next
    "count": INT,
    "panel": POINTER,
    "words": INT,  # of every column of the panel
    "sums": POINTER,  # float32 [count, columns, lanes]
}


def add_product(module: ll.Module, columns: int, kind: Kind, target: Processor) -> ll.Function:
    """sums = rows times a panel of so many columns. On tiles up to 15 rows behind the last are read and their
    sums written, too. Made once for a module."""
    name = f"product_{kind.precision}_{kind.unit.value}_{columns}"
    if name in module.globals:
        return module.globals[name]
    k = Kernel(module, name, PRODUCT)
    if kind.unit is Unit.TILE:
        _TileProduct(k, columns).write()
    else:
        _VectorProduct(k, target, columns, kind).write()
    return k.end()


@dataclass(frozen=True, slots=True)
class Piece:
    """Words `first` to `last` of a panel; `ahead`: how far on to ask for what comes next."""

    panel: Value
    first: Value
    last: Value
    ahead: Value
    alone: Value  # one group of rows: the panel is read once, by it


class _VectorProduct:
    """VECTOR and DOT."""

    def __init__(self, k: Kernel, target: Processor, columns: int, kind: Kind) -> None:
        self.k, self.columns, self.kind = k, columns, kind
        self.vector = floats(target.lanes)
        self.line = 4 * target.lanes * columns  # bytes of one word of every column
        self.group = rows_at_once(target, columns)

    def write(self) -> None:
        k, a = self.k, self.k.arguments
        alone = a["count"].less(self.group + 1)
        length = k.select(alone, a["words"], k.number(PIECE // self.line))
        with k.loop(0, a["words"], length) as first:
            last = k.least(first + length, a["words"])
            piece = Piece(a["panel"], first, last, k.select(alone, k.number(NEAR), last - first), alone)
            by_groups(k, a["count"], self.group, partial(self._group, piece))

    def _group(self, piece: Piece, row: Value, count: int) -> None:
        k, a, lanes = self.k, self.k.arguments, self.vector.count
        rows = [k.at(a["rows"], (row + n) * a["stride"]) for n in range(count)]
        sums = k.at(a["sums"], row, self.line)
        at = [k.at(sums, 4 * lanes * n) for n in range(count * self.columns)]
        places = [k.room(self.vector) for _ in at]
        for place in places:
            k.store(k.zeros(FLOAT, lanes), place)
        with k.when(k.number(0).less(piece.first)):
            for place, address in zip(places, at, strict=True):
                k.store(k.load(address, self.vector), place)
        second = k.number(self.group - 1).less(row).both(row.less(2 * self.group))
        unroll = max(1, 4 // self.kind.together)
        middle = piece.first + (piece.last - piece.first) // unroll * unroll
        with k.loop(piece.first, middle, unroll) as word:
            with k.when(second.either(piece.alone)):
                ahead = k.at(piece.panel, word + piece.ahead, self.line)
                for byte in range(0, unroll * self.line, 64):
                    k.prefetch(k.at(ahead, byte))
            for n in range(unroll):
                self._word(rows, places, piece.panel, word + n)
        with k.loop(middle, piece.last) as word:
            self._word(rows, places, piece.panel, word)
        for place, address in zip(places, at, strict=True):
            k.store(k.load(place, self.vector), address)

    def _word(self, rows: list[Value], places: list[Value], panel: Value, word: Value) -> None:
        """Adds the terms of one word of every column to the sums [row][column]."""
        k, lanes, together = self.k, self.vector.count, self.kind.together
        line = k.at(panel, word, self.line)
        weights = [k.at(line, 4 * lanes * j) for j in range(self.columns)]
        pairs = self.kind.unit is Unit.DOT
        for part in range(1 if pairs else together):
            columns = [self._weights(address, part) for address in weights]
            for n, row in enumerate(rows):
                if pairs:
                    pair = k.load(k.at(row, word, 4), WORD)
                    factor = k.spread(pair, lanes).bits(ll.VectorType(BFLOAT, 2 * lanes))
                else:
                    factor = k.spread(k.load(k.at(row, word * together + part, 4), FLOAT), lanes)
                for column, place in zip(columns, places[n * self.columns :], strict=False):
                    total = k.load(place, self.vector)
                    k.store(k.dot(total, factor, column) if pairs else k.fma(factor, column, total), place)

    def _weights(self, address: Value, part: int) -> Value:
        """One of the terms that lie together in a word, as float32; or, for DOT, the words themselves."""
        k, lanes = self.k, self.vector.count
        if self.kind.unit is Unit.DOT:
            return k.load(address, ll.VectorType(BFLOAT, 2 * lanes))
        if self.kind.together == 1:
            return k.load(address, self.vector)
        words = k.load(address, ll.VectorType(WORD, lanes))
        if self.kind.together == 2:
            return (words << 16 if part == 0 else words & 0xFFFF0000).bits(self.vector)
        return k.to_float((words << (24 - 8 * part)).shifted_right(24))


class _TileProduct:
    """TILE: two tiles of rows by two columns at a time: sums in tiles 0-3, rows in 4, 5, weights in 6, 7."""

    def __init__(self, k: Kernel, columns: int) -> None:
        self.k, self.columns, self.line = k, columns, 64 * columns

    def write(self) -> None:
        k, a = self.k, self.k.arguments
        configure_tiles(k)
        tiles, steps = (a["count"] + 15) // 16, a["words"] // 16
        pairs = tiles // 2 * 2
        length = k.select(tiles.less(3), steps, k.number(STEPS))
        with k.loop(0, steps, length) as first:
            span = (first, k.least(first + length, steps))
            with k.loop(0, pairs, 2) as number:
                self._tiles(number, 2, span)
            with k.when(pairs.less(tiles)):
                self._tiles(pairs, 1, span)
        k.intrinsic("llvm.x86.tilerelease", VOID)

    def _tiles(self, number: Value, count: int, span: tuple[Value, Value]) -> None:
        k, a = self.k, self.k.arguments
        rows = [k.at(a["rows"], (number + n) * a["stride"], 16) for n in range(count)]
        sums = k.at(a["sums"], number, 16 * self.line)
        for column in range(0, self.columns, 2):
            columns = min(2, self.columns - column)
            places = [(j, n) for j in range(columns) for n in range(count)]
            at = [k.at(sums, 16 * n * self.line + 64 * (column + j)) for j, n in places]
            self._block(rows, k.at(a["panel"], 1024 * column), places, at, span)

    def _block(
        self,
        rows: list[Value],
        panel: Value,
        places: list[tuple[int, int]],
        at: list[Value],
        span: tuple[Value, Value],
    ) -> None:
        """places: column and tile of rows of each of up to four tiles of sums."""
        k, line, width = self.k, self.k.number(self.line), self.k.number(64)
        stride = self.k.arguments["stride"]
        for tile, address in enumerate(at):
            load = partial(self._do, "tileloadd64", tile, address, line)
            k.either(k.number(0).less(span[0]), load, partial(self._do, "tilezero", tile))
        with k.loop(*span) as step:
            for n, row in enumerate(rows):
                self._do("tileloadd64", 4 + n, k.at(row, step * 64), stride)
            for tile, (j, n) in enumerate(places):
                if n == 0:
                    self._do("tileloadd64", 6 + j, k.at(panel, step * (16 * self.line) + 1024 * j), width)
                self._do("tdpbf16ps", tile, 4 + n, 6 + j)
        for tile, address in enumerate(at):
            self._do("tilestored64", tile, address, line)

    def _do(self, name: str, *operands: int | Value) -> None:
        tiles = [o if isinstance(o, Value) else Value(self.k, ll.Constant(BYTE, o)) for o in operands]
        self.k.intrinsic(f"llvm.x86.{name}", VOID, *tiles)


def configure_tiles(k: Kernel) -> None:
    """Eight tiles of 16 rows of 64 bytes, for this thread, until `tilerelease`."""
    room = k.room(BYTE, 64)
    k.store(k.zeros(BYTE, 64), room, align=1)
    k.store(Value(k, ll.Constant(BYTE, 1)), room, align=1)
    for tile in range(8):
        k.store(Value(k, ll.Constant(HALF, 64)), k.at(room, 16 + 2 * tile), align=2)
        k.store(Value(k, ll.Constant(BYTE, 16)), k.at(room, 48 + tile), align=1)
    k.intrinsic("llvm.x86.ldtilecfg", VOID, room)
