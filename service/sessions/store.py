"""Where committed steps are kept beyond the running process: the protocol, and the store that keeps nothing.

A store answers with None when what it was given is as safe as it will be, else with a future. The caller
acknowledges a step only after that, and takes the step back if the future fails.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.blocks import Blocks
from service.sessions.stores.protocol import Ending

Pending = asyncio.Future[None] | None
States = NDArray[np.float32]
#: A session's id, and a committed request of it as `record.encode` writes it
StepRecord = tuple[str, bytes]

__all__ = ["Ending", "MemoryStore", "Pending", "StepRecord", "Store", "failure_of"]


def failure_of(done: asyncio.Future[Any]) -> BaseException | None:
    """Why a future that is done failed; None if it did not."""
    return asyncio.CancelledError("cancelled") if done.cancelled() else done.exception()


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

    def park(self, session_ids: Sequence[str], states: States) -> Pending:
        """Keeps the states [B, 2, layers, hidden] of idle sessions, all or none, in place of older ones.

        The array is the caller's again when this is answered.
        """
        ...

    def fetch(self, session_ids: Sequence[str]) -> States | asyncio.Future[States]:
        """The states parked under these ids, [B, 2, layers, hidden]. They stay parked."""
        ...

    def drop(self, session_ids: Sequence[str]) -> None:
        """Lets go of what is parked under these ids, if anything is; in its own time, and whether that
        succeeds is nobody's concern."""
        ...


class MemoryStore:
    """Keeps nothing beyond the process: sessions live in it, and die with it. Remembers the newest endings.

    Parked states are in blocks of host memory: a bytes object each takes as much, and eight times as long.
    """

    durabilities: tuple[str, ...] = ("none",)

    def __init__(self, endings: int = 100_000, remember_s: float = 86400.0) -> None:
        self._endings: OrderedDict[str, tuple[float, Ending]] = OrderedDict()
        self._most, self._remember_s = endings, remember_s
        self._rows: dict[str, int] = {}  # of parked states
        self._blocks: Blocks | None = None  # from the first of them on

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

    def park(self, session_ids: Sequence[str], states: States) -> Pending:
        if self._blocks is None:
            self._blocks = Blocks(states.shape[1:])
        rows = self._blocks.acquire(len(states))
        self._blocks.write(rows, states)
        self.drop(session_ids)
        self._rows.update(zip(session_ids, rows, strict=True))
        return None

    def fetch(self, session_ids: Sequence[str]) -> States | asyncio.Future[States]:
        if self._blocks is None:
            raise KeyError("nothing is parked")
        return self._blocks.read([self._rows[session_id] for session_id in session_ids])

    def drop(self, session_ids: Sequence[str]) -> None:
        for session_id in session_ids:
            row = self._rows.pop(session_id, None)
            if row is not None and self._blocks is not None:
                self._blocks.release(row)
