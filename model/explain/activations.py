"""One sequence through an LSTM with everything inside it kept: gates, cell and what is let out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from model.lstm import StackedLSTM, State

#: What `record` keeps of each unit and step, in this order.
QUANTITIES = ("i", "f", "g", "o", "c", "h")
#: The gates that open and close, by their place in QUANTITIES; g is a candidate, not a gate.
GATES = {"i": 0, "f": 1, "o": 3}
#: A gate is taken as closed below and as open above (Karpathy et al. 2015).
CLOSED, OPEN = 0.1, 0.9
CHUNK = 256  # steps a call: bounds the memory, changes no result


@dataclass(frozen=True)
class Observation:
    """What the units did over a run of N steps, after its warm-up.

    steps: N. log_forget [L, H]: mean of ln f over time, float64. closed, opened [3, L, H]: share of the
    time that gate i, f, o of a unit is below CLOSED, above OPEN. cell_std, output_std [L, H]: deviation of
    tanh(c) and h over time. largest [L, H]: largest magnitude of c. correlation [F, L, H]: Pearson's r of
    tanh(c) with each of the features; 0 where one of the two does not vary. kept [6, L, W, H]: QUANTITIES
    over the steps that were asked for. states: h, c [L, 1, H] before each of the rows that were asked for.
    """

    steps: int
    log_forget: Tensor
    closed: Tensor
    opened: Tensor
    cell_std: Tensor
    output_std: Tensor
    largest: Tensor
    correlation: Tensor
    kept: Tensor
    states: tuple[State, ...]


def record(lstm: StackedLSTM, x: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
    """Steps x [T, I] after the state h, c [L, 1, H].

    Returns QUANTITIES [6, L, T, H], gates after their squashing; ln f [L, T, H], from the gate before its
    squashing, so that a gate near 1 keeps its digits; and the state after the steps.
    """
    T, H, L = len(x), lstm.hidden_size, lstm.num_layers
    values = x.new_empty(6, L, T, H)
    before = x.new_empty(T, 4 * H)
    log_forget = x.new_empty(L, T, H)
    h, c = state[0].clone(), state[1].clone()
    for k in range(L):
        weight_ih, weight_hh, bias = lstm.layer(k)
        from_input = torch.addmm(bias, x, weight_ih.T)
        h_k, c_k = h[k, 0], c[k, 0]
        for t in range(T):
            torch.addmv(from_input[t], weight_hh, h_k, out=before[t])
            i, f, g, o = before[t].view(4, H)
            c_k = f.sigmoid() * c_k + i.sigmoid() * g.tanh()
            h_k = o.sigmoid() * c_k.tanh()
            values[4, k, t], values[5, k, t] = c_k, h_k
        split = before.view(T, 4, H)
        values[0, k], values[1, k], values[3, k] = (split[:, n].sigmoid() for n in (0, 1, 3))
        values[2, k] = split[:, 2].tanh()
        log_forget[k] = F.logsigmoid(split[:, 1])
        h[k, 0], c[k, 0] = h_k, c_k
        x = values[5, k]
    return values, log_forget, (h, c)


@torch.no_grad()
def observe(
    lstm: StackedLSTM, x: Tensor, warm: int, keep: range, states_at: Sequence[int], features: Tensor
) -> Observation:
    """Runs x [T, I] from a zero state and measures its rows from `warm` on.

    keep: rows whose values are kept. states_at: rows before which the state is kept, ascending. features
    [T, F]: what the cells are correlated with.
    """
    T = len(x)
    sums = _Sums(lstm.num_layers, lstm.hidden_size, features.shape[1])
    edges = sorted({0, warm, keep.start, keep.stop, T, *states_at, *range(0, T, CHUNK)})
    kept, states = [], []
    state = lstm.zero_state(1)
    for a, b in pairwise(edges):
        if a in states_at:
            states.append(state)
        values, log_forget, state = record(lstm, x[a:b], state)
        if a >= warm:
            sums.add(values, log_forget, features[a:b])
        if keep.start <= a < keep.stop:
            kept.append(values)
    return Observation(
        steps=sums.steps,
        log_forget=sums.log_forget / sums.steps,
        closed=sums.closed / sums.steps,
        opened=sums.opened / sums.steps,
        cell_std=_deviation(sums.tanh, sums.tanh2, sums.steps),
        output_std=_deviation(sums.h, sums.h2, sums.steps),
        largest=sums.largest,
        correlation=sums.correlation(),
        kept=torch.cat(kept, 2),
        states=tuple(states),
    )


class _Sums:
    """Running sums over the steps, [.., L, H] float64: a run of any length takes the same memory."""

    def __init__(self, layers: int, hidden: int, features: int) -> None:
        shape = layers, hidden
        self.steps = 0
        self.log_forget, self.largest, self.h, self.h2, self.tanh, self.tanh2 = torch.zeros(
            6, *shape, dtype=torch.float64
        )
        self.closed, self.opened = torch.zeros(2, len(GATES), *shape, dtype=torch.float64)
        self.feature, self.feature2 = torch.zeros(2, features, dtype=torch.float64)
        self.product = torch.zeros(features, *shape, dtype=torch.float64)

    def add(self, values: Tensor, log_forget: Tensor, features: Tensor) -> None:
        """values [6, L, T, H], log_forget [L, T, H], features [T, F]."""
        c, h = values[4].double(), values[5].double()
        gates = values[list(GATES.values())]
        squashed, features = c.tanh(), features.double()
        self.steps += values.shape[2]
        self.log_forget += log_forget.double().sum(1)
        self.closed += (gates < CLOSED).sum(2)
        self.opened += (gates > OPEN).sum(2)
        self.largest = torch.maximum(self.largest, c.abs().amax(1))
        self.h += h.sum(1)
        self.h2 += h.square().sum(1)
        self.tanh += squashed.sum(1)
        self.tanh2 += squashed.square().sum(1)
        self.feature += features.sum(0)
        self.feature2 += features.square().sum(0)
        self.product += torch.einsum("tf,lth->flh", features, squashed)

    def correlation(self) -> Tensor:
        n = self.steps
        covariance = self.product / n - (self.feature / n)[:, None, None] * (self.tanh / n)
        scale = _deviation(self.feature, self.feature2, n)[:, None, None] * _deviation(
            self.tanh, self.tanh2, n
        )
        # A cell that moves by less than rounding follows nothing.
        return torch.where(scale > 1e-6, covariance / scale.clamp(min=1e-6), 0.0).clamp(-1, 1)


def _deviation(total: Tensor, squares: Tensor, n: int) -> Tensor:
    return (squares / n - (total / n).square()).clamp(min=0).sqrt()
