"""One client's sequence, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.watch.watcher import Draft
from service.asked import Trace
from service.engine.jobs import Job, Phase, Place, StateHandle
from service.sessions.replies import StepCommand
from service.sessions.window import ReplayWindow


class Life(enum.Enum):
    """OPEN → ENDED, once. An ended session takes nothing more; requests that wait for it are told so."""

    OPEN = "open"
    ENDED = "ended"


@dataclass(eq=False)
class Ticket:
    """One accepted request; its future is set exactly once.

    Either a command to step, or an action that needs the session at rest; while it awaits something, the
    session is busy.
    """

    future: asyncio.Future[Any]
    command: StepCommand | None = None
    action: Callable[[Any, Session], Any] | None = None  # of the manager that has the session then
    reads: bool = False  # the action needs the session's state at hand
    session: Session | None = None
    busy: bool = False  # something is awaited for it: the session's arrival, or an action that takes time

    # Without slots and outside of __init__ these stay with the class until they change: every request has one
    job: Job | None = field(default=None, init=False)
    deadline: float = field(default=float("inf"), init=False)
    timer: asyncio.TimerHandle | None = field(default=None, init=False)
    trace: Trace | None = field(default=None, init=False)  # of the request, if it is traced
    draft: Draft | None = field(default=None, init=False)  # of a watch model's request whose job runs
    #: the session's when this is committed; None: it has none
    carry: NDArray[np.float64] | None = field(default=None, init=False)

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
    newly: bool = False  # its newest arrival opened it
    next_step: int = 0
    epoch: int = 0  # of this replica's claim, if a store keeps it
    saved_step: int = 0  # of its newest snapshot there
    marks: list[tuple[float, int]] | None = None  # where it was when, if its past is kept by time
    life: Life = Life.OPEN
    state: StateHandle = field(init=False)
    current: Ticket | None = None
    waiting: list[Ticket] | None = (
        None  # in order; None, as an empty deque takes 600 bytes, and most are idle
    )

    def __post_init__(self) -> None:
        self.state = StateHandle(name=self.id)

    @property
    def expires_at(self) -> float:
        """On the manager's clock, if nothing comes before."""
        return self.used_at + self.ttl_s

    @property
    def at_rest(self) -> bool:
        return self.current is None and self.waiting is None

    def wait(self, ticket: Ticket) -> None:
        """Behind those that wait already."""
        if self.waiting is None:
            self.waiting = [ticket]
        else:
            self.waiting.append(ticket)

    def next_ticket(self) -> Ticket:
        """Takes out the first that waits; there must be one."""
        waiting = self.waiting
        assert waiting is not None  # noqa: S101
        ticket = waiting.pop(0)
        if not waiting:
            self.waiting = None
        return ticket

    def check_integrity(self, running: Container[Job]) -> None:
        """Raises RuntimeError unless its requests wait for something. running: jobs that are not ended."""
        if self.current is None:
            if self.waiting is not None:
                raise RuntimeError(f"requests of session {self.id} wait for nothing")
            return
        job = self.current.job
        if job is None and not self.current.busy and self.state.place is not Place.STORE:
            raise RuntimeError(f"session {self.id} waits for a state that is here")
        if job is not None and job not in running and job.phase is not Phase.DONE:
            raise RuntimeError(f"session {self.id} waits for a job that nobody runs or commits")

    def end(self) -> None:
        """OPEN to ENDED; a second end is a bug and raises."""
        if self.life is not Life.OPEN:
            raise RuntimeError(f"a session that is {self.life.value} expected no move; ended came")
        self.life = Life.ENDED
