"""Whether something grows without end: a straight line through its samples, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean

#: Samples next to each other are alike; the means of so many blocks are nearly independent
BLOCKS = 30
#: Of a run, left out: caches fill, pools grow to their size
WARM_UP = 0.2
#: What counts as growth over the measured time: this share of the mean, and at least the least of its kind
SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Line:
    """slope: a second. low, high: its confidence interval (95 %)."""

    slope: float
    low: float
    high: float
    mean: float


@dataclass(frozen=True, slots=True)
class Trend:
    """A quantity of a run. `leaks`: it grew, by more than counts as nothing, in both halves of the time."""

    what: str
    unit: str
    line: Line
    seconds: float
    samples: int
    leaks: bool
    says: str


def fit(times: Sequence[float], values: Sequence[float], confidence: float = 0.95) -> Line:
    """Least squares through the means of blocks. Raises ValueError for fewer than 4 samples."""
    if len(times) < 4:
        raise ValueError("a line needs 4 samples")
    count = min(BLOCKS, len(times))
    edges = [len(times) * n // count for n in range(count + 1)]
    t = [fmean(times[a:b]) for a, b in pairwise(edges)]
    v = [fmean(values[a:b]) for a, b in pairwise(edges)]
    t_mean, v_mean = fmean(t), fmean(v)
    spread = sum((x - t_mean) ** 2 for x in t)
    if spread == 0:
        raise ValueError("all samples are of one time")
    slope = sum((x - t_mean) * (y - v_mean) for x, y in zip(t, v, strict=True)) / spread
    rest = sum((y - v_mean - slope * (x - t_mean)) ** 2 for x, y in zip(t, v, strict=True))
    half = student(confidence, count - 2) * math.sqrt(rest / (count - 2) / spread)
    return Line(slope, slope - half, slope + half, v_mean)


def student(confidence: float, freedom: int) -> float:
    """The two-sided quantile of Student's t: Cornish-Fisher's expansion (Abramowitz and Stegun 26.7.5)."""
    z, n = NormalDist().inv_cdf((1 + confidence) / 2), freedom
    if n <= 2:
        exact: dict[int, float] = {
            1: math.tan(math.pi * confidence / 2),
            2: confidence * math.sqrt(2 / (1 - confidence**2)),
        }
        return exact[n]
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, 1))


def trend(
    what: str, unit: str, times: Sequence[float], values: Sequence[float], least: float
) -> Trend | None:
    """None if there are too few samples. least: growth over the whole time that counts as nothing."""
    first = next((n for n, t in enumerate(times) if t >= times[0] + WARM_UP * (times[-1] - times[0])), 0)
    times, values = times[first:], values[first:]
    if len(times) < 16 or times[-1] <= times[0]:
        return None
    whole, half = fit(times, values), len(times) // 2
    later = fit(times[half:], values[half:])
    seconds = times[-1] - times[0]
    allowed = max(least, SHARE * abs(whole.mean))
    grew = whole.low > 0 and whole.slope * seconds > allowed
    goes_on = later.low > 0 and later.slope * seconds > allowed / 2
    if grew and goes_on:
        says = "grows: a leak, or what the load builds up"
    elif grew:
        says = "grew, and has settled"
    else:
        says = "no growth"
    return Trend(what, unit, whole, seconds, len(times), grew and goes_on, says)
