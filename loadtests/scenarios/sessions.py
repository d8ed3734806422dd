"""The sessions of one sender: who is idle, and who waits for one that is."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Session:
    """number: its inputs follow from it. opened: the service has it. last: of a sampled one, the last step
    and the outputs after it."""

    number: int
    id: str
    next_step: int = 0
    opened: bool = False
    sampled: bool = False
    last: tuple[int, list[float]] | None = None
    socket: Any = None
    address: Any = None


class Pool:
    """One request of a session is on its way at a time: two could overtake each other and would conflict.

    With as many sessions as requests in flight nobody waits; if somebody does, that is counted.
    """

    def __init__(self, prefix: str, part: int, parts: int, rng: random.Random) -> None:
        self._prefix, self._next, self._parts, self._rng = prefix, part, parts, rng
        self._idle: list[Session] = []
        self._waiting: deque[asyncio.Future[Session]] = deque()
        self.all: dict[str, Session] = {}
        self.held = 0

    def new(self, sampled: bool = False) -> Session:
        """One with a number of its own, among all senders; not idle yet."""
        session = Session(self._next, f"{self._prefix}{self._next}", sampled=sampled)
        self._next += self._parts
        self.all[session.id] = session
        return session

    async def take(self) -> Session:
        """An idle one by chance."""
        if idle := self._idle:
            place = self._rng.randrange(len(idle))
            idle[place], idle[-1] = idle[-1], idle[place]
            return idle.pop()
        self.held += 1
        turn: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())
            raise

    def give_back(self, session: Session) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(session)
                return
        self._idle.append(session)

    def forget(self, session: Session) -> None:
        """It has ended, or nobody knows where it is."""
        self.all.pop(session.id, None)
