"""One step of one LSTM layer, and one dense product: gather rows, multiply, finish what comes, scatter."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ll

from service.engine.native.gates import cell
from service.engine.native.host import Processor
from service.engine.native.ir import INT, POINTER, Kernel, Value, floats
from service.engine.native.packing import filled
from service.engine.native.product import ROWS, TILE_ROWS, Kind, Unit, add_product, by_groups
from service.engine.native.rows import Layout, Operand, gather, scatter
from service.engine.native.team import meet

#: Takes a panel's sums of some rows: panel, rows, sums [row][column].
Finish = Callable[[Value, list[Value], list[list[Value]]], None]


class Start(enum.Enum):
    """What a layer's sums are added to."""

    BIAS = "bias"  # the same for every row
    TABLE = "table"  # a row of a table, by its number: what a token adds, with the bias
    ROW = "row"  # one for every row of the batch: its product with the layer below, with the bias


LAYER = {
    "begin": INT,  # the rows begin ... end of the batch
    "end": INT,
    "scratch": POINTER,  # `scratch_bytes`
    "start": POINTER,  # what the sums are added to, float32 [?, blocks, 4, lanes]
    "start_rows": POINTER,  # and which of them each row takes, int64 [B]
    "x": POINTER,  # float32 [?, inputs]
    "x_rows": POINTER,
    "h": POINTER,  # float32 [?, H], where the state is read, and where the new one is written
    "c": POINTER,
    "state_stride": INT,  # bytes from one row of it to the next, and from one of an indexed x
    "source": POINTER,
    "target": POINTER,
    "trail": POINTER,  # the new h a second time, float32 [B, H]; may be null
    "first": INT,  # the blocks first ... last are computed: other threads do the others
    "last": INT,
    "meeting": POINTER,  # where they meet before and after what they write (`team.meet`); null: nobody else
    "members": INT,
    "order": INT,  # meetings before this call
    "weights": POINTER,  # as `packing` packs them
    "scales": POINTER,
}
DENSE = {
    "begin": INT,
    "end": INT,
    "scratch": POINTER,
    "start": POINTER,  # float32 [panels, columns, lanes]
    "x": POINTER,  # float32 [?, terms]
    "x_rows": POINTER,
    "x_stride": INT,
    "out": POINTER,  # float32 [B, panels, columns, lanes]
    "first": INT,  # panels
    "last": INT,
    "weights": POINTER,
    "scales": POINTER,
}
#: Bytes at the beginning of the scratch for the sums of one panel.
SUMS = (max(ROWS, TILE_ROWS) + 16) * 4 * 64


