"""The float64 reference of many sequences, step by step together."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle import Bundle


class References:
    """`Reference` for many sequences side by side, in float64: h, c [L, B, H]."""

    def __init__(self, bundle: Bundle, batch: int) -> None:
        self.arch = bundle.spec.architecture
        self.columns = list(bundle.spec.output_columns or ())
        self.w = {name: tensor.double() for name, tensor in bundle.weights.items()}
        self.h = torch.zeros(self.arch.num_layers, batch, self.arch.hidden_size, dtype=torch.float64)
        self.c = torch.zeros_like(self.h)

    def step(self, prepared: NDArray[np.generic]) -> NDArray[np.float64]:
        """prepared [B, I] or [B]; the next step's prediction [B, outputs]."""
        arch, w, given = self.arch, self.w, torch.from_numpy(prepared)
        x = w["embedding.weight"][given] if arch.task == "text" else given
        for k in range(arch.num_layers):
            a = x @ w[f"lstm.weight_ih_l{k}"].T + self.h[k] @ w[f"lstm.weight_hh_l{k}"].T
            i, f, g, o = (a + w[f"lstm.bias_l{k}"]).chunk(4, 1)
            self.c[k] = f.sigmoid() * self.c[k] + i.sigmoid() * g.tanh()
            x = self.h[k] = o.sigmoid() * self.c[k].tanh()
        n = arch.output_size
        weight, bias = w["head.weight"], w["head.bias"]
        if arch.rank:  # the first lead's mixture of the head's rows
            first = w["head.basis"][0]
            weight = (first[:, None, None] * weight.view(arch.rank, n, -1)).sum(0)
            bias = first @ bias.view(arch.rank, n)
        y = x @ weight[:n].T + bias[:n]
        if arch.task == "text":
            y = y.log_softmax(1)
        elif arch.residual:
            y = y + given[:, self.columns]
        return np.asarray(y.numpy())
