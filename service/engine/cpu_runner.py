"""The runner for a CPU: native kernels over the arena's own memory (`native/`), made for the network and for
the processor when the runner is made.

Every layer's two matrices are packed once, in the precision asked for; state rows are read and written where
they lie. Around a kernel's call is a copy of the inputs and of the rows' numbers into arrays that stay.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network import Network
from service.engine.arena import Arena
from service.engine.chunks import Block, Chunk
from service.engine.jobs import Prepared
from service.engine.native.host import Processor, processor
from service.engine.native.kernels import CHUNK, STEP, kernels
from service.engine.native.layer import scratch_bytes
from service.engine.native.network import pack_network, rounded, shapes_of
from service.engine.native.packing import Array, aligned
from service.engine.native.product import kind_for
from service.engine.native.team import CHUNK_JOB, STEP_JOB, Team
from service.engine.runner import Batch, Outcome, Outputs, Runner

#: Rows of all steps that a chunk takes at a time: what is between its layers stays in the second-level cache.
BLOCK = 256
#: Sessions from which on a step is shared between threads. Weights that are larger than a core's second-level
#: cache are shared at any number: half of them may fit.
SHARED = 16
CACHE = 2 << 20
#: Sessions of each thread from which on it steps its own ones with all weights, which so many rows pay for;
#: below, it computes its own units of every session, and the threads meet at each layer.
BY_ROWS = 64


class Frame:
    """The array of a native function's arguments, by name: counts, and addresses of arrays."""

    def __init__(self, names: Sequence[str]) -> None:
        self._at = {name: n for n, name in enumerate(names)}
        self._array = np.zeros(len(names), np.int64)
        self._kept: dict[str, NDArray[np.generic]] = {}  # an address alone would not keep it alive
        self._values = memoryview(self._array)  # type: ignore[arg-type]  # writes to it are quick
        self.address = self._array.ctypes.data

    def point(self, name: str, array: NDArray[np.generic], offset: int = 0) -> None:
        """Sets an address: so many elements into an array, which is kept until the next one."""
        self._kept[name] = array
        self._values[self._at[name]] = array.ctypes.data + offset * array.itemsize

    def count(self, name: str, number: int) -> None:
        self._values[self._at[name]] = number


