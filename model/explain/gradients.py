"""How much of a gradient is left after so many steps back: plain RNNs, fresh LSTMs and a trained network.

The state s of a network is all it carries from step to step: h for a plain RNN, h and c of every layer for an
LSTM. For a random direction v of length 1 in the top layer's h at step T,

    G(k) = | d(v . h_T) / d s_{T-k} |

is the norm of the gradient that back-propagation through time brings to the state k steps before. G(0) is 1;
its mean square over v is the squared Frobenius norm of d h_T / d s_{T-k}, divided by H. Whether it vanishes
or explodes is the subject of Hochreiter (1991), Bengio et al. (1994) and Pascanu et al. (2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from model.lstm import StackedLSTM

#: A network's state: tensors [L, B, H] each.
States = tuple[Tensor, ...]
#: One step: x [B, I] and the state to the state after it.
Step = Callable[[Tensor, States], States]

#: The fresh networks: units, inputs, sequences side by side, steps back, the clip, and the seed of it all.
HIDDEN, INPUTS, SEQUENCES, DISTANCE, CLIP, SEED = 64, 8, 32, 300, 1.0, 0
#: Steps before the first one that is measured: a network that has just begun has an untypical state.
WARM = 100
#: Recurrent weights of the plain RNN, as a multiple of torch's: uniform within 1/sqrt(H), a spectral radius
#: of about 0.58.
SMALL, LARGE = 1.0, 4.0
EXPLODING = "plain RNN, large weights"


@dataclass(frozen=True)
class Backward:
    """What one back-propagation finds, by distance k = 0 ... K.

    squared [K + 1, P, L, B]: squared norm of the gradient by each part of the state (LSTM: h, c), layer and
    sequence. by_step [K] and total: norm of what step T - k, k = 0 ... K - 1, adds to the gradient of the
    weights, and of their sum; of the mean over the sequences, as a loss would have it. Zero without weights.
    """

    squared: Tensor
    by_step: Tensor
    total: float

    @property
    def norms(self) -> Tensor:
        """G(k) of each sequence, [K + 1, B]."""
        return self.squared.sum((1, 2)).sqrt()


def forward(step: Step, x: Tensor, state: States) -> list[States]:
    """The states before, between and after the steps x [K, B, I]: K + 1 of them."""
    states = [state]
    with torch.no_grad():
        for row in x:
            states.append(step(row, states[-1]))
    return states


def backward(
    step: Step, x: Tensor, states: Sequence[States], direction: Tensor, weights: Sequence[Tensor] = ()
) -> Backward:
    """Back through the steps x [K, B, I] with the states [K + 1] before and after them.

    direction [B, H]: v of each sequence. Each step is run again for its own derivative, so the memory does
    not grow with K.
    """
    gradient = tuple(torch.zeros_like(part) for part in states[-1])
    gradient[0][-1] = direction
    B = len(direction)
    squared = [_squared(gradient)]
    total = [torch.zeros_like(w) for w in weights]
    by_step = []
    for row, state in zip(reversed(x), reversed(states[:-1]), strict=True):
        inputs = tuple(part.detach().requires_grad_() for part in state)
        with torch.enable_grad():
            outputs = step(row, inputs)
        found = torch.autograd.grad(outputs, (*inputs, *weights), gradient)
        gradient, of_weights = found[: len(inputs)], [w / B for w in found[len(inputs) :]]
        squared.append(_squared(gradient))
        by_step.append(_norm(of_weights))
        total = [a + b for a, b in zip(total, of_weights, strict=True)]
    return Backward(torch.stack(squared), torch.tensor(by_step, dtype=torch.float64), _norm(total))


def of_lstm(lstm: StackedLSTM, x: Tensor, state: States, generator: torch.Generator) -> Backward:
    """G(k) of an LSTM over x [K, B, I] after the state h, c [L, B, H]; everything float64."""
    step = lstm_step(lstm)
    states = forward(step, x, state)
    return backward(step, x, states, _directions(x.shape[1], lstm.hidden_size, generator))


def lstm_step(lstm: StackedLSTM) -> Step:
    """The step of all layers as a function of the state alone."""

    def step(x: Tensor, state: States) -> States:
        h, c = state
        return lstm.step(x, (h, c))[1]

    return step


@dataclass(frozen=True)
class PlainRNN:
    """h' = tanh(x W_ih' + h W_hh' + b) (Elman 1990), in float64.

    weight_ih [H, I], weight_hh [H, H], bias [H].
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor

    @staticmethod
    def fresh(inputs: int, hidden: int, gain: float, generator: torch.Generator) -> PlainRNN:
        """Uniform within 1/sqrt(H), as torch.nn.RNN; the recurrent weights times `gain`."""
        bound = 1 / math.sqrt(hidden)

        def uniform(*shape: int) -> Tensor:
            return (2 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1) * bound

        weights = uniform(hidden, inputs), gain * uniform(hidden, hidden), uniform(hidden)
        return PlainRNN(*(w.requires_grad_() for w in weights))

    def step(self, x: Tensor, state: States) -> States:
        """x [B, I], state h [1, B, H]."""
        return (torch.tanh(x @ self.weight_ih.T + state[0] @ self.weight_hh.T + self.bias),)


