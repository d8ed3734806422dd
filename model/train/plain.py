"""The plain recurrent network (Elman 1990), to compare the LSTM with: h' = tanh(x W_ih' + h W_hh' + b)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelSpec


class PlainNetwork(nn.Module):
    """Layers and head of the spec's sizes, torch.nn.RNN's first weights. It is trained; it is no bundle."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        arch = spec.architecture
        self.spec = spec
        self.rnn = nn.RNN(arch.input_size, arch.hidden_size, arch.num_layers)
        self.head = nn.Linear(arch.hidden_size, arch.output_size)

    def tops(self, x: Tensor) -> Tensor:
        """x [T, B, I]: the top layer's h at every step [T, B, H], from zeros."""
        top: Tensor = self.rnn(x)[0]
        return top

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whole sequences x [T, B, I]: predictions [T, B, 1, outputs], and the state after them."""
        top, state = self.rnn(x, state)
        return self.head(top)[:, :, None], state