class Hand:
    """What one thread works with: frames for a step alone, its part of one, and its chunk; its own room."""

    def __init__(self, runner: CpuRunner, rows: int) -> None:
        arch, packed = runner.arch, runner.packed
        H = arch.hidden_size
        self.alone, self.step, self.chunk = Frame(STEP), Frame(STEP), Frame(CHUNK)
        scratch = aligned((scratch_bytes(rows, max(arch.input_size, H) + H),), np.uint8)
        for frame in (self.alone, self.step, self.chunk):
            frame.point("scratch", scratch)
            frame.point("layers", packed.layers)
            frame.count("state_stride", runner.arena.h.stride(1) * runner.arena.h.element_size())
            frame.point("head_start", packed.head_start)
            frame.point("head_weights", packed.head_weights)
        self.chunk.point("pre", aligned((rows, runner.start_width)))
        self.chunk.point("trail", aligned((rows, H)))
        self._tops = aligned((rows, H))

    def begin(self, task: Task) -> None:
        """Takes up a chunk, before its first block."""
        self.chunk.point("source", task.source)
        self.chunk.point("target", task.target)

    def set_block(self, task: Task, block: Block) -> None:
        frame, chunk, row = self.chunk, task.chunk, block.row
        if block.first:
            frame.point("source", task.target)  # from the second block on
        frame.count("steps", block.last - block.first)
        frame.count("rows", block.rows)
        frame.point("counts", chunk.counts, block.first)
        frame.point("firsts", chunk.firsts[block.first : block.last] - row)
        frame.point("start_rows", task.prepared, row)  # tokens; else nobody looks there
        frame.point("x", task.prepared, row * task.prepared[0].size)
        frame.point("head_out", task.out, row * task.out.shape[1])
        if task.tops is None:
            frame.point("tops", self._tops)
        else:
            frame.point("tops", task.tops, row * task.tops.shape[1])


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk of some of a batch's positions. out: the head's sums of every row; tops: the last layer's h of
    every row, if they are wanted."""

    positions: range
    chunk: Chunk
    prepared: Prepared
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    out: Array
    tops: Array | None


class CpuRunner(Runner):
    """At most `max_batch` sessions a batch. `target`: another processor than this machine's, for tests."""

    def __init__(
        self,
        network: Network,
        arena: Arena,
        max_batch: int,
        precision: str = "fp32",
        threads: int = 1,
        target: Processor | None = None,
    ) -> None:
        target = target or processor()
        kind = kind_for(precision, target)
        super().__init__(rounded(network, precision), arena)
        self.packed = pack_network(network, arena, kind, target.lanes)
        self.start_width = -(-self.arch.hidden_size // target.lanes) * 4 * target.lanes
        native = kernels(shapes_of(network), kind, target)
        self._step_alone, self._chunk_alone = native.step, native.chunk
        self._team = Team(threads, native.worker, native.together)
        self._columns = _columns(network)
        self._top = arena.h.numpy()[-1]  # [slots + 1, H]
        self._tokens = network.embedding is not None
        self._rows = max(max_batch, BLOCK)
        self._hands = [Hand(self, self._rows) for _ in range(self._team.size)]
        # One array for every thread: each has its own rows of it
        self._x = aligned((max_batch, 1 if self._tokens else self.arch.input_size))
        self._index = [aligned((max_batch,), np.int64) for _ in range(3)]  # tokens, source, target
        self._out = aligned((max_batch, self.packed.width))
        self._shared = 1 if self.packed.bytes > CACHE else SHARED
        self._calls: list[int] = []  # frames of the newest step
        self.kernel_seconds = 0.0  # in native calls so far
        self._meeting = aligned((1,), np.int64)
        blocks, size = -(-self.arch.hidden_size // target.lanes), len(self._hands)
        for n, hand in enumerate(self._hands):
            for frame in (hand.alone, hand.step):
                frame.point("x", self._x)
                frame.point("head_out", self._out)
                for name, array in zip(("start_rows", "source", "target"), self._index, strict=True):
                    frame.point(name, array)
            hand.alone.count("last", blocks)
            hand.step.count("first", n * blocks // size)
            hand.step.count("last", (n + 1) * blocks // size)
            hand.step.point("meeting", self._meeting)
            hand.step.count("members", size)

    def warm(self, max_batch: int) -> None:
        """As the plain runner: a step of every size, and a chunk. They write to the padding row, which is
        zeroed again."""
        for batch in self._blanks(max_batch):
            batch.heads = [0]
            self.run(batch)
            double = [np.concatenate((x, x)) for x in batch.inputs]
            self.run(Batch(batch.source, batch.target, double))  # type: ignore[arg-type]
        self.arena.states[self.arena.padding] = 0

    def run(self, batch: Batch) -> Outcome:
        if batch.traced:
            return super().run(batch)
        if len(batch.inputs[0]) == 1:
            prepared = batch.inputs[0] if len(batch.inputs) == 1 else _join(batch.inputs)
            self._run_step(batch, prepared)
            outputs = self._finished(self._out[: len(batch.inputs)], prepared)
            parts: Outputs = outputs[:, None]
        else:
            parts = self._run_chunk(batch)
        outcome = Outcome(parts, {})
        if batch.heads:
            self._heads(batch, outcome)
        return outcome

    def tops(self, batch: Batch) -> Tensor:
        tops = np.zeros((len(batch.inputs[0]), len(batch.inputs), self.arch.hidden_size), np.float32)
        self._run_chunk(batch, tops)
        return torch.from_numpy(tops)

    def _run_step(self, batch: Batch, prepared: Prepared) -> None:
        """One step of every session. The head's outputs are left in `_out`, for the next step to reuse."""
        B = len(prepared)
        tokens, source, target = self._index
        self._check(prepared)
        if self._tokens:
            tokens[:B] = prepared
        else:
            self._x[:B] = prepared
        source[:B] = batch.source
        target[:B] = batch.target
        if len(self._hands) == 1 or self._shared > B:
            self._calls = [self._rows_of(self._hands[0], range(B))]
        elif BY_ROWS * len(self._hands) <= B and _apart(batch):
            size = len(self._hands)
            self._calls = [
                self._rows_of(hand, range(n * B // size, (n + 1) * B // size))
                for n, hand in enumerate(self._hands)
            ]
        else:
            for n, hand in enumerate(self._hands):
                hand.step.count("all", B)
                hand.step.count("begin", n * B // len(self._hands))
                hand.step.count("end", (n + 1) * B // len(self._hands))
            self._calls = [hand.step.address for hand in self._hands]
        self.again()

    def _rows_of(self, hand: Hand, rows: range) -> int:
        """The frame in which a thread steps these rows of the batch alone; its address."""
        frame, first = hand.alone, rows.start
        if len(self._hands) > 1:
            frame.point("x", self._x, first * self._x.shape[1])
            frame.point("head_out", self._out, first * self._out.shape[1])
            for name, array in zip(("start_rows", "source", "target"), self._index, strict=True):
                frame.point(name, array, first)
        frame.count("all", len(rows))
        frame.count("end", len(rows))
        return frame.address

    def again(self) -> None:
        """The newest step's kernels once more, with what they were given: for benchmarks."""
        began = time.perf_counter()
        if len(self._calls) == 1:
            self._step_alone(self._calls[0])
        else:
            self._meeting[0] = 0
            self._team.run(STEP_JOB, self._calls)
        self.kernel_seconds += time.perf_counter() - began

    def _run_chunk(self, batch: Batch, tops: Array | None = None) -> list[NDArray[np.floating]]:
        """All steps of every session, a block of steps at a time; every thread its own sessions. tops: gets
        the last layer's h, [t, B, H]. Returns the outputs of each position."""
        B = len(batch.inputs)
        if len(self._out) < B:
            raise ValueError(f"{B} sessions are more than the {len(self._out)} of a batch")
        number = len(self._hands) if 2 * len(self._hands) <= B and _apart(batch) else 1
        # each thread's sessions are of falling length, too
        tasks = [self._task(batch, range(n, B, number), tops is not None) for n in range(number)]
        for hand, task in zip(self._hands, tasks, strict=False):
            hand.begin(task)
        blocks = [task.chunk.blocks(self._rows) for task in tasks]
        for together in itertools.zip_longest(*blocks):
            frames = []
            for block, hand, task in zip(together, self._hands, tasks, strict=False):
                if block is not None:
                    hand.set_block(task, block)
                    frames.append(hand.chunk.address)
            began = time.perf_counter()
            if len(frames) == 1:
                self._chunk_alone(frames[0])
            else:
                self._team.run(CHUNK_JOB, frames)
            self.kernel_seconds += time.perf_counter() - began
        parts: list[NDArray[np.floating]] = [np.empty(0)] * B
        for task in tasks:
            outputs = self._finished(task.out, task.prepared)
            for b, index in zip(task.positions, task.chunk.indices, strict=True):
                parts[b] = outputs[index]
                if tops is not None and task.tops is not None:
                    tops[: len(parts[b]), b] = task.tops[index]
        return parts

    def _task(self, batch: Batch, positions: range, tops: bool) -> Task:
        inputs = [batch.inputs[b] for b in positions]
        chunk = Chunk(inputs)
        prepared = chunk.flat(inputs)
        self._check(prepared)
        source, target = (np.array([rows[b] for b in positions]) for rows in (batch.source, batch.target))
        out = np.empty((chunk.rows, self.packed.width), np.float32)
        room = np.empty((chunk.rows, self.arch.hidden_size), np.float32) if tops else None
        return Task(positions, chunk, prepared, source, target, out, room)

    def _finished(self, y: Array, prepared: Prepared) -> NDArray[np.floating]:
        """The head's sums [N, width] as outputs [N, O]: in user units, float64, or log-probabilities,
        float32. Not a view."""
        y = y[:, : self.arch.output_size]
        if self.scaler is None:
            y = y - y.max(1, keepdims=True)
            return np.asarray(y - np.log(np.exp(y).sum(1, keepdims=True)))
        if self._columns is not None:
            y = y + prepared[:, self._columns]
        return self.scaler.denormalise(y)

    def _heads(self, batch: Batch, outcome: Outcome) -> None:
        """The whole head after the last step of the positions that want it."""
        top = torch.from_numpy(self._top[[batch.target[b] for b in batch.heads]])
        last = torch.from_numpy(np.stack([batch.inputs[b][-1] for b in batch.heads]))
        with torch.inference_mode():
            self._add_heads(outcome, batch, top, last)

    def _check(self, prepared: Prepared) -> None:
        """Raises before anything is written: a kernel takes addresses on trust."""
        if not self._tokens:
            if prepared.shape[1:] != (self.arch.input_size,) or prepared.dtype != np.float32:
                wrong = f"{prepared.dtype} {list(prepared.shape)}"
                raise ValueError(f"steps are float32 [., {self.arch.input_size}], not {wrong}")
        elif prepared.ndim != 1 or prepared.dtype != np.int64:
            raise ValueError(f"tokens are int64 [.], not {prepared.dtype} {list(prepared.shape)}")
        elif prepared.min() < 0 or prepared.max() >= self.arch.output_size:
            raise IndexError(f"a token is not in the vocabulary of {self.arch.output_size}")


def _columns(network: Network) -> NDArray[np.int64] | slice | None:
    """Of the inputs, those that the outputs begin from; as a slice if it is one, which numpy reads faster."""
    if network.residual_columns is None:
        return None
    columns: NDArray[np.int64] = network.residual_columns.numpy()
    first = int(columns[0])
    return slice(first, first + len(columns)) if (np.diff(columns) == 1).all() else columns


def _apart(batch: Batch) -> bool:
    """Whether no session reads a row that another one writes: then nobody has to wait for a reader."""
    written = set(batch.target)
    return written.isdisjoint(batch.source) or all(
        s == t or s not in written for s, t in zip(batch.source, batch.target, strict=True)
    )


def _join(inputs: Sequence[Prepared]) -> Prepared:
    """Single steps [1, I] or [1] as [B, I] or [B]; four times as fast as numpy's concatenate."""
    first = inputs[0]
    flat = np.frombuffer(b"".join(inputs), first.dtype)  # type: ignore[arg-type]  # arrays are buffers
    return flat.reshape(len(inputs), *first.shape[1:])  # type: ignore[return-value]
