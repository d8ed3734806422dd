"""When requests are to be sent: decided before the run, whatever the service answers (an open loop)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRACE = "cellstate-trace/1"
#: Largest recorded trace that is read
MOST_ARRIVALS = 1_000_000


class TraceError(ValueError):
    """A file is no trace; the message names the line."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """at: seconds since the start. steps: how long the request is; 0: as long as the scenario has it."""

    at: float
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Burst:
    """Every `every_s` seconds the rate is `factor` times as high, for `for_s` seconds."""

    factor: float
    every_s: float
    for_s: float

    def __contains__(self, at: float) -> bool:
        """Whether the rate is high then. The first burst comes when half of a period has passed."""
        return (at - self.every_s / 2) % self.every_s < self.for_s and at >= self.every_s / 2


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run sends: `rate` requests a second for `seconds`, at random (poisson) or evenly (uniform), or
    as recorded in a file. The same seed gives the same arrivals."""

    rate: float
    seconds: float
    kind: str = "poisson"  # or uniform, or trace
    seed: int = 0
    burst: Burst | None = None
    trace: str = ""

    def arrivals(self, part: int = 0, parts: int = 1) -> Iterator[Arrival]:
        """Those of one of so many processes; all parts together are the schedule."""
        if self.kind == "trace":
            _, recorded = read_trace(Path(self.trace))
            mine = (arrival for n, arrival in enumerate(recorded) if n % parts == part)
            return (arrival for arrival in mine if arrival.at < self.seconds)
        if self.kind == "uniform":
            count = math.floor(self.rate * self.seconds)
            return (Arrival(n / self.rate) for n in range(part, count, parts))
        rng = random.Random(f"{self.seed}/{part}")
        # Independent Poisson processes add up to one: each part draws its own
        times = poisson(self.rate / parts, self.seconds, rng, self.burst)
        return (Arrival(at) for at in times)


def poisson(rate: float, seconds: float, rng: random.Random, burst: Burst | None = None) -> Iterator[float]:
    """Times of a Poisson process of `rate` a second; with bursts by thinning one of the highest rate."""
    peak, at = rate * (burst.factor if burst else 1.0), 0.0
    while (at := at + rng.expovariate(peak)) < seconds:
        if burst is None or at in burst or rng.random() < 1 / burst.factor:
            yield at


def write_trace(path: Path, arrivals: Iterable[Arrival], origin: str) -> int:
    """One line of JSON for each, behind a line that says where they are from. How many."""
    ordered = sorted(arrivals, key=lambda arrival: arrival.at)
    lines = [json.dumps({"schema": TRACE, "origin": origin})]
    lines += [json.dumps({"at": round(a.at, 6), "steps": a.steps}) for a in ordered]
    path.write_text("\n".join(lines) + "\n")
    return len(ordered)


def read_trace(path: Path) -> tuple[str, list[Arrival]]:
    """Its origin and the arrivals. Raises TraceError."""
    try:
        first, *lines = path.read_text().splitlines()[: MOST_ARRIVALS + 2]
        head = json.loads(first)
        if not isinstance(head, dict) or head.get("schema") != TRACE:
            raise TraceError(f'{path}: line 1 must be {{"schema": "{TRACE}", "origin": ...}}')
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise error if isinstance(error, TraceError) else TraceError(f"{path} is no trace: {error}") from None
    if len(lines) > MOST_ARRIVALS:
        raise TraceError(f"{path}: more than {MOST_ARRIVALS:,} arrivals")
    return str(head.get("origin", "")), [_arrival(path, n, line) for n, line in enumerate(lines, 2)]


def _arrival(path: Path, number: int, line: str) -> Arrival:
    try:
        fields = json.loads(line)
        at, steps = fields["at"], fields.get("steps", 1)
        if (
            isinstance(at, int | float)
            and math.isfinite(at)
            and at >= 0
            and type(steps) is int
            and steps >= 1
        ):
            return Arrival(float(at), steps)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise TraceError(
        f'{path}: line {number} must be {{"at": seconds from 0, "steps": 1 or more}}: {line[:80]}'
    )
