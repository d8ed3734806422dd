"""Series of many kinds, from a seed: what a detector of any series learns its expectations from.

Each series is a level with seasons, drifts, noise, regimes and events, or counts, or switching levels; scales
and offsets are arbitrary. Nothing in it comes from a data set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

#: Rows in a season: hours of a day, halves of an hour, quarters, 10 and 5 minutes, and others
SEASONS = (12, 24, 48, 60, 96, 144, 168, 288, 336)


def series(rng: np.random.Generator, rows: int) -> Rows:
    """One series [rows], of a kind drawn at random."""
    kind = rng.choice(5, p=[0.35, 0.2, 0.2, 0.15, 0.1])
    x = (_seasonal, _counts, _bursts, _switching, _wandering)[kind](rng, rows)
    if rng.random() < 0.5:
        x = x + _steps(rng, rows, float(np.std(x)) + 1e-3)
    if rng.random() < 0.4:
        x = _events(rng, x)
    if rng.random() < 0.15:
        x = np.clip(x, *np.sort(np.quantile(x, [rng.uniform(0, 0.2), rng.uniform(0.8, 1)])))
    if rng.random() < 0.3:  # a sensor of few digits
        step = (np.ptp(x) + 1e-6) / rng.choice([10, 50, 200, 1000])
        x = np.round(x / step) * step
    return np.asarray(x * 10 ** rng.uniform(-3, 5) + rng.choice([0.0, 1.0]) * 10 ** rng.uniform(-2, 5))


def _season(rng: np.random.Generator, rows: int) -> Rows:
    """A repeated shape of deviation near 1: waves, a block, a tooth or a peak; seldom exactly the same."""
    period = float(rng.choice(SEASONS)) * (1 if rng.random() < 0.8 else rng.uniform(0.7, 1.4))
    phase = (np.arange(rows) / period + rng.random()) % 1
    shape = rng.integers(4)
    if shape == 0:
        n = np.arange(1, rng.integers(2, 5))
        wave = np.sin(2 * np.pi * (phase[:, None] * n + rng.random(len(n)))) / n ** rng.uniform(0.5, 2)
        x = wave.sum(1)
    elif shape == 1:
        x = 2.0 * (phase < rng.uniform(0.1, 0.7))
    elif shape == 2:
        x = 3.0 * phase if rng.random() < 0.5 else 3.0 * (1 - phase)
    else:
        x = 4 * np.exp(-(((phase - 0.5) / rng.uniform(0.02, 0.15)) ** 2))
    if rng.random() < 0.4:  # the days of a week are not alike
        day = (np.arange(rows) // period).astype(int) % 7
        x = x * rng.uniform(0.3, 1.2, 7)[day]
    return np.asarray(x)


def _noise(rng: np.random.Generator, rows: int) -> Rows:
    """Correlated, heavy-tailed or of changing width; of deviation near 1."""
    x = rng.standard_t(rng.uniform(2.5, 5), rows) if rng.random() < 0.35 else rng.standard_normal(rows)
    if rng.random() < 0.5:
        x = _smooth(x, rng.choice([0.3, 0.6, 0.9, 0.98]))
    if rng.random() < 0.25:
        x = x * np.exp(0.6 * _smooth(rng.standard_normal(rows), 0.99))
    return np.asarray(x)


def _smooth(x: Rows, keep: float) -> Rows:
    """First-order autoregression, of the same deviation."""
    y, state, gain = np.empty_like(x), 0.0, (1 - keep**2) ** 0.5
    for t, v in enumerate(x.tolist()):
        state = keep * state + gain * v
        y[t] = state
    return y


def _seasonal(rng: np.random.Generator, rows: int) -> Rows:
    x = _season(rng, rows)
    if rng.random() < 0.4:
        x = x + rng.uniform(0.2, 1) * _season(rng, rows)
    if rng.random() < 0.3:
        x = x * (1 + 0.3 * _smooth(rng.standard_normal(rows), 0.995))
    if rng.random() < 0.3:
        x = x + rng.uniform(-2, 2) * np.arange(rows) / rows
    return np.asarray(x + 10 ** rng.uniform(-2.5, 0) * _noise(rng, rows))


def _counts(rng: np.random.Generator, rows: int) -> Rows:
    """Events in an interval: Poisson, or more scattered; by season or not."""
    rate = np.log(10.0) * rng.uniform(-0.5, 2.5) + rng.uniform(0, 0.8) * _season(rng, rows)
    rate = rate + rng.uniform(0, 0.3) * _smooth(rng.standard_normal(rows), 0.99)
    mean = np.exp(np.clip(rate, -5, 9))
    if rng.random() < 0.6:
        shape = rng.uniform(0.5, 10)
        mean = rng.gamma(shape, mean / shape)
    return np.asarray(rng.poisson(mean), np.float64)


def _bursts(rng: np.random.Generator, rows: int) -> Rows:
    """A quiet floor, and now and then a pulse that ends at once or dies away."""
    x = 10 ** rng.uniform(-3, -0.5) * np.abs(_noise(rng, rows))
    keep = rng.choice([0.0, 0.0, 0.5, 0.9])
    starts = rng.random(rows) < 10 ** rng.uniform(-2.7, -0.7)
    if rng.random() < 0.3:
        starts = np.arange(rows) % rng.choice(SEASONS) == 0
    height = np.where(starts, rng.lognormal(0, rng.uniform(0.1, 0.8), rows), 0.0)
    pulse, state = np.empty(rows), 0.0
    for t, v in enumerate(height.tolist()):
        state = max(state * keep, v)
        pulse[t] = state
    return np.asarray(x + pulse)


def _switching(rng: np.random.Generator, rows: int) -> Rows:
    """Two to four levels, each kept for a random time, with its own noise."""
    levels = rng.uniform(-2, 2, rng.integers(2, 5))
    stay = 10 ** rng.uniform(0.5, 2.5)
    state = np.cumsum(rng.random(rows) < 1 / stay) * rng.integers(1, len(levels) + 1) % len(levels)
    width = 10 ** rng.uniform(-2.5, -0.3, len(levels))
    return np.asarray(levels[state] + width[state] * _noise(rng, rows))


def _wandering(rng: np.random.Generator, rows: int) -> Rows:
    """A random walk that may be drawn back, with noise of measurement."""
    x = _smooth(rng.standard_normal(rows), rng.choice([0.99, 0.997, 0.9995]))
    return np.asarray(x + 10 ** rng.uniform(-3, -0.7) * _noise(rng, rows))


def _steps(rng: np.random.Generator, rows: int, scale: float) -> Rows:
    """Changes of level that stay, once in some hundred to some thousand rows."""
    jump = np.where(rng.random(rows) < 10 ** rng.uniform(-3.7, -2.7), rng.standard_normal(rows), 0.0)
    return np.asarray(np.cumsum(jump) * scale * rng.uniform(0.5, 3))


def _events(rng: np.random.Generator, x: Rows) -> Rows:
    """Outliers, stuck values and outages, so that the expectation has tails and recovers from them."""
    x, scale = x.copy(), float(np.std(x)) + 1e-3
    for _ in range(rng.poisson(len(x) / 700)):
        at, kind = int(rng.integers(len(x))), rng.integers(4)
        end = at + int(10 ** rng.uniform(0.3, 2))
        if kind == 0:
            x[at] += scale * rng.standard_normal() * 6
        elif kind == 1:
            x[at:end] = x[at]
        elif kind == 2:
            x[at:end] = min(0.0, float(x.min()))
        else:
            x[at:end] += scale * rng.standard_normal() * 3
    return x
