"""The whole network: embedding or normalised inputs, the stacked LSTM, the head."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import LEAST_WIDTH, ModelSpec
from model.dropout import NONE, Dropout
from model.lstm import StackedLSTM, State


class Head(nn.Linear):
    """A value of each output for each lead, [N, H] to [N, leads, outputs].

    With a `rank` K the lead l of output o is sum over k of basis[l, k] * (weight[k, o] . h + bias[k, o]): a
    regression of reduced rank (Izenman 1975), 720 leads in the room of K.
    """

    basis: nn.Parameter | None

    def __init__(self, hidden_size: int, leads: int, outputs: int, rank: int = 0) -> None:
        super().__init__(hidden_size, (rank or leads) * outputs)
        self.outputs = outputs
        basis = nn.Parameter(torch.randn(leads, rank) / rank**0.5) if rank else None
        self.register_parameter("basis", basis)

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = super().forward(h).view(len(h), -1, self.outputs)
        return y if self.basis is None else self.basis @ y

    def first_lead(self) -> tuple[Tensor, Tensor]:
        """Weight [outputs, H] and bias [outputs] of the next step alone: what a step returns costs no more
        than that."""
        if self.basis is None:
            return self.weight[: self.outputs], self.bias[: self.outputs]
        weight, bias = self.weight.view(-1, self.outputs, self.in_features), self.bias.view(-1, self.outputs)
        return torch.einsum("k,koh->oh", self.basis[0], weight), self.basis[0] @ bias


class Spread(Head):
    """How far the quantiles are from the prediction: a width for each lead and output that follows the state,
    times an offset for each level, which is calibrated on data the network was not trained on (split
    conformal prediction with normalised residuals: Lei et al. 2018; Romano et al. 2019).
    """

    def __init__(self, hidden_size: int, leads: int, outputs: int, rank: int, levels: int) -> None:
        super().__init__(hidden_size, leads, outputs, rank)
        self.offsets = nn.Parameter(torch.zeros(levels, leads, outputs))
        self.requires_grad_(False)  # fitted, not learnt by gradients

    def width(self, h: Tensor) -> Tensor:
        """[N, H] to [N, leads, outputs], normalised, above 0."""
        width: Tensor = self(h)
        return width.clamp(min=LEAST_WIDTH)


class Network(nn.Module):
    """From prepared steps to the head's output; what is in user units stays outside (`Scaler`).

    A prepared step is a row of normalised inputs [I] (series) or a token (text).
    """

    def __init__(self, spec: ModelSpec, forget_bias: float = 1.0, chrono: int = 0) -> None:
        super().__init__()
        arch = spec.architecture
        self.spec = spec
        self.embedding = nn.Embedding(arch.output_size, arch.input_size) if arch.task == "text" else None
        self.lstm = StackedLSTM(arch.input_size, arch.hidden_size, arch.num_layers, forget_bias, chrono)
        self.head = Head(arch.hidden_size, arch.leads, arch.output_size, arch.rank)
        self.spread = (
            Spread(arch.hidden_size, arch.leads, arch.output_size, arch.spread, len(arch.quantiles))
            if arch.spread
            else None
        )
        self.held_units = 0  # the first units of layer 0, whose weights no training changes
        columns = spec.output_columns if arch.residual else None
        self.residual_columns: Tensor | None
        self.register_buffer(
            "residual_columns", None if columns is None else torch.tensor(columns), persistent=False
        )

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def held_weights(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What training leaves as it is: parameter, rows, and a copy of them."""
        if not self.held_units:
            return []
        units = torch.arange(self.held_units, device=self.device)
        gates = self.spec.architecture.hidden_size * torch.arange(4, device=self.device)[:, None]
        rows = (units + gates).flatten()
        return [(p, rows, p.detach()[rows].clone()) for p in self.lstm.layer(0)]

    def embed(self, x: Tensor) -> Tensor:
        """Prepared steps to the LSTM's input: float [..., I] as they are, tokens [...] to [..., I]."""
        return x if self.embedding is None else self.embedding(x)

    def predict(self, top: Tensor, x: Tensor) -> Tensor:
        """The head. top [N, H], the prepared inputs x of the same steps [N, I] or [N].

        Returns, normalised, [N, leads, outputs] (series), or log-probabilities [N, 1, vocabulary] (text).
        """
        arch = self.spec.architecture
        y: Tensor = self.head(top)
        if arch.task == "text":
            return y.log_softmax(-1)
        if self.residual_columns is not None:
            y = y + x.index_select(1, self.residual_columns)[:, None, :]
        return y

    def quantiles(self, top: Tensor, y: Tensor) -> Tensor:
        """What belongs to the predictions y [N, leads, outputs] of top [N, H]: [N, levels, leads, outputs],
        normalised; no level if the model has no quantiles."""
        if self.spread is None:
            return y.new_empty(len(y), 0, *y.shape[1:])
        return y[:, None] + self.spread.offsets * self.spread.width(top)[:, None]

    def forward(self, x: Tensor, state: State | None = None, dropout: Dropout = NONE) -> tuple[Tensor, State]:
        """Whole sequences [T, B, I] or [T, B]: predictions [T, B, leads, outputs] and the state after.

        Dropout, while training, between layers, before the head, of weights and of symbols. Not of an
        observation's values on the way in: one that is zeroed is another observation.
        """
        inputs = self.embed(x)
        if self.training and self.embedding is not None:
            inputs = dropout.drop_symbols(inputs, x, self.spec.architecture.output_size)
        top, state = self.lstm(inputs, state, dropout)
        if self.training:
            top = dropout.drop_units(top)
        return self._predictions(top, x), state

    def with_quantiles(self, x: Tensor, state: State | None = None) -> tuple[Tensor, Tensor, State]:
        """As `forward`, and the quantiles [T, B, levels, leads, outputs]."""
        top, state = self.lstm(self.embed(x), state)
        y = self._predictions(top, x)
        quantiles = self.quantiles(top.flatten(0, 1), y.flatten(0, 1))
        return y, quantiles.reshape(*x.shape[:2], *quantiles.shape[1:]), state

    def _predictions(self, top: Tensor, x: Tensor) -> Tensor:
        y = self.predict(top.flatten(0, 1), x.flatten(0, 1))
        return y.reshape(*x.shape[:2], *y.shape[1:])


class Scaler:
    """Between user units and normalised values, in float64 (a large offset would cost float32 its digits)."""

    def __init__(self, spec: ModelSpec) -> None:
        self.input_mean = np.array([s.mean for s in spec.measured])
        self.input_std = np.array([s.std for s in spec.measured])
        self.output_mean = np.array([s.mean for s in spec.outputs])
        self.output_std = np.array([s.std for s in spec.outputs])
        self._calendar = spec.calendar

    def normalise(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inputs [..., inputs] in their units to what the network reads [..., I]: normalised values and, with
        a calendar, what it derives of the last input."""
        if self._calendar is None:
            return np.asarray((inputs - self.input_mean) / self.input_std)
        values = (inputs[..., :-1] - self.input_mean) / self.input_std
        return np.concatenate((values, self._calendar.of(inputs[..., -1])), -1)

    def denormalise(self, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
        """Normalised outputs [..., O] to their units."""
        units: NDArray[np.float64] = np.multiply(outputs, self.output_std, dtype=np.float64)
        units += self.output_mean
        return units
