"""When sessions are due, by the second: a heap with an entry for each would take 130 bytes a session."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from service.sessions.session import Session


class Expiries:
    """Each session once, at a time that may be too early: ask it again when it comes up."""

    def __init__(self) -> None:
        self._due: dict[int, list[Session]] = {}  # by the second in which their time has run out
        self._seconds: list[int] = []  # a heap of them
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def first(self) -> float:
        """When the first is due; never, if there is none."""
        return float(self._seconds[0]) if self._seconds else math.inf

    def add(self, session: Session, at: float) -> None:
        """It comes up at the end of that second."""
        second = math.ceil(at)
        due = self._due.get(second)
        if due is None:
            due = self._due[second] = []
            heapq.heappush(self._seconds, second)
        due.append(session)
        self._count += 1

    def pop(self, now: float) -> list[Session]:
        """Takes out those that come up by now."""
        due: list[Session] = []
        while self._seconds and self._seconds[0] <= now:
            due += self._due.pop(heapq.heappop(self._seconds))
        self._count -= len(due)
        return due

    def keep(self, wanted: Callable[[Session], bool]) -> None:
        """Lets go of all others."""
        kept = {second: [s for s in due if wanted(s)] for second, due in self._due.items()}
        self._due = {second: due for second, due in kept.items() if due}
        self._seconds = sorted(self._due)
        self._count = sum(map(len, self._due.values()))