def scratch_bytes(rows: int, terms: int) -> int:
    """Memory that a kernel needs for so many rows of so many terms, hidden units being no more. What is in it
    does not matter."""
    return SUMS + 3 * (rows + 16) * Layout(terms + 64).stride


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed matrix, and which terms of its panels are taken: `taken` from `first` on."""

    panels: int
    columns: int
    terms: int
    first: int
    taken: int


@dataclass(frozen=True, slots=True)
class Maker:
    """Writes kernels of one kind for one processor into a module."""

    module: ll.Module
    kind: Kind
    target: Processor

    def _multiply(
        self, k: Kernel, operands: list[Operand], matrix: Matrix, rows: Value, finish: Finish
    ) -> None:
        """Every panel's sums of the rows begin ... end, some rows at a time, handed to `finish`."""
        a, lanes, together = k.arguments, self.target.lanes, self.kind.together
        layout, line = Layout(matrix.taken, self.kind.half), 4 * lanes * matrix.columns
        together_rows = TILE_ROWS if self.kind.unit is Unit.TILE else ROWS
        product = add_product(self.module, matrix.columns, self.kind, self.target)
        first = 0
        for operand in operands:
            width = filled(operand.terms, self.kind.precision)
            gather(k, operand, (a["begin"], a["end"]), rows, layout, lanes, first, width)
            first += width
        with k.loop(a["first"], a["last"]) as panel:
            weights = k.at(a["weights"], panel * (matrix.terms // together) + matrix.first // together, line)
            with k.loop(a["begin"], a["end"], together_rows) as begin:
                count = k.least(k.number(together_rows), a["end"] - begin)
                at = k.at(rows, begin - a["begin"], layout.stride)
                words = k.number(matrix.taken // together)
                k.call(product, at, k.number(layout.stride), count, weights, words, a["scratch"])
                self._finish(k, matrix.columns, panel, (begin, count), finish)

    def _finish(
        self, k: Kernel, columns: int, panel: Value, span: tuple[Value, Value], finish: Finish
    ) -> None:
        a, size, vector = k.arguments, 4 * self.target.lanes, floats(self.target.lanes)
        begin, count = span

        def rows(row: Value, number: int) -> None:
            at = [k.at(a["scratch"], row + n, size * columns) for n in range(number)]
            sums = [[k.load(k.at(one, size * j), vector) for j in range(columns)] for one in at]
            if self.kind.precision == "int8":
                scales = k.at(a["scales"], panel, size * columns)
                by = [k.load(k.at(scales, size * j), vector) for j in range(columns)]
                sums = [[s * scale for s, scale in zip(one, by, strict=True)] for one in sums]
            finish(panel, [begin + row + n for n in range(number)], sums)

        by_groups(k, count, 2, rows)  # two, so that one's arithmetic fills the other's waiting

    def layer(
        self, name: str, matrix: Matrix, inputs: int, hidden: int, start: Start, x_indexed: bool = False
    ) -> ll.Function:
        """One step of a layer. inputs: terms of its input product, 0 if that is in the start values.
        x_indexed: whether x has an index, or the batch's rows are taken in order."""
        lanes, H, blocks = self.target.lanes, hidden, matrix.panels
        k = Kernel(self.module, name, LAYER)
        a, layout = k.arguments, Layout(blocks * lanes)
        span, line = (a["begin"], a["end"]), 16 * lanes
        count, stride = a["end"] - a["begin"], a["state_stride"]
        cells = k.at(a["scratch"], SUMS)
        hiddens = k.at(cells, count, layout.stride)
        rows = k.at(hiddens, count, layout.stride)

        def finish(block: Value, of: list[Value], sums: list[list[Value]]) -> None:
            gates = []
            for row, values in zip(of, sums, strict=True):
                number = k.load_int(a["start_rows"], row) if start is Start.TABLE else row
                panel = block if start is Start.BIAS else number * blocks + block
                at = k.at(a["start"], panel, line)
                gates.append(
                    [v + k.load(k.at(at, 4 * lanes * j), floats(lanes)) for j, v in enumerate(values)]
                )
            offsets = [(row - a["begin"]) * layout.stride + block * (4 * lanes) for row in of]
            c = k.join([k.load(k.at(cells, offset), floats(lanes)) for offset in offsets])
            i, f, g, o = (k.join([values[j] for values in gates]) for j in range(4))
            h, c = cell(k, (i, f, g, o), c, exact=not self.target.estimates)
            for offset, h_row, c_row in zip(offsets, k.split(h, len(of)), k.split(c, len(of)), strict=True):
                k.store(c_row, k.at(cells, offset))
                k.store(h_row, k.at(hiddens, offset))

        gather(k, Operand(a["c"], a["source"], H, stride), span, cells, layout, lanes, 0, blocks * lanes)
        operands = [Operand(a["h"], a["source"], H, stride)]
        if inputs:
            x = (a["x_rows"], inputs, stride) if x_indexed else (None, inputs)
            operands.insert(0, Operand(a["x"], *x))
        self._multiply(k, operands, matrix, rows, finish)
        blocks_done = (a["first"], a["last"])
        with k.when(k.given(a["meeting"])):
            meet(k, a["meeting"], a["members"], a["order"])  # a row that is read may be one that is written
        for room, to in ((cells, "c"), (hiddens, "h")):
            out = Operand(a[to], a["target"], H, stride)
            scatter(k, room, out, span, layout, lanes, blocks_done)
        with k.when(k.given(a["trail"])):
            scatter(k, hiddens, Operand(a["trail"], None, H), span, layout, lanes, blocks_done)
        with k.when(k.given(a["meeting"])):
            meet(k, a["meeting"], a["members"], a["order"] + 1)  # the next layer reads what all have written
        return k.end()

    def dense(self, name: str, matrix: Matrix, inputs: int, x_indexed: bool) -> ll.Function:
        """Rows of x [?, inputs] times a matrix, plus start values."""
        lanes = self.target.lanes
        k = Kernel(self.module, name, DENSE)
        a, line = k.arguments, 4 * lanes * matrix.columns

        def finish(panel: Value, of: list[Value], sums: list[list[Value]]) -> None:
            start = k.at(a["start"], panel, line)
            for row, values in zip(of, sums, strict=True):
                out = k.at(a["out"], row * matrix.panels + panel, line)
                for j, v in enumerate(values):
                    k.store(v + k.load(k.at(start, 4 * lanes * j), floats(lanes)), k.at(out, 4 * lanes * j))

        index = a["x_rows"] if x_indexed else None
        operand = Operand(a["x"], index, inputs, a["x_stride"])
        self._multiply(k, [operand], matrix, k.at(a["scratch"], SUMS), finish)
        return k.end()
