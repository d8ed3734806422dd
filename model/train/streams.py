"""Training data as contiguous streams: window after window, so that the state can be carried across them.

An epoch cuts the training part into `streams` pieces of equal length, starting at an offset that changes from
epoch to epoch; stream b's window k+1 goes on where its window k ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.errors import DataError
from model.network import Network
from model.streaming import origins, stream, targets
from model.train.options import Options

VALIDATION_WARM = 1024  # rows before the validation part that its stream starts with while training
VALIDATION_STREAMS = 16  # pieces the validation text is cut into while training


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": nn.functional.mse_loss,
    "mae": nn.functional.l1_loss,
    "huber": nn.functional.huber_loss,
}


class TrainingData(ABC):
    """The data of one task: training windows, their loss, and the loss of the validation part."""

    def __init__(self, rows: int, reach: int, options: Options) -> None:
        """rows: of the training part; reach: rows a prediction looks ahead."""
        self.options = options
        usable = rows - reach
        self.slack = min(options.window, usable // 10)
        self.length = (usable - self.slack) // options.streams
        if self.length < 1:
            raise DataError(f"{rows} rows of training can't be cut into {options.streams} streams")
        self.windows = max(1, round(self.length / options.window))
        self.usable = usable

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each window in turn: x [T, B, I] or [T, B], y [T, B, leads, O] or [T, B].
        Before them, if `past` asks for it, rows that only move the state: their targets are empty."""
        B, L = self.options.streams, self.length
        offset = int(torch.randint(0, self.usable - B * L + 1, (1,), generator=generator))
        starts = offset + L * torch.arange(B)
        if self.options.past:
            # Before the first row there is none: it stands for them
            rows = starts + torch.arange(-self.options.past, 0)[:, None]
            yield self.inputs(rows.clamp(min=0)), torch.empty(0)
        bounds = [k * L // self.windows for k in range(self.windows + 1)]
        for first, last in pairwise(bounds):
            yield self.window(starts + torch.arange(first, last)[:, None])

    @abstractmethod
    def inputs(self, rows: Tensor) -> Tensor:
        """Inputs of rows [T, B] of the training part."""

    @abstractmethod
    def window(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of rows [T, B] of the training part."""

    @abstractmethod
    def loss(self, y: Tensor, target: Tensor) -> Tensor:
        """The mean loss of predictions y [T, B, leads, outputs]."""

    @abstractmethod
    def validate(self, network: Network) -> float:
        """The loss over the validation part, with the state carried."""


class SeriesData(TrainingData):
    """x [N, I] and outputs [N, O] normalised, of all rows; parts as ranges of rows."""

    def __init__(
        self,
        x: Tensor,
        outputs: Tensor,
        columns: tuple[int | None, ...],
        leads: int,
        train: range,
        validation: range,
        options: Options,
        measured: int | None = None,
    ) -> None:
        """columns: for each output the input of the same name, if any: a shift moves both. measured: how many
        columns of x, from the first, are moved and blurred, by default all; what tells the time is not."""
        super().__init__(len(train), leads, options)
        self.measured = x.shape[1] if measured is None else measured
        self.x, self.outputs, self.leads = x, outputs, leads
        self.columns, self.train, self.validation = columns, train, validation

    @property
    def of_inputs(self) -> list[int]:
        """For each output the input of the same name; those without one are left out."""
        return [column for column in self.columns if column is not None]

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Moves each signal of each stream to a level and a scale of its own, for the whole epoch: what
        repeats at any level is then learnt as such, and a drift after the training part hurts less.
        """
        o, inputs = self.options, self.measured
        others = self.x.shape[1] - inputs
        drawn = torch.randn(2, o.streams, inputs, generator=generator)
        level, factor = drawn[0] * o.shift, (drawn[1] * o.scale).exp()  # [B, I]
        # An output that is no input moves as nothing does: 0 and 1 stand in the column beyond the measured.
        columns = [inputs if c is None else c for c in self.columns]
        y_level = nn.functional.pad(level, (0, 1))[:, None, columns].to(self.x)
        y_factor = nn.functional.pad(factor, (0, 1), value=1.0)[:, None, columns].to(self.x)
        level = nn.functional.pad(level, (0, others)).to(self.x)
        factor = nn.functional.pad(factor, (0, others), value=1.0).to(self.x)
        for x, y in super().epoch(generator):
            x = x * factor + level
            if o.noise:
                noise = torch.randn(*x.shape[:2], inputs, generator=generator)
                x = x + nn.functional.pad(noise, (0, others)).to(x) * o.noise
            yield x, y * y_factor + y_level if y.numel() else y

    def inputs(self, rows: Tensor) -> Tensor:
        return self.x[(rows + self.train.start).to(self.x.device)]

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs(rows), targets(self.outputs, rows + self.train.start, self.leads)

    def loss(self, y: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.options.loss](y.float(), target)

    def validate(self, network: Network) -> float:
        rows = origins(self.validation, self.leads)
        total, count = 0.0, 0
        for s in stream(network, self.x, rows, warm=max(VALIDATION_WARM, self.options.past)):
            valid = s.valid.to(s.y.device)
            target = targets(self.outputs, s.rows[s.valid], self.leads)
            total += self.loss(s.y[valid], target).item() * len(target)
            count += len(target)
        return total / count


class TextData(TrainingData):
    """tokens [N] of the whole text; parts as ranges of its characters."""

    def __init__(self, tokens: Tensor, train: range, validation: range, options: Options) -> None:
        super().__init__(len(train), 1, options)
        self.tokens, self.train, self.validation = tokens, train, validation

    def inputs(self, rows: Tensor) -> Tensor:
        return self.tokens[(rows + self.train.start).to(self.tokens.device)]

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs(rows), self.inputs(rows + 1)

    def loss(self, y: Tensor, target: Tensor) -> Tensor:
        return nn.functional.nll_loss(y.float().reshape(-1, y.shape[-1]), target.reshape(-1))

    def validate(self, network: Network) -> float:
        total, count = 0.0, 0
        rows = origins(self.validation, 1)
        for s in stream(network, self.tokens, rows, streams=VALIDATION_STREAMS, warm=VALIDATION_WARM // 4):
            valid = s.valid.to(s.y.device)
            target = self.tokens[(s.rows[s.valid] + 1).to(self.tokens.device)]
            total += nn.functional.nll_loss(s.y[valid][:, 0].float(), target, reduction="sum").item()
            count += len(target)
        return total / count
