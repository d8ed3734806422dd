"""The sessions of one model in one process: who may step, in which order, and what a retry is answered.

Longer than most files here: the way of a request, from its acceptance to its one end, is in one place.

Everything here runs on the event loop's thread and never blocks it, so there are no locks. The engine moves
states; the store keeps what was committed; this file decides.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from model.bundle import Bundle
from service.asked import current_trace
from service.engine.engine import Engine
from service.engine.jobs import DONE, Job, Phase, Place
from service.engine.loop import EngineLoop
from service.errors import (
    CellstateError,
    DeadlineExceeded,
    EngineFailure,
    NoCapacity,
    StepConflict,
    Stopping,
    Unavailable,
    VersionConflict,
)
from service.sessions.actions import Actions
from service.sessions.counters import Counters
from service.sessions.jobs import job_for, reply_of, steps_of, watcher_of
from service.sessions.record import encode
from service.sessions.register import Limits, Register
from service.sessions.replies import PLAIN, Reply, StepCommand
from service.sessions.residence import Residence
from service.sessions.session import Session, Ticket
from service.sessions.snapshot import Snapshot
from service.sessions.store import Ending, Pending, StepRecord, Store, failure_of
from service.sessions.times import add_commit, add_tick

T = TypeVar("T")
Finished = tuple[Ticket, Job, Reply]

#: A request may wait for others as many times as long as it takes itself, however long that is
PATIENCE = 8
#: Most seconds that a client is told to stay away
LONGEST_S = 30


class SessionManager:
    """Create it on the running event loop that will serve; `close` before the loop ends."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        store: Store,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundle, self.engine, self.store, self.limits = bundle, engine, store, limits
        self.counters = Counters()
        self.draining = False
        self.traced = False  # whether any request may be
        self._loop = asyncio.get_running_loop()
        self._residence = Residence(engine, store, limits.host_sessions, self.counters, self._on_fetched)
        self._register = Register(self._residence, store, limits, self.counters, clock)
        self._actions = Actions(bundle, engine, self._register, self._residence, limits)
        self._engine_loop = EngineLoop(engine, self._on_tick, self._residence.tidy_soon)
        self._watcher = watcher_of(bundle.spec)
        self._tickets: dict[Job, Ticket] = {}
        self._works: set[asyncio.Task[None]] = set()  # arrivals, and actions that take time
        self._in_flight = 0
        self._quiet = asyncio.Event()

    def __len__(self) -> int:
        return len(self._register)

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and are not answered."""
        return self._in_flight

    def busy(self) -> bool:
        """Whether work that can wait should: see EngineLoop."""
        return self._engine_loop.busy()

    def expect(self) -> None:
        """A request was read: see EngineLoop."""
        self._engine_loop.expect()

    def holds(self, session_id: str) -> bool:
        """Whether the session is here, or on its way."""
        return self._register.get(session_id) is not None

    def ids(self) -> set[str]:
        """Of the open sessions."""
        return {session.id for session in self._register}

    def open_in(self, namespace: str) -> int:
        """Sessions of a namespace that are here."""
        return self._register.in_namespace[namespace]

    def limit_namespaces(self, full: Callable[[str], bool]) -> None:
        """full: whether a namespace has as many sessions as it may have."""
        self._register.full = full

    def new_id(self) -> str:
        """An id that nobody has."""
        return self._register.new_id()

    def places(self) -> dict[str, int]:
        """Open sessions, by the place of their state."""
        device, host, store = self.engine.resident, self.engine.on_host, self.engine.host.stored
        fresh = max(0, len(self) - device - host - store)  # a fork's state may be here before its session
        return {"device": device, "host": host, "store": store, "fresh": fresh}

    def expires_in(self, session: Session) -> float:
        """Seconds until a session ends if nothing comes before."""
        return session.expires_at - self._register.clock()

    # Life cycle

    def open(
        self, session_id: str | None = None, ttl_s: float | None = None, durability: str | None = None
    ) -> Session:
        """Opens a session at step 0. Raises SessionExists, NoCapacity, QuotaExceeded, Unavailable or
        InvalidValue."""
        self._check_accepting()
        return self._register.open(session_id, ttl_s, durability)

    async def open_session(
        self, session_id: str | None = None, ttl_s: float | None = None, durability: str | None = None
    ) -> Session:
        """The same, where it may take a while."""
        return self.open(session_id, ttl_s, durability)

    def facts(self, session_id: str) -> Session:
        """A live session, to be read. Raises SessionNotFound, SessionExpired or SessionLost."""
        session = self._register.get(session_id)
        if session is None:
            raise self._register.absent(session_id)
        return session

    async def find(self, session_id: str) -> Session:
        """The same, where it may take a while."""
        return self.facts(session_id)

    def end(self, session_id: str) -> asyncio.Future[None]:
        """Ends a session when the requests before this one are done."""
        return self._act(session_id, lambda manager, session: manager._close(session))

    def snapshot(self, session_id: str) -> asyncio.Future[Snapshot]:
        """The state after the requests before this one."""
        return self._act(
            session_id, lambda manager, session: manager._actions.take_snapshot(session), reads=True
        )

    def restore(self, session_id: str, snapshot: Snapshot) -> asyncio.Future[bool]:
        """Puts a session where the snapshot was; opens it if need be. The future: whether it was opened."""
        self._check_accepting()
        session = self._register.get(session_id)
        if session is not None:
            return self._act(
                session_id, lambda manager, session: manager._actions.put(session, snapshot, False)
            )
        future = self._loop.create_future()
        future.set_result(self._actions.put(self._register.open(session_id), snapshot, True))
        return future

    def fork(self, session_id: str, new_id: str | None, at_step: int | None) -> asyncio.Future[Session]:
        """Opens a new session from this one's state after the requests before this one."""
        return self._act(
            session_id,
            lambda manager, session: manager._actions.fork(session, new_id, at_step),
            reads=True,
        )

    def rewind(self, session_id: str, step: int) -> asyncio.Future[Session]:
        """Puts a session back to where it was before a step, after the requests before this one."""
        return self._act(
            session_id, lambda manager, session: manager._actions.rewind(session, step), reads=True
        )

    def next_step(self, session_id: str) -> int | None:
        """Where a session is, if it is here."""
        session = self._register.get(session_id)
        return None if session is None else session.next_step

    def replies(self, session_id: str, step: int) -> asyncio.Future[list[Reply]]:
        """What was answered from `step` on, for a stream that goes on after a break. Raises StepConflict if
        that is not kept any more."""
        return self._act(session_id, lambda manager, session: manager._actions.replies(session, step))

    # Steps

    def step(self, command: StepCommand, *, pull: bool = True, insist: bool = False) -> asyncio.Future[Reply]:
        """Accepts a request; the future is its reply. Cancelling the future before the request is started
        takes it back; after that it is committed, and a retry gets its reply.

        pull: whether a session that another replica owns is brought here.

        Raises, or the future does: SessionNotFound, SessionExpired, SessionLost, StepConflict, NoCapacity,
        Unavailable, DeadlineExceeded, EngineFailure. In each of these cases the session has not moved.
        """
        self._check_accepting()
        session = self._register.get(command.session_id)
        if len(command.steps) > 1 or command.options is not PLAIN:
            self._check_wait(command, session)
        if session is None:
            session = self._unknown(command.session_id, command.step == 0, pull)
        ticket = Ticket(self._loop.create_future(), command, session=session)
        if self.traced:
            ticket.trace = current_trace()
        return self._enqueue(session, ticket)

    def predict(self, command: StepCommand) -> asyncio.Future[Reply]:
        """A sequence from zeros, without a session; the command's `session_id` and `step` mean nothing."""
        self._check_accepting()
        self._check_wait(command, None)
        ticket = Ticket(self._loop.create_future(), command)
        if self.traced:
            ticket.trace = current_trace()
        self._accept(ticket)
        self._start(ticket)
        return ticket.future

    # Stopping

    async def drain(self, timeout_s: float) -> bool:
        """Takes nothing more, and waits until what was accepted is answered. False if time ran out."""
        self.draining = True
        if self._in_flight:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def close(self) -> None:
        """Stops the clockwork. Requests still in flight are told that the service is stopping."""
        self.draining = True
        self._register.close()
        for work in self._works:
            work.cancel()
        for session in self._register:
            for ticket in session.waiting or ():
                ticket.settle(error=self._stopping())
        self._residence.close(self._stopping())
        during = Stopping("the service stopped during the request", retry_after_s=1)
        for session in self._register:
            if session.current is not None and session.current.busy and session.current.action is not None:
                session.current.settle(error=during)
        for ticket in self._tickets.values():
            ticket.settle(error=during)

    def check_integrity(self) -> None:
        """Raises RuntimeError unless engine, sessions and tickets agree."""
        self.engine.check_integrity()
        self._residence.check_integrity(self._register)
        for session in self._register:
            session.check_integrity(self._tickets)

    # How: actions on a session at rest

    def _unknown(self, session_id: str, opens: bool, pull: bool) -> Session:
        """A session that is not here: opened by its step 0, if it may be. Raises what `step` raises."""
        if not opens or not self._register.may_open(session_id):
            raise self._register.absent(session_id)
        session = self._register.open(session_id)
        session.opened_by_step = True
        return session

    def _act(
        self,
        session_id: str,
        action: Callable[[Any, Session], T] | Callable[[Any, Session], Coroutine[Any, Any, T]],
        *,
        reads: bool = False,
    ) -> asyncio.Future[T]:
        """action: gets the manager that has the session when its turn comes, and the session."""
        self._check_accepting()
        session = self._register.get(session_id)
        if session is None:
            session = self._unknown(session_id, False, False)
        ticket = Ticket(self._loop.create_future(), action=action, reads=reads, session=session)
        return self._enqueue(session, ticket)

    def _close(self, session: Session) -> None:
        self._register.remove(session, Ending.CLOSED)
        waiting, session.waiting = session.waiting, None
        for ticket in waiting or ():
            self._reroute(ticket, session.id)

    def _reroute(self, ticket: Ticket, session_id: str) -> None:
        """A request whose session ended before its turn: step 0 opens the next one, all else is told."""
        session = self._register.get(session_id)
        if session is None:
            opens = ticket.command is not None and ticket.command.step == 0
            try:
                session = self._unknown(session_id, opens, True)
            except CellstateError as error:
                self._finish(ticket, error=error)
                return
        ticket.session = session
        session.wait(ticket)
        if session.current is None:
            self._advance(session)

    # How: the way of a request

    def _check_accepting(self) -> None:
        if self.draining:
            self.counters.rejected["draining"] += 1
            raise self._stopping()

    def _stopping(self) -> Stopping:
        return Stopping("the service is stopping; the request was not executed", retry_after_s=1)

    def _enqueue(self, session: Session, ticket: Ticket) -> asyncio.Future[Any]:
        try:
            self._accept(ticket)
        except NoCapacity:
            self._unopen(session)
            raise
        session.used_at = self._register.clock()
        if session.current is None and session.waiting is None:
            self._try(session, ticket)
        else:
            session.wait(ticket)
        if session.current is None:
            self._advance(session)
        return ticket.future

    def _check_queue(self) -> None:
        if self._in_flight >= self.limits.queue:
            self.counters.rejected["queue"] += 1
            raise NoCapacity(f"{self._in_flight} requests are waiting, which is the most", retry_after_s=1)

    def _check_wait(self, command: StepCommand, session: Session | None) -> None:
        """Raises NoCapacity if the request would wait too long for those before it. A retry does not wait;
        what is new may wait half as long as what goes on."""
        if session is not None and command.step is not None and command.step < session.next_step:
            return
        steps, trace = steps_of(command, self.bundle.spec), command.options.gates
        wait = self.engine.wait(steps, trace)
        most = max(self.limits.wait_s, PATIENCE * self.engine.duration(steps, trace))
        if wait > (most if session is not None else most / 2):
            self.counters.rejected["wait"] += 1
            raise NoCapacity(
                f"the steps asked for before would keep this request waiting for {wait:.1f} s",
                retry_after_s=min(math.ceil(wait), LONGEST_S),
            )

    def _accept(self, ticket: Ticket) -> None:
        self._check_queue()
        self._in_flight += 1
        if ticket.command is not None and ticket.command.timeout_s is not None:
            ticket.deadline = self.engine.clock() + ticket.command.timeout_s
            ticket.timer = self._loop.call_later(ticket.command.timeout_s, self._on_timeout, ticket)

    def _on_timeout(self, ticket: Ticket) -> None:
        if ticket.job is None or ticket.job.phase is Phase.WAITING:
            ticket.settle(error=self._too_late())  # its place in the queue is taken back when its turn comes

    def _too_late(self) -> DeadlineExceeded:
        self.counters.rejected["deadline"] += 1
        return DeadlineExceeded("the deadline passed before the request was started; nothing has happened")

    def _advance(self, session: Session) -> None:
        """Takes up the requests that wait for a session at rest, until one of them moves it."""
        while session.waiting is not None and session.current is None:
            self._try(session, session.next_ticket())
        if session.at_rest:
            self._unopen(session)

    def _try(self, session: Session, ticket: Ticket) -> None:
        if ticket.future.done():  # cancelled, or too late
            self._finish(ticket)
            return
        try:
            self._take_up(session, ticket)
        except Exception as error:  # noqa: BLE001  a request's error is its answer, whatever it is
            self._finish(ticket, error=error)

    def _on_fetched(self, session: Session, ticket: Ticket, error: BaseException | None) -> None:
        """The state of a session that waited for it is back; or not, and the session is where it was."""
        session.current = None
        if error is None:
            self._try(session, ticket)
        else:
            away = Unavailable(f"the store did not give the session's state: {error}", retry_after_s=1)
            self._finish(ticket, error=away)
        self._advance(session)

    def _take_up(self, session: Session, ticket: Ticket) -> None:
        command, stored = ticket.command, session.state.place is Place.STORE
        if command is None:
            assert ticket.action is not None  # noqa: S101  a ticket has one or the other
            if stored and ticket.reads:
                session.current = ticket
                self._residence.fetch(session, ticket)
            else:
                result = ticket.action(self, session)
                if asyncio.iscoroutine(result):
                    session.current, ticket.busy = ticket, True
                    self._begin(self._carry_out(session, ticket, result))
                else:
                    self._finish(ticket, result)
        elif command.step is None or command.step == session.next_step:
            session.current = ticket
            if stored:
                self._residence.fetch(session, ticket)
            else:
                self._start(ticket)
        elif command.step > session.next_step:
            self.counters.conflicts["gap"] += 1
            raise StepConflict(
                f"step {command.step} is ahead; the next step is {session.next_step}",
                expected_step=session.next_step,
            )
        else:
            try:
                reply = session.window.answer(
                    session.id, command.step, command.steps, command.options, session.next_step
                )
            except StepConflict:
                self.counters.conflicts["replay"] += 1
                raise
            self.counters.deduplicated += len(command.steps)
            self._finish(ticket, reply)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)

    async def _carry_out(self, session: Session, ticket: Ticket, work: Awaitable[Any]) -> None:
        """An action that takes time; the session is busy with it meanwhile."""
        try:
            result = await work
        except Exception as error:  # noqa: BLE001  a request's error is its answer, whatever it is
            session.current = None
            self._failed(session, ticket, error)
        else:
            session.current = None
            self._finish(ticket, result)
        if session in self._register:
            self._advance(session)

    def _failed(self, session: Session, ticket: Ticket, error: Exception) -> None:
        """An action that takes time raised."""
        if not isinstance(error, CellstateError):
            error = EngineFailure(f"{type(error).__name__}: {error}", retry_after_s=1)
        self._finish(ticket, error=error)

    def _start(self, ticket: Ticket) -> None:
        command = ticket.command
        assert command is not None  # noqa: S101  actions are not started
        ticket.job = job_for(ticket, command, self.bundle.spec, self._watcher)
        self._tickets[ticket.job] = ticket
        self._engine_loop.submit(ticket.job)

    def _on_tick(self, ended: list[Job]) -> None:
        tick, counters = self.engine.last_tick, self.counters
        if tick.batch:
            counters.tick_seconds.observe(tick.seconds)
            counters.batch_size.observe(tick.batch)
            counters.engine_steps += tick.steps
        finished: list[Finished] = []
        for job in ended:
            ticket = self._tickets.pop(job, None)
            if ticket is None:
                self._on_run(job)
            elif job.phase is DONE:
                counters.queue_seconds.observe(job.started - job.submitted)
                assert ticket.command is not None  # noqa: S101  only commands have jobs
                try:
                    spec, watcher = self.bundle.spec, self._watcher
                    reply = reply_of(ticket, ticket.command, job, self.engine, spec, watcher)
                except Exception as error:  # noqa: BLE001  the tick's other requests must end all the same
                    self.engine.abort(job)
                    self._release(ticket, EngineFailure(f"{type(error).__name__}: {error}", retry_after_s=1))
                    continue
                if ticket.session is None:
                    if ticket.trace is not None:
                        add_tick([(ticket.trace, job)], tick, self.engine.clock())
                    self.engine.commit(job)
                    counters.predicted += len(ticket.command.steps)
                    self._finish(ticket, reply)
                else:
                    finished.append((ticket, job, reply))
            else:
                self._release(ticket, self._why_not(ticket, job))
        if finished:
            if self.traced:
                add_tick(((ticket.trace, job) for ticket, job, _ in finished), tick, self.engine.clock())
            self._commit(finished)
        self._residence.tidy_soon()

    def _on_run(self, job: Job) -> None:
        """A job ended that is no request."""
        raise RuntimeError("a job ended that nobody has asked for")

    def _why_not(self, ticket: Ticket, job: Job) -> CellstateError | None:
        if job.phase is Phase.FAILED:
            return EngineFailure(str(job.error), retry_after_s=1)
        return None if ticket.future.done() else self._too_late()

    def _commit(self, finished: list[Finished]) -> None:
        """The tick's requests go to the store together; each is acknowledged when they are safe."""
        started = self.engine.clock()
        records: list[StepRecord] = []
        try:
            for ticket, _, reply in finished:
                assert ticket.command is not None  # noqa: S101  only commands are finished
                records.append((reply.session_id, encode(ticket.command.steps.raw, reply)))
            pending = self.store.commit(records)
        except Exception as error:  # noqa: BLE001  as good as a future that fails: each request must end
            pending = self._loop.create_future()
            pending.set_exception(error)
        if pending is None:
            self._settle(finished, records, started, None)
        else:
            pending.add_done_callback(partial(self._settle, finished, records, started))

    def _settle(
        self, finished: list[Finished], records: list[StepRecord], started: float, pending: Pending
    ) -> None:
        error = None if pending is None else failure_of(pending)
        ended = self.engine.clock()
        self.counters.commit_seconds.observe(ended - started)
        if self.traced:
            traces = (ticket.trace for ticket, _, _ in finished)
            add_commit(traces, started, ended, "memory", 0, error is not None)
        now = self._register.clock()
        if error is not None:
            for ticket, job, _ in finished:
                self.engine.abort(job)
                self._release(
                    ticket, Unavailable(f"the store did not take the step: {error}", retry_after_s=1)
                )
            self.counters.commit_failures["other"] += 1
            self._engine_loop.wake()
            return
        for (ticket, job, reply), (_, record) in zip(finished, records, strict=True):
            session = ticket.session
            assert session is not None  # noqa: S101  predictions are not committed
            self.engine.commit(job)
            session.state.carry = ticket.carry
            session.window.keep(record)
            session.next_step = reply.next_step
            session.used_at = now
            session.opened_by_step = False
            self.counters.steps += reply.next_step - reply.step
            self._release(ticket, None, reply)
        self._engine_loop.wake()

    def _release(self, ticket: Ticket, error: BaseException | None, reply: Reply | None = None) -> None:
        """The job of a ticket has ended: answers, and lets the next request of the session go on."""
        session = ticket.session
        if session is not None:
            session.current = None
        self._finish(ticket, reply, error)
        if session is not None and (session.waiting is not None or session.opened_by_step):
            self._advance(session)

    def _finish(self, ticket: Ticket, result: Any = None, error: BaseException | None = None) -> None:
        """The one place where an accepted request ends."""
        self._in_flight -= 1
        if error is not None:
            self._count(ticket, error)
        ticket.settle(result, error)
        if self.draining and not self._in_flight:
            self._quiet.set()

    def _count(self, ticket: Ticket, error: BaseException) -> None:
        """Of the ways to fail, those that are not counted where they are found."""
        if isinstance(error, StepConflict) and ticket.command is None:
            self.counters.conflicts["history"] += 1
        elif isinstance(error, VersionConflict):
            self.counters.conflicts["version"] += 1

    def _unopen(self, session: Session) -> None:
        """Takes back a session that a step opened and that never moved."""
        if session.opened_by_step and session.at_rest and session in self._register:
            self._register.remove(session, None)
