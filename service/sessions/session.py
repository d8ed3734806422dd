"""One client's sequence, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.engine.jobs import Job, StateHandle
from service.sessions.replies import StepCommand
from service.sessions.window import ReplayWindow


class Life(enum.Enum):
    """OPEN → ENDED, once. An ended session takes nothing more; requests that wait for it are told so."""

    OPEN = "open"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Ticket:
    """One accepted request; its future is set exactly once.

    Either a command to step, or an action that needs the session at rest and is done at once.
    """

    future: asyncio.Future[Any]
    command: StepCommand | None = None
    action: Callable[[Session], Any] | None = None
    session: Session | None = None
    job: Job | None = None
    deadline: float = float("inf")
    timer: asyncio.TimerHandle | None = None

    def settle(self, result: Any = None, error: BaseException | None = None) -> None:
        """Answers, unless nobody waits any more."""
        if self.timer is not None:
            self.timer.cancel()
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


@dataclass(slots=True, eq=False)
class Session:
    """Owned by the session manager; one request at a time moves it, the others wait in order of arrival."""

    id: str
    ttl_s: float
    durability: str
    window: ReplayWindow
    opened_at: float  # wall clock, for people
    used_at: float  # the manager's clock
    opened_by_step: bool = False  # by step 0 of an unknown id: if that step fails, it was never opened
    next_step: int = 0
    life: Life = Life.OPEN
    state: StateHandle = field(default_factory=StateHandle)
    current: Ticket | None = None
    waiting: deque[Ticket] = field(default_factory=deque)

    @property
    def expires_at(self) -> float:
        """On the manager's clock, if nothing comes before."""
        return self.used_at + self.ttl_s

    @property
    def at_rest(self) -> bool:
        return self.current is None and not self.waiting

    def end(self) -> None:
        """OPEN to ENDED; a second end is a bug and raises."""
        if self.life is not Life.OPEN:
            raise RuntimeError(f"a session that is {self.life.value} expected no move; ended came")
        self.life = Life.ENDED
