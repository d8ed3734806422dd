"""How much of what a replica can do it does: what scaling goes by.

Not the count of requests: those that are answered at once in large batches cost little, one that generates
10,000 steps costs much. What a replica runs out of is time: of its engine (ticks), and of the one thread that
everything runs on (JSON, the store). And, long before that if sessions are many and idle, room for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings torch, which whoever only wants the name can do without
    from service.sessions.manager import SessionManager

#: The greatest of the shares: what the policy goes by
OCCUPANCY = "occupancy"


class Occupancy:
    """Of one replica. Each reading is about the time since the one before."""

    def __init__(
        self,
        managers: Sequence[SessionManager],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._managers, self._clock, self._cpu = managers, clock, cpu
        self._then = self._totals()

    def read(self) -> dict[str, float]:
        """Shares from 0 to 1, of
        ticks: time in which the engine was at work;
        thread: time in which the event loop's thread had a processor (call this on it);
        queue: requests that are not answered yet, of the most there may be;
        sessions: open ones, of the most there may be;
        and `occupancy`, the greatest of these. Beside them, for whoever looks: slots, the share of the state
        pool that is taken (full is how it should be: idle states make room), and queue_s, the mean time
        in seconds from a request's submission to its first tick."""
        then, now = self._then, self._totals()
        self._then = now
        seconds, ticks, cpu, waited, started = (b - a for a, b in zip(then, now, strict=True))
        engines = [manager.engine for manager in self._managers]
        shares = {
            "ticks": ticks / seconds if seconds > 0 else 0.0,
            "thread": cpu / seconds if seconds > 0 else 0.0,
            "queue": max(manager.in_flight / manager.limits.queue for manager in self._managers),
            "sessions": sum(map(len, self._managers)) / self._managers[0].limits.sessions,
        }
        shares = {name: min(1.0, share) for name, share in shares.items()}
        return {
            **shares,
            OCCUPANCY: max(shares.values()),
            "slots": max(1 - engine.slots.free / engine.slots.slots for engine in engines),
            "queue_s": waited / started if started else 0.0,
        }

    def _totals(self) -> tuple[float, ...]:
        """Seconds: now, in ticks, on a processor, waited; and how many requests waited."""
        counters = [manager.counters for manager in self._managers]
        return (
            self._clock(),
            sum(counter.tick_seconds.total for counter in counters),
            self._cpu(),
            sum(counter.queue_seconds.total for counter in counters),
            sum(sum(counter.queue_seconds.counts) for counter in counters),
        )
