"""The whole network: embedding or normalised inputs, the stacked LSTM, the head."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import ModelSpec
from model.lstm import StackedLSTM, State


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
        self.head = nn.Linear(arch.hidden_size, arch.leads * arch.output_size)
        columns = spec.output_columns if arch.residual else None
        self.residual_columns: Tensor | None
        self.register_buffer(
            "residual_columns", None if columns is None else torch.tensor(columns), persistent=False
        )

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def embed(self, x: Tensor) -> Tensor:
        """Prepared steps to the LSTM's input: float [..., I] as they are, tokens [...] to [..., I]."""
        return x if self.embedding is None else self.embedding(x)

    def predict(self, top: Tensor, x: Tensor) -> Tensor:
        """The head. top [N, H], the prepared inputs x of the same steps [N, I] or [N].

        Returns, normalised, [N, leads, outputs] (series), or log-probabilities [N, 1, vocabulary] (text).
        """
        arch = self.spec.architecture
        y: Tensor = self.head(top).view(-1, arch.leads, arch.output_size)
        if arch.task == "text":
            return y.log_softmax(-1)
        if self.residual_columns is not None:
            y = y + x.index_select(1, self.residual_columns)[:, None, :]
        return y

    def forward(self, x: Tensor, state: State | None = None, dropout: float = 0.0) -> tuple[Tensor, State]:
        """Whole sequences [T, B, I] or [T, B]: predictions [T, B, leads, outputs] and the state after.

        Dropout, while training, between layers and before the head. Not on the way in: an observation that
        is zeroed is another observation.
        """
        arch = self.spec.architecture
        top, state = self.lstm(self.embed(x), state, dropout)
        top = nn.functional.dropout(top, dropout, self.training)
        T, B = x.shape[:2]
        y = self.predict(top.reshape(T * B, -1), x.reshape(T * B, *x.shape[2:]))
        return y.view(T, B, arch.leads, arch.output_size), state


class Scaler:
    """Between user units and normalised values, in float64 (a large offset would cost float32 its digits)."""

    def __init__(self, spec: ModelSpec) -> None:
        self.input_mean = np.array([s.mean for s in spec.inputs])
        self.input_std = np.array([s.std for s in spec.inputs])
        self.output_mean = np.array([s.mean for s in spec.outputs])
        self.output_std = np.array([s.std for s in spec.outputs])

    def normalise(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inputs [..., I] in their units to normalised values."""
        return np.asarray((inputs - self.input_mean) / self.input_std)

    def denormalise(self, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
        """Normalised outputs [..., O] to their units."""
        units: NDArray[np.float64] = np.multiply(outputs, self.output_std, dtype=np.float64)
        units += self.output_mean
        return units
