"""What happened, counted in plain numbers: `service.metrics` publishes them, nobody else needs to know."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
#: Every reason there is, so that a scrape shows 0 before the first time: a rate can't see a counter's birth
REASONS: dict[str, tuple[str, ...]] = {
    "ended": ("closed", "expired"),
    "conflicts": ("gap", "replay", "history", "version"),
    "rejected": ("draining", "queue", "wait", "sessions", "session_quota", "deadline", "lease"),
    "lost": ("expired", "process", "damaged"),
    "takeovers": ("handed over", "lease"),
    "dropped": ("away", "stale", "fenced"),
    "commit_failures": ("away", "stale", "fenced", "fault", "other"),
    "upgraded": ("replay", "reset"),
    "lease_lost": ("expired", "fenced"),
}
POWERS_OF_TWO = tuple(float(2**n) for n in range(13))


class Histogram:
    """Counts of values by upper bound, the last without one; cheap enough for the hot path."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Counters:
    """Of one model in one process, since its start."""

    steps: int = 0  # committed
    opened: int = 0
    parked: int = 0  # states moved from host memory to the store
    fetched: int = 0  # and back
    claimed: int = 0  # sessions read from the store that replicas share, and not opened
    deduplicated: int = 0  # steps answered from the replay window
    predicted: int = 0  # steps of predictions, without a session
    engine_steps: int = 0  # steps the engine ran, whatever for
    ended: Counter[str] = field(default_factory=Counter)  # sessions, by ending
    conflicts: Counter[str] = field(default_factory=Counter)  # requests, by reason
    rejected: Counter[str] = field(default_factory=Counter)  # requests, by reason
    lost: Counter[str] = field(default_factory=Counter)  # requests for sessions that are gone, by reason
    takeovers: Counter[str] = field(default_factory=Counter)  # sessions taken from another owner, by how
    released: int = 0  # sessions let go of: handed over, or at a stop
    dropped: Counter[str] = field(default_factory=Counter)  # sessions to be read again, by reason
    upgraded: Counter[str] = field(default_factory=Counter)  # sessions of another version, by policy
    replayed: int = 0  # steps run again to restore a session
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    tick_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_size: Histogram = field(default_factory=lambda: Histogram(POWERS_OF_TWO))
    commit_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    commit_bytes: int = 0
    commit_failures: Counter[str] = field(default_factory=Counter)  # group commits, by reason
    snapshots: int = 0  # saved
    snapshot_bytes: int = 0


class _Answers:
    """Of one route of one model."""

    __slots__ = ("seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.seconds = Histogram(SECONDS)


@dataclass(slots=True)
class KeyCounters:
    """Of the keys of one process, by their names: those that are in the file now."""

    requests: dict[str, int] = field(default_factory=dict)
    rejected: dict[tuple[str, str], int] = field(default_factory=dict)  # by name and reason
    refused: Counter[str] = field(default_factory=Counter)  # without a known key, by reason


class RequestCounters:
    """What the clients of one process were answered. model: one served here, or empty.

    A request is counted by the process its client sent it to. If that passes it on, the owner of the session
    counts it among `of_peers`: so the sum over all replicas is what the clients sent.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], _Answers] = {}
        self.of_peers: Counter[tuple[str, str, int]] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()  # told to clients, by model and code
        self.bulk_items: Counter[tuple[str, int]] = Counter()  # requests in bulk bodies, by model and status
        self.streams_opened: Counter[str] = Counter()  # by model
        self.streams_closed: Counter[tuple[str, str]] = Counter()  # by model and close code, or who left
        self.refused: Counter[str] = Counter()  # before it was known what they are for, by reason

    def observe(self, model: str, route: str, status: int, seconds: float) -> None:
        """Once for each request, so it is spelt out."""
        try:
            answers = self._answers[model, route]
        except KeyError:
            answers = self._answers[model, route] = _Answers()
        answers.statuses[status] = answers.statuses.get(status, 0) + 1
        histogram = answers.seconds
        histogram.counts[bisect_left(histogram.bounds, seconds)] += 1
        histogram.total += seconds

    def answered(self) -> Iterator[tuple[tuple[str, str, int], int]]:
        """Counts by model, route (its template) and status. A stream's messages count each, under the
        stream's route. 499: the client left before its request was whole, or its answer known."""
        for (model, route), answers in self._answers.items():
            for status, count in answers.statuses.items():
                yield (model, route, status), count

    def seconds(self) -> Iterator[tuple[tuple[str, str], Histogram]]:
        """By model and route."""
        for key, answers in self._answers.items():
            yield key, answers.seconds
