"""Everything that computes: the one file of the engine, with the arena, that holds tensors.

This is where speed comes in: another runner keeps `run` and its contract and changes what is inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.lstm import cell
from model.network import Network, Scaler
from service.engine.arena import Arena
from service.engine.jobs import Prepared


@dataclass(slots=True)
class Batch:
    """One tick's work, by position. Longest chunk first, so that the rows still running are a prefix."""

    source: list[int]  # arena row each state is read from
    target: list[int]  # arena row it is written to; may be the source
    inputs: list[Prepared]  # [t, I] or [t] each
    heads: list[int] = field(default_factory=list)  # positions that want the whole head after their last step
    traced: bool = False  # a batch of one whose gates are wanted


Outputs = Sequence[NDArray[np.floating]] | NDArray[np.floating]


@dataclass(slots=True)
class Outcome:
    """What a tick computed. `outputs`: [t, O] for each position, in user units, float64 (series), or
    log-probabilities, float32 (text); views of one array, or that array [B, 1, O] itself. `heads`: by
    position, normalised [leads, outputs]; `quantiles` of them [levels, leads, outputs], if the model has any.
    `trace`: i, f, g, o, c, h [t, layers, 6, hidden]."""

    outputs: Outputs
    heads: dict[int, NDArray[np.float32]]
    trace: NDArray[np.float32] | None = None
    quantiles: dict[int, NDArray[np.float32]] = field(default_factory=dict)


