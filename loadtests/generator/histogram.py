"""A histogram of positive values whose quantiles are within a stated relative error, however they are spread.

Buckets grow by a constant factor (DDSketch: Masson, Rim, Lee, VLDB 2019), so microseconds and minutes have
the same relative error, and histograms of several processes are merged by adding counts. Only buckets that
hold something are kept: one of a second's latencies is some dozens of numbers, in JSON too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

#: Of a quantile, relative: 0.5 % of 10 ms is 0.05 ms
ERROR = 0.005
#: What is below counts as this: no clock here tells it apart from nothing
LEAST = 1e-9
_GROWTH = (1 + ERROR) / (1 - ERROR)
_LOG = math.log(_GROWTH)


class Histogram:
    """Counts of values. `min`, `max`, `total` and `count` are exact."""

    __slots__ = ("buckets", "count", "max", "min", "total")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.buckets: Counter[int] = Counter()
        self.count, self.total, self.min, self.max = 0, 0.0, math.inf, -math.inf
        for value in values:
            self.record(value)

    def record(self, value: float, times: int = 1) -> None:
        """A value, so many times; below `LEAST` it counts as that. Raises ValueError if it is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"{value} can't be recorded")
        value = max(value, LEAST)
        self.buckets[math.ceil(math.log(value) / _LOG)] += times
        self.count += times
        self.total += value * times
        self.min, self.max = min(self.min, value), max(self.max, value)

    def merge(self, other: Histogram) -> None:
        """Adds another's counts: as if its values had been recorded here."""
        self.buckets.update(other.buckets)
        self.count += other.count
        self.total += other.total
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)

    @property
    def mean(self) -> float:
        """0 when empty."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The value at rank ceil(q × count), within `ERROR` relative. 0 when empty."""
        return self.quantiles([q])[0]

    def quantiles(self, qs: Iterable[float]) -> list[float]:
        """Several in one pass over the buckets; in any order, each from 0 to 1."""
        asked = list(qs)
        if not all(0 <= q <= 1 for q in asked):
            raise ValueError(f"quantiles are from 0 to 1, not {asked}")
        if not self.count:
            return [0.0] * len(asked)
        found, seen, left = dict.fromkeys(asked, self.max), 0, sorted(set(asked), reverse=True)
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            while left and seen >= max(1, math.ceil(left[-1] * self.count)):
                found[left.pop()] = min(self.max, max(self.min, _value(bucket)))
        found |= {q: exact for q, exact in ((0, self.min), (1, self.max)) if q in found}
        return [found[q] for q in asked]

    def above(self, value: float) -> int:
        """How many are larger, to the bucket."""
        edge = math.ceil(math.log(max(value, LEAST)) / _LOG)
        return sum(count for bucket, count in self.buckets.items() if bucket > edge)

    def to_json(self) -> dict[str, Any]:
        """`buckets`: [number, count]; bucket n holds values up to growth ** n."""
        return {
            "growth": _GROWTH,
            "count": self.count,
            "total": self.total,
            "min": self.min if self.count else None,
            "max": self.max if self.count else None,
            "buckets": sorted(self.buckets.items()),
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Histogram:
        """Raises ValueError for one of other buckets."""
        if not math.isclose(facts["growth"], _GROWTH, rel_tol=1e-12):
            raise ValueError(f"the histogram's buckets grow by {facts['growth']}, not {_GROWTH}")
        made = cls()
        made.buckets = Counter({int(bucket): int(count) for bucket, count in facts["buckets"]})
        made.count, made.total = facts["count"], facts["total"]
        if made.count:
            made.min, made.max = facts["min"], facts["max"]
        return made


def _value(bucket: int) -> float:
    """The one number that is within ERROR of all in a bucket, (growth ** (n - 1), growth ** n]."""
    return 2 * _GROWTH**bucket / (_GROWTH + 1)
