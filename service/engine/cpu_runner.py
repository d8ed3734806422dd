"""The runner for a CPU: single steps, which are most of a server's work, with little around the products.

A call of a torch operator costs more than the arithmetic of a small batch. So state rows, gates and outputs
are numpy views of preallocated memory, and torch does the matrix products alone. Longer chunks, gates asked
for and whole heads go the way of the plain runner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network import Network
from service.engine.arena import Arena
from service.engine.jobs import Prepared
from service.engine.runner import Batch, Outcome, Runner

Array = NDArray[np.float32]
Rows = NDArray[np.int_] | slice


class Buffers:
    """Memory of one step of B sessions, as numpy sees it and as torch does. Views, made once for each B."""

    def __init__(self, joined: list[Array], gates: Array, cells: Array, tops: Array, heads: Array) -> None:
        H = cells.shape[1]
        self.joined = joined  # [B, I + H] a layer: x beside h
        self.gates, self.cells, self.tops, self.heads = gates, cells, tops, heads
        self.squashed = gates[:, : 3 * H]
        self.i, self.f, self.o, self.g = (gates[:, n * H : (n + 1) * H] for n in range(4))  # as `_pack`ed
        self.joined_tensors = [torch.from_numpy(a) for a in joined]
        self.gates_tensor, self.tops_tensor = torch.from_numpy(gates), torch.from_numpy(tops)
        self.heads_tensor = torch.from_numpy(heads)


class CpuRunner(Runner):
    """Float32 on one CPU thread or several. At most `max_batch` sessions a step.

    No tensor here asks for a gradient, so a step needs no inference mode, whose coming and going costs 10 us.
    """

    def __init__(self, network: Network, arena: Arena, max_batch: int) -> None:
        super().__init__(network, arena)
        H, inputs = self.arch.hidden_size, self.arch.input_size
        self._h, self._c = list(arena.h.numpy()), list(arena.c.numpy())  # [slots + 1, H] a layer, no copies
        self._packed = [(_pack(weight, H), _pack(bias, H)) for weight, bias in self._products()]
        widths = [inputs, *[H] * (self.arch.num_layers - 1)]
        self._joined = [np.zeros((max_batch, width + H), np.float32) for width in widths]
        self._wide = [np.zeros((max_batch, n), np.float32) for n in (4 * H, H, H, self.arch.output_size)]
        self._buffers: dict[int, Buffers] = {}
        columns = network.residual_columns
        self._columns = None if columns is None else columns.numpy()
        self._embedding = None if network.embedding is None else network.embedding.weight.detach().numpy()

    def warm(self, max_batch: int) -> None:
        """As the plain runner, and single steps too. They write to the padding row, which is zeroed again."""
        super().warm(max_batch)
        for batch in self._blanks(max_batch):
            self.run(batch)
        for rows in (*self._h, *self._c):
            rows[self.arena.padding] = 0

    def run(self, batch: Batch) -> Outcome:
        if len(batch.inputs[0]) > 1 or batch.heads or batch.traced:
            return super().run(batch)
        B = len(batch.inputs)
        buffers = self._buffers.get(B)
        if buffers is None:
            joined = [a[:B] for a in self._joined]
            buffers = self._buffers[B] = Buffers(joined, *(a[:B] for a in self._wide))
        if B == 1:
            prepared = batch.inputs[0]
            source, target = batch.source[0], batch.target[0]
            self._step(buffers, prepared, slice(source, source + 1), slice(target, target + 1))
            return Outcome([self._next_step(buffers, prepared)], {})
        prepared = _join(batch.inputs)  # [B, I] or [B]
        self._step(buffers, prepared, np.array(batch.source), np.array(batch.target))
        outputs = self._next_step(buffers, prepared)
        return Outcome([outputs[b : b + 1] for b in range(B)], {})

    def _step(self, at: Buffers, prepared: Prepared, source: Rows, target: Rows) -> None:
        """One timestep of B sessions, from their source rows to their target rows; the top layer's h is
        left in `at.tops` [B, H], which the next step reuses."""
        H, h, c = self.arch.hidden_size, at.tops, at.cells
        layer_in = prepared if self._embedding is None else self._embedding[prepared]
        for k, (weight, bias) in enumerate(self._packed):
            joined = at.joined[k]
            joined[:, :-H] = layer_in
            joined[:, -H:] = self._h[k][source]
            torch.addmm(bias, at.joined_tensors[k], weight, out=at.gates_tensor)
            np.tanh(at.gates, at.gates)
            np.multiply(at.squashed, 0.5, at.squashed)
            np.add(at.squashed, 0.5, at.squashed)
            np.multiply(self._c[k][source], at.f, c)
            np.multiply(at.i, at.g, at.i)
            np.add(c, at.i, c)
            self._c[k][target] = c
            np.tanh(c, h)
            np.multiply(h, at.o, h)
            self._h[k][target] = layer_in = h

    def _next_step(self, at: Buffers, prepared: Prepared) -> NDArray[np.floating]:
        """The head's first lead: [B, O] in user units, float64, or log-probabilities, float32. Not a view."""
        y = at.heads
        torch.addmm(self.head_bias, at.tops_tensor, self.head_weight, out=at.heads_tensor)
        if self.scaler is None:
            y = y - y.max(1, keepdims=True)
            return np.asarray(y - np.log(np.exp(y).sum(1, keepdims=True)))
        if self._columns is not None:
            y += prepared[:, self._columns]
        return self.scaler.denormalise(y)


def _pack(weight: Tensor, H: int) -> Tensor:
    """Columns i, f, g, o to i, f, o, g, and the first three halved: sigmoid(a) = (1 + tanh(a / 2)) / 2 makes
    one call of tanh of the four. Halving a float is exact."""
    i, f, g, o = weight.split(H, dim=-1)  # type: ignore[no-untyped-call]
    return torch.cat((0.5 * i, 0.5 * f, 0.5 * o, g), -1).contiguous()


def _join(inputs: Sequence[Prepared]) -> Prepared:
    joined: Prepared = np.concatenate(inputs)  # type: ignore[assignment]  # all rows, or all tokens
    return joined
