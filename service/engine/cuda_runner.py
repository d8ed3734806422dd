"""The runner for CUDA: a tick of single steps is one copy down, one graph, one copy up.

A kernel of a small batch takes less time than its launch. So the whole step of a batch of n sessions is
recorded as a CUDA graph at the start, for some n, and replayed: gather, every layer, head, scatter. A batch
between two sizes is padded to the next one; the padding repeats the last session, and so writes what that
session writes.

Longer chunks go layer by layer. The input product of all steps of all chunks is one product; what is left,
the steps through time, is a graph of one step that counts for itself on the device which step it is.

Heads, gates asked for, and batches beyond the buffers go the way of the plain runner, with the same weights.

No GPU has run this file yet. Every line of it but the recording of graphs, the pinned memory and the two CUDA
operators in `arithmetic` runs on a CPU as well, and there it is asserted against the reference; docs/gpu.md
says how to run the rest.

All work is queued on the current stream, as the arena's own copies are: it needs no order beyond that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network import Network
from service.engine.arena import Arena
from service.engine.arithmetic import DTYPES, cell, kept, packed, product, token_table
from service.engine.graphs import Graphs, batch_sizes
from service.engine.jobs import Prepared
from service.engine.rings import Ring, Stage, views
from service.engine.runner import Batch, Outcome, Runner

CHUNK_ROWS = 2048  # most sessions and steps of one ragged tick together; four times the engine's own limit
STAGES = 2  # ticks under way


@dataclass(slots=True)
class Ticket:
    """A tick under way, or (`outcome`) one that was run at once."""

    lengths: list[int]
    stage: Stage | None = None
    order: NDArray[np.int64] | None = (
        None  # of a ragged tick: where the rows of each chunk lie, chunk by chunk
    )
    outcome: Outcome | None = None


class CudaRunner(Runner):
    """Steps batches of at most `max_batch` sessions; weights in `precision`, all else in float32.

    On another device the graphs' bodies are called as they are. Not thread-safe, as no runner is.
    """

    def __init__(
        self,
        network: Network,
        arena: Arena,
        max_batch: int,
        precision: str = "fp32",
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self.precision, self.max_batch, self.chunk_rows = precision, max_batch, chunk_rows
        self._kept: list[tuple[Tensor, Tensor, Tensor]] | None = None
        super().__init__(network, arena)
        self.sizes = batch_sizes(max_batch)
        embedding = self.network.embedding
        self._table = None if embedding is None else token_table(embedding.weight, self._layers()[0])
        self._packed = packed(self._layers(), DTYPES[precision], tokens=embedding is not None)
        self._buffers()
        self._graphs = Graphs(self.device)
        self._ticks: dict[int, Callable[[], None]] = {n: partial(self._tick, n) for n in self.sizes}
        self._steps: dict[tuple[int, int], Callable[[], None]] = {
            (k, n): partial(self._step, k, n)
            for k in range(self.arch.num_layers)
            for n in self.sizes
            if n <= self._widest_chunks
        }

    def _layers(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """As the precision keeps them, so that the plain runner's ways compute with the same weights."""
        if self._kept is None:
            p = self.precision
            self._kept = [(kept(w_ih, p), kept(w_hh, p), b.detach()) for w_ih, w_hh, b in super()._layers()]
        return self._kept

    def _buffers(self) -> None:
        """Everything a graph reads and writes: it keeps their addresses, so they are made once."""
        H, L, rows = self.arch.hidden_size, self.arch.num_layers, self.chunk_rows
        self._widest_chunks = max((n for n in self.sizes if n <= rows), default=0)
        self._width = 0 if self.scaler is None else self.arch.input_size
        each = 4 * self._width or 8
        ragged = 8 * (rows + 2) + 24 * self._widest_chunks + each * rows
        in_bytes = max((16 + each) * self.sizes[-1], ragged) + 7 & ~7
        out_shape = (max(self.sizes[-1], rows), self.arch.output_size)
        self._ring = Ring(STAGES, in_bytes, out_shape, self.device)
        widest = max(len(weight) for weight in self._packed)
        # chunks: rows of every step, one step behind the other; a step writes a whole size behind its end
        room = rows + self._widest_chunks
        with self.device:
            self._inputs = torch.zeros(in_bytes, dtype=torch.uint8)
            self._out = torch.zeros(out_shape)
            self._joined = torch.zeros(L, self.sizes[-1], widest, dtype=DTYPES[self.precision])
            self._past_h, self._past_c = torch.zeros(room, H), torch.zeros(room, H)
            self._gates = torch.zeros(room, 4 * H)
            self._lanes = torch.arange(self._widest_chunks)
            self._count, self._count_from = torch.tensor([0, 1]), torch.tensor([0, 1])
        self._starts = self._inputs[: 8 * (rows + 2)].view(torch.int64)

    # Graphs

    @torch.inference_mode()
    def warm(self, max_batch: int) -> None:
        """Records the graphs of every size up to `max_batch`. Recording runs nothing, but each body is run
        once before, on padding."""
        most = min(max_batch, self.max_batch)
        super().warm(most)
        for n in reversed(self.sizes[: bisect_left(self.sizes, most) + 1]):  # the largest brings the memory
            self._inputs.zero_()
            views(self._inputs, 2 * n, n, self._width)[0].fill_(self.arena.padding)
            self._ticks[n] = self._graphs.record(partial(self._tick, n))
            for k in range(self.arch.num_layers):
                if (k, n) in self._steps:
                    self._inputs.zero_()
                    self._count.copy_(self._count_from)
                    self._steps[k, n] = self._graphs.record(partial(self._step, k, n))
        for pool in (self.arena.h, self.arena.c):
            pool[:, self.arena.padding].zero_()

    def _tick(self, n: int) -> None:
        """One timestep of n sessions, from `_inputs` (sources, targets, x) to the arena and `_out`."""
        H = self.arch.hidden_size
        rows, x, _ = views(self._inputs, 2 * n, n, self._width)
        source, target = rows[:n], rows[n:]
        # all rows are read before one is written: a target may be a source
        h, c = self.arena.h.index_select(1, source), self.arena.c.index_select(1, source)
        joined = self._joined[:, :n]
        joined[:, :, :H].copy_(h)
        layer_in = x
        for k, weight in enumerate(self._packed):
            if k or self._table is None:
                joined[k, :, H : H + layer_in.shape[1]].copy_(layer_in)
                addend = self.biases[k].expand(n, -1)
            else:
                addend = self._table.index_select(0, x)
            layer_in, c_k = cell(product(joined[k, :, : len(weight)], weight), addend, c[k])
            self.arena.h[k].index_copy_(0, target, layer_in)
            self.arena.c[k].index_copy_(0, target, c_k)
        self._out[:n].copy_(self._head(layer_in, x))

    def _step(self, k: int, n: int) -> None:
        """The next timestep of layer k for the first n chunks. `_count` holds s and s + 1, and goes on.

        Step s reads the rows from `_starts[s]` on and writes those from `_starts[s + 1]` on. Fewer than n may
        still run: what the others write lies where a later step will write, or behind the last.
        """
        rows = self._starts.index_select(0, self._count)[:, None] + self._lanes[:n]  # [2, n]
        before, now = rows[0], rows[1]
        h, c = self._past_h.index_select(0, before), self._past_c.index_select(0, before)
        weight = self._packed[k][: self.arch.hidden_size]
        h, c = cell(product(h.to(weight.dtype), weight), self._gates.index_select(0, now), c)
        self._past_h.index_copy_(0, now, h)
        self._past_c.index_copy_(0, now, c)
        self._count.add_(1)

    def _head(self, top: Tensor, x: Tensor) -> Tensor:
        """The next step's prediction for the top layer's h [N, H]: normalised, or log-probabilities."""
        y = torch.addmm(self.head_bias, top, self.head_weight)
        if self.scaler is None:
            return y.log_softmax(-1)
        columns = self.network.residual_columns
        return y if columns is None else y + x.index_select(1, columns)

    # A tick

    def run(self, batch: Batch) -> Outcome:
        return self.collect(self.submit(batch))

    @torch.inference_mode()
    def submit(self, batch: Batch) -> Ticket:
        """Queues a tick; a caller may prepare and submit the next before it collects this one.

        Raises IndexError for a token that is none and ValueError for rows of another width, before anything
        is queued: on the device such a row would end the process.
        """
        x = self._checked(batch.inputs)
        lengths = [len(chunk) for chunk in batch.inputs]
        room = self.chunk_rows - len(x)  # of a ragged tick: the states before it need rows too
        most = self.max_batch if lengths[0] == 1 else min(room, self._widest_chunks)
        if batch.heads or batch.traced or len(lengths) > most:
            return Ticket(lengths, outcome=super().run(batch))
        stage = self._ring.free()
        try:
            if lengths[0] == 1:
                self._submit_singles(stage, batch, x)
                return Ticket(lengths, stage)
            return Ticket(lengths, stage, self._submit_chunks(stage, batch, x, lengths))
        except Exception:
            if (
                self.device.type == "cuda"
            ):  # what was queued still reads the stage that the next tick will fill
                torch.cuda.current_stream(self.device).synchronize()
            raise

    @torch.inference_mode()
    def collect(self, ticket: Ticket) -> Outcome:
        """Waits for a tick. Once for each ticket."""
        if ticket.outcome is not None:
            return ticket.outcome
        if ticket.stage is None:
            raise RuntimeError("the tick was collected before")
        stage, ticket.stage = ticket.stage, None
        outputs: NDArray[np.floating] = stage.read(sum(ticket.lengths))
        if ticket.order is not None:
            outputs = outputs[ticket.order]
        if self.scaler is not None:
            outputs = self.scaler.denormalise(outputs)
        if ticket.order is None:
            return Outcome(outputs[:, None], {})
        ends = np.cumsum(ticket.lengths).tolist()
        return Outcome([outputs[end - t : end] for end, t in zip(ends, ticket.lengths, strict=True)], {})

    def _checked(self, inputs: Sequence[Prepared]) -> Prepared:
        """All rows [sum of t, I], or all tokens [sum of t]."""
        x: Prepared = np.concatenate(inputs)  # type: ignore[assignment]  # all rows, or all tokens
        if x.shape[1:] != ((self._width,) if self._width else ()):
            raise ValueError(f"a step is {self._width or 'one token'} wide, not {list(x.shape[1:])}")
        if self.scaler is None and (x.min() < 0 or x.max() >= self.arch.output_size):
            raise IndexError(f"tokens are 0 to {self.arch.output_size - 1}, not {x.min()} to {x.max()}")
        return x

    def _submit_singles(self, stage: Stage, batch: Batch, x: Prepared) -> None:
        B = len(x)
        n = self.sizes[bisect_left(self.sizes, B)]
        rows, steps, end = views(stage.inputs, 2 * n, n, self._width)
        for at, values in zip(rows.numpy().reshape(2, n), (batch.source, batch.target), strict=True):
            at[:B] = values
            at[B:] = values[-1]
        filled = steps.numpy()
        filled[:B] = x
        filled[B:] = x[-1]
        stage.send(self._inputs, end)
        self._ticks[n]()
        stage.send_back(self._out, B)

    def _submit_chunks(
        self, stage: Stage, batch: Batch, x: Prepared, lengths: list[int]
    ) -> NDArray[np.int64]:
        """Returns where each chunk's rows lie among the rows of the steps, chunk by chunk [sum of t]."""
        B, N, T = len(lengths), len(x), lengths[0]
        running = np.searchsorted(-np.array(lengths), -np.arange(T), side="left")  # chunks longer than s
        starts = np.cumsum([0, B, *running])[: T + 1]  # of the states before the chunks, and of each step
        order = np.concatenate([starts[1 : t + 1] + b for b, t in enumerate(lengths)]) - B
        ends = starts[lengths] + np.arange(B)
        rows, steps, end = views(stage.inputs, T + 1 + 3 * B, N, self._width)
        rows.numpy()[:] = np.concatenate((starts, batch.source, batch.target, ends))
        steps.numpy()[order] = x
        stage.send(self._inputs, end)
        on_device, prepared, _ = views(self._inputs, T + 1 + 3 * B, N, self._width)
        source, target, last = on_device[T + 1 :].view(3, B)
        self._out[:N].copy_(self._head(self._run_chunks(source, target, last, prepared, running), prepared))
        stage.send_back(self._out, N)
        return order

    def _run_chunks(
        self, source: Tensor, target: Tensor, last: Tensor, x: Tensor, running: NDArray[np.int64]
    ) -> Tensor:
        """Layer by layer. source, target: rows of the arena; last: each chunk's last row here; all [B].

        x [N, I] or [N], step by step. Returns the top layer's h [N, H] in the same order; the next tick
        reuses it.
        """
        H, B, N = self.arch.hidden_size, len(source), len(x)
        steps = [self.sizes[bisect_left(self.sizes, int(n))] for n in running]
        h, c = self.arena.h.index_select(1, source), self.arena.c.index_select(1, source)
        tops: Tensor = self._past_h[B : B + N]
        for k, weight in enumerate(self._packed):
            if k == 0 and self._table is not None:
                self._gates[B : B + N].copy_(self._table.index_select(0, x))
            else:
                w_ih = weight[H:]
                layer_in = (tops if k else x).to(weight.dtype)
                layer_in = torch.nn.functional.pad(layer_in, (0, len(w_ih) - layer_in.shape[1]))
                torch.add(product(layer_in, w_ih), self.biases[k], out=self._gates[B : B + N])
            self._past_h[:B].copy_(h[k])
            self._past_c[:B].copy_(c[k])
            self._count.copy_(self._count_from)
            for n in steps:
                self._steps[k, n]()
            self.arena.h[k].index_copy_(0, target, self._past_h.index_select(0, last))
            self.arena.c[k].index_copy_(0, target, self._past_c.index_select(0, last))
        return tops
