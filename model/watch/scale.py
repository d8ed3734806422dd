"""A running scale of one series: what makes a step of any series a few numbers near 1.

Welford's running mean and variance and a mean absolute change, each of a bounded past, and robust: what is
far off counts as a few deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.watch.rules import READS

Rows = NDArray[np.float64]

#: Numbers kept of a series: how many values were seen, their mean and variance, the newest value, the mean
#: absolute change
SIZE = 5
#: Steps after which an old value has lost most of its weight
HORIZON = 1000
#: Steps before which nothing counts as far off
SETTLED = 10
#: Deviations, and mean changes, that a value far off counts as: an outlier must not blind the scale
FAR, FAR_CHANGE = 4.0, 8.0
#: The least deviation as a share of the level, and the least mean change as a share of the deviation
LEAST, LEAST_CHANGE = 1e-6, 1e-3
#: Largest magnitude of a compressed number
MOST = 12.0


def units(kept: Sequence[float]) -> tuple[float, float]:
    """The deviation and the mean absolute change, each above 0."""
    deviation = max(math.sqrt(kept[2]), LEAST * abs(kept[1]) + 1e-12)
    return deviation, max(kept[4], LEAST_CHANGE * deviation)


def advance(kept: Sequence[float], value: float) -> tuple[list[float], list[float]]:
    """One value: the network's input [READS], and what is kept after it [SIZE].

    The input: the value as deviations from the mean and its change in mean changes, both compressed by asinh;
    the logarithm of mean change to deviation; how little has been seen. `kept` of a new series is zeros.
    """
    n, mean, variance, last, change = kept
    if n == 0:
        guess = 0.01 * abs(value) + 1e-9  # before there is a scale; counts as one value
        mean, variance, last, change = value, guess * guess, value, guess
    deviation, least = units((n, mean, variance, last, change))
    moved, away = abs(value - last), value - mean
    if n > SETTLED:
        away = min(max(away, -FAR * deviation), FAR * deviation)
        moved = min(moved, FAR_CHANGE * least)
    weight = 1 / min(n + 2, HORIZON)
    mean += weight * away
    variance = (1 - weight) * (variance + weight * away * away)
    after = [n + 1, mean, variance, value, change + weight * (moved - change)]
    deviation, least = units(after)
    features = [
        compressed((value - mean) / deviation),
        compressed((value - last) / least),
        math.log(least / deviation),
        1 / math.sqrt(n + 1),
    ]
    return features, after


def compressed(x: float) -> float:
    """asinh, within -MOST to MOST."""
    return min(max(math.asinh(x), -MOST), MOST)


def change_to(kept: Sequence[float], value: float) -> float:
    """A value as the compressed change from the newest one: what the network foretells."""
    return compressed((value - kept[3]) / units(kept)[1])


def value_at(kept: Sequence[float], change: float) -> float:
    """The value that is such a compressed change away from the newest one."""
    return kept[3] + units(kept)[1] * math.sinh(min(max(change, -MOST), MOST))


def together(values: Rows) -> tuple[Rows, Rows]:
    """`advance` and `change_to` of whole series side by side, for training: values [T, B] to inputs
    [T - 1, B, READS] and the changes that follow [T - 1, B]."""
    T, B = values.shape
    inputs, changes = np.empty((T - 1, B, READS)), np.empty((T - 1, B))
    guess = 0.01 * np.abs(values[0]) + 1e-9
    mean, variance, last, change = values[0], guess**2, values[0], guess
    deviation, least = _units(mean, variance, change)
    for t, value in enumerate(values[:-1]):
        moved, away = np.abs(value - last), value - mean
        if t > SETTLED:
            away = np.clip(away, -FAR * deviation, FAR * deviation)
            moved = np.minimum(moved, FAR_CHANGE * least)
        weight = 1 / min(t + 2, HORIZON)
        mean = mean + weight * away
        variance = (1 - weight) * (variance + weight * away * away)
        change = change + weight * (moved - change)
        deviation, least = _units(mean, variance, change)
        steps = ((value - mean) / deviation, (value - last) / least)
        inputs[t, :, :2] = np.clip(np.arcsinh(np.stack(steps, -1)), -MOST, MOST)
        inputs[t, :, 2], inputs[t, :, 3] = np.log(least / deviation), 1 / math.sqrt(t + 1)
        changes[t] = np.clip(np.arcsinh((values[t + 1] - value) / least), -MOST, MOST)
        last = value
    return inputs, changes


def _units(mean: Rows, variance: Rows, change: Rows) -> tuple[Rows, Rows]:
    deviation = np.maximum(np.sqrt(variance), LEAST * np.abs(mean) + 1e-12)
    return deviation, np.maximum(change, LEAST_CHANGE * deviation)
