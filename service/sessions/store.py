"""Where committed steps are kept beyond the running process: the protocol, and the store that keeps nothing.

A store answers with None when what it was given is as safe as it will be, else with a future. The caller
acknowledges a step only after that, and takes the step back if the future fails.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.sessions.window import Committed

Pending = asyncio.Future[None] | None


class Ending(enum.Enum):
    """How a session ended."""

    CLOSED = "closed"  # its client ended it
    EXPIRED = "expired"  # it was idle for longer than its time to live


@dataclass(slots=True)  # frozen would double the cost of making one
class StepRecord:
    """One committed request of one session, to be kept with others in one group commit."""

    session_id: str
    committed: Committed


class Store(Protocol):
    """What a store does. All of it is called on the event loop's thread, and must not block."""

    durabilities: tuple[str, ...]  # what it can promise

    def commit(self, records: Sequence[StepRecord]) -> Pending:
        """Keeps a tick's requests, all or none."""
        ...

    def end(self, session_id: str, ending: Ending) -> Pending:
        """Notes that a session ended, and how."""
        ...

    def ending(self, session_id: str) -> Ending | None:
        """How the session of that id ended, as far as it is known."""
        ...

    def reopen(self, session_id: str) -> Pending:
        """A session of that id begins (again)."""
        ...


class MemoryStore:
    """Keeps nothing: sessions live in the process, and die with it. Remembers the newest endings."""

    durabilities: tuple[str, ...] = ("none",)

    def __init__(self, endings: int = 100_000, remember_s: float = 86400.0) -> None:
        self._endings: OrderedDict[str, tuple[float, Ending]] = OrderedDict()
        self._most, self._remember_s = endings, remember_s

    def commit(self, records: Sequence[StepRecord]) -> Pending:
        return None

    def end(self, session_id: str, ending: Ending) -> Pending:
        if ending is Ending.EXPIRED:
            self._endings[session_id] = (time.monotonic(), ending)
            self._endings.move_to_end(session_id)
            while len(self._endings) > self._most:
                self._endings.popitem(last=False)
        return None

    def ending(self, session_id: str) -> Ending | None:
        entry = self._endings.get(session_id)
        if entry is not None and time.monotonic() - entry[0] > self._remember_s:
            del self._endings[session_id]
            return None
        return entry[1] if entry else None

    def reopen(self, session_id: str) -> Pending:
        self._endings.pop(session_id, None)
        return None
