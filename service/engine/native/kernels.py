"""The two native functions that a runner calls: a step of a batch, and a chunk of steps of one.

Both take one address, of an array of addresses and counts (`STEP`, `CHUNK`), in which a runner changes what
changes from call to call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import llvmlite.ir as ll

from service.engine.native.host import Library, Processor
from service.engine.native.ir import INT, POINTER, Kernel, Value
from service.engine.native.layer import Maker, Matrix, Start
from service.engine.native.packing import dense_width, filled
from service.engine.native.product import Kind, Unit
from service.engine.native.team import add_team

#: The names of a call's numbers and addresses, in their order; each is 8 bytes.
COMMON = ("scratch", "state_stride", "layers", "head_start", "head_weights", "head_out")
#: all: rows of the batch. begin, end: those of which this thread computes the head's output. first, last:
#: the blocks of units of which it computes the states. meeting: a zero, where it meets the others; null
#: for a step alone. x [B, inputs], or start_rows int64 [B], the tokens. source, target: rows of the arena,
#: int64 [B]. head_out: float32 [B, panels, columns, lanes].
STEP = (
    *COMMON,
    "all",
    "begin",
    "end",
    "first",
    "last",
    "meeting",
    "members",
    "x",
    "start_rows",
    "source",
    "target",
)
#: The rows of all steps lie behind each other, a step's rows being those of the sessions that still run, a
#: prefix. counts, firsts: int64 [steps], how many and where they begin. rows: of all steps. pre: room for
#: float32 [rows, blocks, 4, lanes]; trail, tops: for [rows, H] each; the last layer's h are in the latter.
CHUNK = (
    *COMMON,
    "steps",
    "counts",
    "firsts",
    "rows",
    "x",
    "start_rows",
    "source",
    "target",
    "pre",
    "trail",
    "tops",
)
#: And of each layer, in the array `layers`.
OF_LAYER = ("start", "weights", "scales", "h", "c")


@dataclass(frozen=True, slots=True)
class Shapes:
    """A network as the kernels see it. inputs: 0 for one that reads tokens: layer 0 starts from a table."""

    inputs: int
    hidden: int
    layers: int
    outputs: int

    def widths(self, layer: int) -> tuple[int, ...]:
        """Terms of the operands of a layer's product: the layer below, if it is part of it, and h."""
        below = self.hidden if layer else self.inputs
        return (below, self.hidden) if below else (self.hidden,)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled for one network, one kind and one processor. Calls are made without Python's lock."""

    step: Callable[[int], None]
    chunk: Callable[[int], None]
    worker: Callable[[int], None]
    together: Callable[[int], None]
    library: Library


@lru_cache(maxsize=64)
def kernels(shapes: Shapes, kind: Kind, target: Processor) -> Kernels:
    """Takes a second or so; the same ones are not made twice in a process."""
    writer = _Writer(shapes, kind, target)
    add_team(writer.module, writer.step(), writer.chunk())
    library = Library(writer.module, target)
    step, chunk, worker, together = (
        library.function(name, ctypes.c_void_p) for name in ("step", "chunk", "worker", "together")
    )
    return Kernels(step, chunk, worker, together, library)


class _Frame:
    """The array that a call is given."""

    def __init__(self, module: ll.Module, name: str, entries: tuple[str, ...]) -> None:
        self.k = Kernel(module, name, {"call": POINTER})
        self._entries = entries

    def __getitem__(self, name: str) -> Value:
        return self.k.load_address(self.k.arguments["call"], self._entries.index(name))

    def number(self, name: str) -> Value:
        return self.k.load_int(self.k.arguments["call"], self._entries.index(name))

    def layer(self, number: int) -> dict[str, Value]:
        layers = self["layers"]
        return {
            name: self.k.load_address(layers, len(OF_LAYER) * number + n) for n, name in enumerate(OF_LAYER)
        }