def fresh_lstm(
    inputs: int, hidden: int, layers: int, seed: int, chrono: int | None = None, forget_bias: float = 1.0
) -> StackedLSTM:
    """An untrained LSTM, float64. chrono: the longest dependency T_max for which the biases are set,
    b_f = ln U[1, T_max - 1], b_i = -b_f (Tallec & Ollivier 2018); None: b_f = `forget_bias`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lstm = StackedLSTM(inputs, hidden, layers, forget_bias)
        if chrono is not None:
            with torch.no_grad():
                for k in range(layers):
                    bias = lstm.layer(k)[2]
                    bias[hidden : 2 * hidden] = torch.empty(hidden).uniform_(1, chrono - 1).log()
                    bias[:hidden] = -bias[hidden : 2 * hidden]
    return lstm.double()


@dataclass(frozen=True)
class Classics:
    """The fresh networks on white noise: G(k) [K + 1], the median of the sequences, of each by its name; and
    for the RNN with large weights what each step adds to the gradient of its weights, before clipping."""

    curves: dict[str, Tensor]
    exploding: Backward
    clip: float = CLIP

    @property
    def clip_factor(self) -> float:
        """What clipping the norm multiplies the whole gradient by (Pascanu et al. 2013)."""
        return min(1.0, self.clip / self.exploding.total)


@cache
def classics(distance: int = DISTANCE) -> Classics:
    """Computes them; the same on every call."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(WARM + distance, SEQUENCES, INPUTS, dtype=torch.float64, generator=generator)
    direction = _directions(SEQUENCES, HIDDEN, generator)
    curves, plain = {}, {}
    for name, gain in (("plain RNN, small weights", SMALL), (EXPLODING, LARGE)):
        rnn = PlainRNN.fresh(INPUTS, HIDDEN, gain, generator)
        zero = (torch.zeros(1, SEQUENCES, HIDDEN, dtype=torch.float64),)
        states = forward(rnn.step, x, zero)[WARM:]
        weights = (rnn.weight_ih, rnn.weight_hh, rnn.bias)
        plain[name] = backward(rnn.step, x[WARM:], states, direction, weights)
        curves[name] = plain[name].norms.median(1).values
    for name, chrono in (("LSTM, forget bias 1", None), ("LSTM, chrono initialisation", distance)):
        lstm = fresh_lstm(INPUTS, HIDDEN, 1, SEED, chrono)
        states = forward(lstm_step(lstm), x, lstm.zero_state(SEQUENCES))[WARM:]
        curves[name] = backward(lstm_step(lstm), x[WARM:], states, direction).norms.median(1).values
    return Classics(curves, plain[EXPLODING])


def reach(curve: Tensor, share: float) -> int | None:
    """The first distance from which the curve [K + 1] stays below `share`; None if it never does."""
    above = (curve >= share).nonzero().flatten()
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(curve) else None


def _directions(count: int, size: int, generator: torch.Generator) -> Tensor:
    v = torch.randn(count, size, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(v)


def _squared(gradient: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.square().sum(-1) for part in gradient])


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(t.square().sum().item() for t in tensors))
