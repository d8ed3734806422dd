"""The arithmetic that the rivals share: one step of the LSTM for a batch of states, by torch in float32.

For few rows a hand-written cell, for more of them nn.LSTM: each where it is the faster. (nn.LSTM packs its
weights anew at every call, which is most of its time for one row.)
"""

from __future__ import annotations

import os

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FEW = 8  # rows, up to which the hand-written cell is the faster


class Lstm:
    """x [B, inputs], h and c [layers, B, hidden] -> y [B, outputs], h, c."""

    def __init__(self, few: int = FEW) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        w = load_file(os.environ["PEER_WEIGHTS"])
        self.few = few
        self.layers = sum(name.startswith("lstm.weight_ih") for name in w)
        gates, self.inputs = w["lstm.weight_ih_l0"].shape
        self.hidden = gates // 4
        self.network = nn.LSTM(self.inputs, self.hidden, self.layers)
        self.head = nn.Linear(self.hidden, w["head.bias"].shape[0])
        state = {name.removeprefix("lstm."): tensor for name, tensor in w.items() if name.startswith("lstm.")}
        for k in range(self.layers):
            state[f"bias_ih_l{k}"] = state.pop(f"bias_l{k}")
            state[f"bias_hh_l{k}"] = torch.zeros(gates)
        self.network.load_state_dict(state)
        self.head.load_state_dict({"weight": w["head.weight"], "bias": w["head.bias"]})
        self.cell = [
            (torch.cat([w[f"lstm.weight_ih_l{k}"], w[f"lstm.weight_hh_l{k}"]], 1).t(), w[f"lstm.bias_l{k}"])
            for k in range(self.layers)
        ]

    def zeros(self, rows: int = 1) -> Tensor:
        return torch.zeros(self.layers, rows, self.hidden)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if len(x) > self.few:
            out, (h, c) = self.network(x[None], (h, c))
            return self.head(out[0]), h, c
        hs, cs = [], []
        for k, (weight, bias) in enumerate(self.cell):
            i, f, g, o = torch.addmm(bias, torch.cat([x, h[k]], 1), weight).chunk(4, 1)
            cs.append(f.sigmoid() * c[k] + i.sigmoid() * g.tanh())
            hs.append(x := o.sigmoid() * cs[-1].tanh())
        return self.head(x), torch.stack(hs), torch.stack(cs)
