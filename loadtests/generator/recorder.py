"""What happened to the requests of a run, as one process saw it; those of several are merged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from loadtests.generator.arrivals import Arrival
from loadtests.generator.histogram import Histogram

#: Codes of what is no reply of the service: whether it was executed is not known
NO_REPLY = ("timeout", "no_reply", "connection")
WRONG = "wrong_reply"


@dataclass(slots=True)
class Kind:
    """Requests of one kind. Latency is from the intended time; `service` from when it was really sent."""

    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)

    def merge(self, other: Kind) -> None:
        self.ok += other.ok
        self.errors.update(other.errors)
        self.latency.merge(other.latency)
        self.service.merge(other.service)


@dataclass(slots=True)
class Second:
    """What was to be sent within one second of the run, and became of it."""

    scheduled: int = 0
    ok: int = 0
    steps: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def merge(self, other: Second) -> None:
        self.scheduled += other.scheduled
        self.ok += other.ok
        self.steps += other.steps
        self.errors += other.errors
        self.latency.merge(other.latency)


class Recorder:
    """start: the clock at second 0.

    tally: what the service must have counted too: steps, opened, closed, and `http <route> <status>`; and
    `unknown`: steps whose fate is not.
    """

    def __init__(self, start: float, *, keep: bool = False) -> None:
        self.start = start
        self.kinds: dict[str, Kind] = {}
        self.seconds: dict[int, Second] = {}
        self.lag = Histogram()  # seconds from the intended time to when this process could begin to send
        self.held = 0  # requests for which no connection or session was free
        self.most_in_flight = 0
        self.tally: Counter[str] = Counter()
        self.sent: list[Arrival] | None = [] if keep else None

    def due(self, intended: float) -> None:
        """A request is to be sent then."""
        self._second(intended).scheduled += 1

    def began(self, intended: float, now: float) -> None:
        self.lag.record(now - intended)

    def ended(self, kind: str, intended: float, sent: float, now: float, steps: int, code: str = "") -> None:
        """A request. steps: that it moved sessions by, or would have. code: of an error; empty: it went well.

        An error's time is not among the latencies: one that is refused at once would make them look good.
        """
        which = self.kinds.setdefault(kind, Kind())
        second = self._second(intended)
        if code:
            which.errors[code] += 1
            second.errors += 1
            return
        which.ok += 1
        which.latency.record(now - intended)
        which.service.record(now - sent)
        second.ok += 1
        second.steps += steps
        second.latency.record(now - intended)
        if self.sent is not None and steps:
            self.sent.append(Arrival(max(0.0, intended - self.start), steps))

    def merge(self, other: Recorder) -> None:
        """Of another process, with the same start."""
        for name, kind in other.kinds.items():
            self.kinds.setdefault(name, Kind()).merge(kind)
        for number, second in other.seconds.items():
            self.seconds.setdefault(number, Second()).merge(second)
        self.lag.merge(other.lag)
        self.held += other.held
        self.most_in_flight += other.most_in_flight
        self.tally.update(other.tally)
        if self.sent is not None:
            self.sent += other.sent or []

    def latency(self) -> Histogram:
        """Of all kinds."""
        whole = Histogram()
        for kind in self.kinds.values():
            whole.merge(kind.latency)
        return whole

    def errors(self) -> Counter[str]:
        """Of all kinds, by code."""
        return sum((kind.errors for kind in self.kinds.values()), Counter[str]())

    def _second(self, at: float) -> Second:
        return self.seconds.setdefault(max(0, int(at - self.start)), Second())