class Runner:
    """Steps batches of sessions in float32 on a CPU or a CUDA device."""

    def __init__(self, network: Network, arena: Arena) -> None:
        self.arena, self.device = arena, arena.device
        self.network = network.to(self.device).eval()
        self.arch = network.spec.architecture
        self.scaler = Scaler(network.spec) if self.arch.task == "series" else None
        self.biases = [bias.detach() for _, _, bias in self._layers()]
        weight, bias = network.head.first_lead()  # the other leads are computed when asked for
        self.head_weight = weight.t().contiguous().detach()
        self.head_bias = bias.detach()

    @cached_property
    def _products(self) -> list[tuple[Tensor, Tensor]]:
        """Each layer's matrix [I + H, 4H] for rows [x | h], contiguous, and bias [4H], gate order i, f, g, o.
        Made when first needed: other runners have packings of their own."""
        joined = [torch.cat((w_ih, w_hh), 1).t().contiguous().detach() for w_ih, w_hh, _ in self._layers()]
        return list(zip(joined, self.biases, strict=True))

    def _layers(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [self.network.lstm.layer(k) for k in range(self.arch.num_layers)]

    def warm(self, max_batch: int) -> None:
        """Runs every power of two up to `max_batch` once, on padding: no request meets a cold kernel."""
        for batch in self._blanks(max_batch):
            batch.heads = [0]
            self._compute(batch)

    def _blanks(self, max_batch: int) -> Iterator[Batch]:
        """Batches of single steps from padding to padding, of every power of two."""
        shape = (1, self.arch.input_size) if self.scaler else (1,)
        x = np.zeros(shape, np.float32 if self.scaler else np.int64)
        for power in range(max_batch.bit_length()):
            pad = [self.arena.padding] * 2**power
            yield Batch(source=pad, target=pad, inputs=[x] * len(pad))

    @torch.inference_mode()
    def run(self, batch: Batch) -> Outcome:
        """Reads the source rows, runs every chunk, writes the target rows; other rows are untouched.

        Raises whatever torch raises; target rows are then undefined, source rows that are not targets intact.
        """
        if batch.traced:
            return self._run_traced(batch)
        outcome, h, c = self._compute(batch)
        self.arena.scatter(batch.target, h, c)
        return outcome

    @torch.inference_mode()
    def tops(self, batch: Batch) -> Tensor:
        """As `run`, for a head of the caller's own: the top layer's h after every step, [t, B, H] float32 on
        the device, whatever the weights are kept in. Rows behind a chunk's end are undefined.
        """
        tops, _, h, c = self._advance(batch)
        self.arena.scatter(batch.target, h, c)
        return tops

    def _advance(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The top layer's h [t, B, H], the inputs side by side [t, B, ...], and h and c [L, B, H] after."""
        h, c = self.arena.gather(batch.source)  # [L, B, H] copies: an error leaves the arena as it was
        lengths = [len(x) for x in batch.inputs]
        x = self._stack(batch.inputs, lengths)  # [t, B, I] or [t, B]
        tops = self._single(x[0], h, c)[None] if lengths[0] == 1 else self._ragged(x, h, c, lengths)
        return tops, x, h, c

    @torch.inference_mode()
    def _compute(self, batch: Batch) -> tuple[Outcome, Tensor, Tensor]:
        tops, x, h, c = self._advance(batch)
        lengths = [len(chunk) for chunk in batch.inputs]
        if lengths[0] == 1:
            flat, prepared = tops[0], x[0]
        else:
            index = torch.tensor([s * len(lengths) + b for b, t in enumerate(lengths) for s in range(t)])
            index = index.to(self.device)
            flat = tops.flatten(0, 1).index_select(0, index)
            prepared = x.flatten(0, 1).index_select(0, index)
        outputs = self._outputs(flat, prepared)  # [sum of t, O]
        ends = np.cumsum(lengths).tolist()
        parts = [outputs[end - t : end] for end, t in zip(ends, lengths, strict=True)]
        outcome = Outcome(parts, {})
        if batch.heads:
            last = torch.tensor([ends[b] - 1 for b in batch.heads], device=self.device)
            self._add_heads(outcome, batch, flat.index_select(0, last), prepared.index_select(0, last))
        return outcome, h, c

    def _add_heads(self, outcome: Outcome, batch: Batch, top: Tensor, prepared: Tensor) -> None:
        """The whole head after the last step of the positions that want it: of their top layer's h [n, H]
        and inputs [n, I] or [n]."""
        y = self.network.predict(top, prepared)
        outcome.heads = dict(zip(batch.heads, y.cpu().numpy(), strict=True))
        if self.network.spread is not None:
            levels = self.network.quantiles(top, y)
            outcome.quantiles = dict(zip(batch.heads, levels.cpu().numpy(), strict=True))
        for b, head in outcome.heads.items():
            # Another product of the same numbers differs in the last digit, and a reply would contradict its
            # own forecast
            outcome.outputs[b][-1] = head[0] if self.scaler is None else self.scaler.denormalise(head[0])

    def _stack(self, inputs: Sequence[Prepared], lengths: list[int]) -> Tensor:
        """Chunks side by side, [longest, B, ...]; what lies behind a chunk's end is never read."""
        first = inputs[0]
        if lengths[0] == 1:
            stacked = np.concatenate(inputs)[None]
        else:
            stacked = np.zeros((lengths[0], len(inputs), *first.shape[1:]), first.dtype)
            for b, x in enumerate(inputs):
                stacked[: len(x), b] = x
        return torch.from_numpy(stacked).to(self.device)

    def _single(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """One timestep of B sessions. x [B, I] or [B]; h, c [L, B, H] are replaced in place.

        Returns the top layer's h [B, H]: a row of the state given, so read it before the next step.
        """
        layer_in = self.network.embed(x)
        for k, (weight, bias) in enumerate(self._products):
            gates = torch.addmm(bias, torch.cat((layer_in, h[k]), 1), weight)  # [B, 4H]: i, f, g, o
            i, f, g, o = gates.chunk(4, 1)
            c_k, h_k = c[k], h[k]
            c_k.mul_(f.sigmoid_()).addcmul_(i.sigmoid_(), g.tanh_())
            torch.tanh(c_k, out=h_k).mul_(o.sigmoid_())
            layer_in = h_k
        return layer_in

    def _ragged(self, x: Tensor, h: Tensor, c: Tensor, lengths: list[int]) -> Tensor:
        """Chunks of falling length. Returns the top layer's h [t, B, H]; rows behind an end are undefined."""
        tops = torch.empty(lengths[0], len(lengths), self.arch.hidden_size, device=self.device)
        running = len(lengths)
        for step in range(lengths[0]):
            while lengths[running - 1] <= step:
                running -= 1
            tops[step, :running] = self._single(x[step, :running], h[:, :running], c[:, :running])
        return tops

    def _outputs(self, top: Tensor, prepared: Tensor) -> NDArray[np.floating]:
        """The next step's prediction for rows of the top layer's h [N, H], in user units, on the host."""
        y = torch.addmm(self.head_bias, top, self.head_weight)
        if self.scaler is None:
            return np.asarray(y.log_softmax(-1).cpu().numpy())
        columns = self.network.residual_columns
        if columns is not None:
            y += prepared.index_select(1, columns)
        return self.scaler.denormalise(y.cpu().numpy())

    def _run_traced(self, batch: Batch) -> Outcome:
        """One session by the written-out cell, its gates kept at every step."""
        (x,) = (torch.from_numpy(a).to(self.device) for a in batch.inputs)
        h, c = self.arena.gather(batch.source)
        tops, steps = [], []
        for row in x:
            layer_in = self.network.embed(row[None])
            seen = []
            for k, layer in enumerate(self._layers()):
                h[k], c[k], gates = cell(layer_in, h[k], c[k], *layer)
                layer_in = h[k]
                seen.append(torch.cat((gates[:, 0], c[k], h[k])))
            tops.append(layer_in.clone())
            steps.append(torch.stack(seen))
        top = torch.cat(tops)
        self.arena.scatter(batch.target, h, c)
        outcome = Outcome([self._outputs(top, x)], {}, torch.stack(steps).cpu().numpy())
        if batch.heads:
            self._add_heads(outcome, batch, top[-1:], x[-1:])
        return outcome