class _Writer:
    def __init__(self, shapes: Shapes, kind: Kind, target: Processor) -> None:
        self.shapes, self.kind, self.target = shapes, kind, target
        self.module = ll.Module("cellstate")
        self.make = Maker(self.module, kind, target)
        panels, columns = dense_width(shapes.outputs, target.lanes)
        head = Matrix(panels, columns, shapes.hidden, 0, shapes.hidden)
        # The head's product is small, and what the user sees: always float32
        floats = Maker(self.module, Kind("fp32", Unit.VECTOR), target)
        self.head = {
            indexed: floats.dense(f"head{indexed:d}", head, shapes.hidden, indexed)
            for indexed in (True, False)
        }
        # All layers but the first are alike
        self.kinds = range(min(2, shapes.layers))

    def _matrix(self, layer: int, *, below: bool, own: bool) -> Matrix:
        """A layer's packed matrix, of which the product with the layer below, with h, or both are taken."""
        widths = [filled(width, self.kind.precision) for width in self.shapes.widths(layer)]
        terms, own_terms = sum(widths), widths[-1]
        first = 0 if below else terms - own_terms
        taken = (terms - own_terms if below else 0) + (own_terms if own else 0)
        return Matrix(-(-self.shapes.hidden // self.target.lanes), 4, terms, first, taken)

    def step(self) -> ll.Function:
        s = self.shapes
        functions = []
        for layer in self.kinds:
            below = s.widths(layer)[0] if len(s.widths(layer)) == 2 else 0
            matrix = self._matrix(layer, below=True, own=True)
            functions.append(
                self.make.layer(
                    f"step{layer}", matrix, below, s.hidden, Start.BIAS if below else Start.TABLE, layer > 0
                )
            )
        frame = _Frame(self.module, "step", STEP)
        k, null = frame.k, Value(frame.k, ll.Constant(POINTER, None))
        stride = frame.number("state_stride")
        team = [frame.number("first"), frame.number("last"), frame["meeting"], frame.number("members")]
        head_panels = [k.number(0), k.number(dense_width(s.outputs, self.target.lanes)[0])]
        source, target, tokens, x = frame["source"], frame["target"], frame["start_rows"], frame["x"]
        for n in range(s.layers):
            of = frame.layer(n)
            states = [of["h"], of["c"], stride, source, target, null]
            k.call(
                functions[min(n, 1)],
                k.number(0),
                frame.number("all"),
                frame["scratch"],
                of["start"],
                tokens,
                x,
                target,
                *states,
                *team,
                k.number(2 * n),
                of["weights"],
                of["scales"],
            )
            x = of["h"]
        k.call(
            self.head[True],
            frame.number("begin"),
            frame.number("end"),
            frame["scratch"],
            frame["head_start"],
            x,
            target,
            stride,
            frame["head_out"],
            *head_panels,
            frame["head_weights"],
            null,
        )
        return k.end()

    def chunk(self) -> ll.Function:
        s = self.shapes
        lines = -(-s.hidden // self.target.lanes) * 16 * self.target.lanes  # bytes of a row's start values
        inputs, steps = {}, {}
        for layer in self.kinds:
            if len(s.widths(layer)) == 2:
                below = self._matrix(layer, below=True, own=False)
                inputs[layer] = self.make.dense(f"inputs{layer}", below, s.widths(layer)[0], x_indexed=False)
            own = self._matrix(layer, below=False, own=True)
            steps[layer] = self.make.layer(
                f"chunk{layer}", own, 0, s.hidden, Start.ROW if layer in inputs else Start.TABLE
            )
        frame = _Frame(self.module, "chunk", CHUNK)
        k, null = frame.k, Value(frame.k, ll.Constant(POINTER, None))
        stride = frame.number("state_stride")
        blocks = [k.number(0), k.number(-(-s.hidden // self.target.lanes))]
        head_panels = [k.number(0), k.number(dense_width(s.outputs, self.target.lanes)[0])]
        scratch, counts, firsts = frame["scratch"], frame["counts"], frame["firsts"]
        all_rows = [k.number(0), frame.number("rows"), scratch]
        x, pre, trails = frame["x"], frame["pre"], [frame["trail"], frame["tops"]]
        for n in range(s.layers):
            of, alike = frame.layer(n), min(n, 1)
            trail = trails[(s.layers - n) % 2]  # so that the last layer's are in `tops`
            if alike in inputs:
                width = k.number(4 * s.widths(n)[0])
                k.call(
                    inputs[alike],
                    *all_rows,
                    of["start"],
                    x,
                    null,
                    width,
                    pre,
                    *blocks,
                    of["weights"],
                    of["scales"],
                )
            with k.loop(0, frame.number("steps")) as t:
                first = k.load_int(firsts, t)
                tokens = k.at(frame["start_rows"], first, 8)
                start = k.at(pre, first, lines) if alike in inputs else of["start"]
                source = k.select(k.number(0).less(t), frame["target"], frame["source"])
                states = [of["h"], of["c"], stride, source, frame["target"], k.at(trail, first, 4 * s.hidden)]
                span = [k.number(0), k.load_int(counts, t), scratch]
                k.call(
                    steps[alike],
                    *span,
                    start,
                    tokens,
                    null,
                    null,
                    *states,
                    *blocks,
                    null,
                    k.number(1),
                    k.number(0),
                    of["weights"],
                    of["scales"],
                )
            x = trail
        k.call(
            self.head[False],
            *all_rows,
            frame["head_start"],
            x,
            null,
            k.number(4 * s.hidden),
            frame["head_out"],
            *head_panels,
            frame["head_weights"],
            null,
        )
        return k.end()


__all__ = ["CHUNK", "INT", "OF_LAYER", "STEP", "Kernels", "Shapes", "kernels"]
