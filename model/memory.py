"""An LSTM that remembers before it has learnt anything: the first weights of some of its units make them
running means, seasonal waves and measures of unrest of each signal.

A gradient through a hundred steps does not find a mean over a thousand. So these units' weights are set, as
the fixed part of an echo state network is (Jaeger 2001), and kept; what is learnt are the other units and the
head. All are ordinary units of an ordinary LSTM, near zero, where tanh(a) is a:

    mean    c' = f c + (1 - f) s x                   f = exp(-1 / span)
    wave    z' = r (cos w + i sin w) z + u x         real and imaginary part are a unit each: it keeps r cos w
                                                     of itself by its forget gate and reads the other's h; x
                                                     comes a step late, from the mean of no span
    unrest  c' = f c + (1 - f) s max(0, x - level)   a second unit for the other sign; the input gate is the
                                                     step, level is the h of a mean

Spans are in seasons (of `season` rows). The linear units' weights are exact in bfloat16 and in int8, and what
decides how long they remember is in their biases, which every precision keeps in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.lstm import StackedLSTM

#: Spans of the means: none (the newest value), and from an hour and a half of a day to six weeks.
MEANS = (0.0, 1 / 16, 3 / 16, 9 / 16, 1.6, 4.7, 14.0, 42.0)
LEVEL = 5  # of them: what the others are relative to, and what unrest is measured against
#: Spans of the waves, and how many harmonics of the season each has. Beyond a quarter of the season's rows a
#: wave would need a negative forget gate.
WAVES = ((1.25, 5), (5.0, 5), (20.0, 4))
UNREST = (3.0, 14.0)
#: Small, so that tanh bends little; not smaller, for the head multiplies what rounding has done by as much
MEAN_SCALE, WAVE_SCALE = 1 / 8, 1 / 16
#: Of a wave: what one of its units takes of the other, and steps of what it takes of the newest value (from
#: the mean of no span): then a row of weights is exact in eight bits, as whole multiples and as bfloat16
GRAIN = 128
TURN = 127 / GRAIN
OPEN, SHUT = 8.0, -16.0  # gates
STEP = 4.0  # steepness of the step at 0, per deviation


@dataclass(frozen=True, slots=True)
class Bank:
    """The units of one LSTM that remember: `linear` + `unrest` of each signal, signal by signal, from unit 0
    on. level: the place among them of the mean that stands for the signal's level."""

    signals: int
    linear: int
    unrest: int

    @property
    def units(self) -> int:
        return self.signals * (self.linear + self.unrest)

    def of(self, signal: int) -> slice:
        """The linear units of a signal."""
        first = signal * (self.linear + self.unrest)
        return slice(first, first + self.linear)

    def unrest_of(self, signal: int) -> slice:
        end = (signal + 1) * (self.linear + self.unrest)
        return slice(end - self.unrest, end)


def harmonics(season: int) -> list[tuple[float, int]]:
    """Span in rows and harmonic of each wave; none without a season."""
    most = math.ceil(season / 4) - 1  # an angle below a quarter turn a step
    return [(span * season, k) for span, count in WAVES for k in range(1, min(count, most) + 1)]


def bank(signals: int, season: int) -> Bank:
    return Bank(signals, len(MEANS) + 2 * len(harmonics(season)), 2 * len(UNREST))


@torch.no_grad()
def remember(lstm: StackedLSTM, season: int, unit: int = 24, signals: int | None = None) -> Bank:
    """Sets the first units of a one-layer LSTM to a bank. season: rows in a period, 0 for no waves; spans are
    then in `unit` rows. signals: the first so many of the inputs; all by default. Raises ValueError if the
    LSTM has not so many units, or several layers."""
    signals = lstm.input_size if signals is None else signals
    made = bank(signals, season)
    if lstm.num_layers != 1 or lstm.hidden_size < made.units:
        raise ValueError(
            f"a memory of {signals} signals needs one layer of at least {made.units} units, not"
            f" {lstm.num_layers} of {lstm.hidden_size}"
        )
    w_ih, w_hh, bias = lstm.layer(0)
    rows = torch.arange(made.units)
    H = lstm.hidden_size
    for gate in range(4):
        for tensor in (w_ih, w_hh, bias):
            tensor[rows + gate * H] = 0
    bias[rows + 3 * H] = OPEN
    for signal in range(signals):
        units = iter(range(signal * (made.linear + made.unrest), made.units))
        _linear(lstm, signal, units, season or unit, season)
        _unrest(lstm, signal, made.of(signal).start + LEVEL, units, season or unit)
    return made


def _linear(lstm: StackedLSTM, signal: int, units: Iterator[int], rows: int, season: int) -> None:
    w_ih, w_hh, bias = lstm.layer(0)
    H = lstm.hidden_size
    now = -1
    for span in MEANS:
        u = next(units)
        now = now if span else u
        _leak(bias, H, u, span * rows)
        w_ih[2 * H + u, signal] = MEAN_SCALE
    for span, k in harmonics(season):
        real, imaginary = next(units), next(units)
        radius, angle = math.exp(-1 / span), 2 * math.pi * k / season
        # against what the output gate takes away, and the weight
        turn = radius * math.sin(angle) * (1 + math.exp(-OPEN)) / TURN
        for u, other, sign in ((real, imaginary, -1), (imaginary, real, 1)):
            bias[u], bias[H + u] = _logit(min(turn, 1 - 1e-4)), _logit(radius * math.cos(angle))
            w_hh[2 * H + u, other] = sign * TURN
        gain = 2 * WAVE_SCALE / MEAN_SCALE * (1 - radius) / turn
        w_hh[2 * H + real, now] = max(1, round(gain * GRAIN)) / GRAIN


def _unrest(lstm: StackedLSTM, signal: int, level: int, units: Iterator[int], rows: int) -> None:
    w_ih, w_hh, bias = lstm.layer(0)
    H = lstm.hidden_size
    for span in UNREST:
        for sign in (1, -1):
            u = next(units)
            share = 1 - math.exp(-1 / (span * rows))
            _leak(bias, H, u, span * rows)
            bias[u] = 0  # the input gate is the step; what the mean takes in of it is the weight's
            for gate, weight in ((0, STEP), (2, share * MEAN_SCALE)):
                w_ih[gate * H + u, signal] = sign * weight
                w_hh[gate * H + u, level] = -sign * weight / MEAN_SCALE


def _leak(bias: Tensor, H: int, u: int, span: float) -> None:
    """Forget and input gate of a running mean."""
    forget = _logit(math.exp(-1 / span)) if span else SHUT
    bias[H + u], bias[u] = forget, -forget


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)
