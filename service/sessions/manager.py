"""The sessions of one model in one process: who may step, in which order, and what a retry is answered.

Everything here runs on the event loop's thread and never blocks it, so there are no locks. The engine moves
states; the store keeps what was committed; this file decides.
"""

from __future__ import annotations

import asyncio
import heapq
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from model.bundle import Bundle
from service.engine.engine import Engine
from service.engine.jobs import Job, Phase, Place
from service.engine.loop import EngineLoop
from service.engine.rollouts import Forecast, Generation
from service.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidValue,
    NoCapacity,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    StepConflict,
    Unavailable,
)
from service.sessions.counters import Counters
from service.sessions.replies import Options, Reply, StepCommand
from service.sessions.session import Session, Ticket
from service.sessions.snapshot import Snapshot
from service.sessions.store import Ending, Pending, StepRecord, Store
from service.sessions.window import Committed, ReplayWindow

SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
_ISSUED_ID = re.compile(r"s-([0-9a-f]{8})-[0-9a-f]{16}")
SWEEP_S = 1.0

T = TypeVar("T")
Finished = tuple[Ticket, Job, Reply]


@dataclass(slots=True, frozen=True)
class Limits:
    """sessions: most at a time. queue: most requests accepted and not answered. Times in seconds."""

    sessions: int
    queue: int
    ttl_s: float
    replay_window: int
    durability: str


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
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._engine_loop = EngineLoop(engine, self._on_tick)
        self._sessions: dict[str, Session] = {}
        self._tickets: dict[Job, Ticket] = {}
        self._in_flight = 0
        self._quiet = asyncio.Event()
        # Ids this process issues carry its mark, so that one it never issued is known to be lost, not unknown
        self._mark = secrets.token_hex(4)
        self._expiries: list[tuple[float, int, Session]] = []  # a heap, one entry a session, maybe too early
        self._serial = 0
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def __len__(self) -> int:
        return len(self._sessions)

    def places(self) -> dict[str, int]:
        """Open sessions, by the place of their state."""
        device, host = self.engine.resident, self.engine.on_host
        return {"device": device, "host": host, "fresh": len(self._sessions) - device - host}

    def expires_in(self, session: Session) -> float:
        """Seconds until a session ends if nothing comes before."""
        return session.expires_at - self._clock()

    # Life cycle

    def open(
        self, session_id: str | None = None, ttl_s: float | None = None, durability: str | None = None
    ) -> Session:
        """Opens a session at step 0. Raises SessionExists, NoCapacity, Unavailable or InvalidValue."""
        self._check_accepting()
        if session_id is not None and self._live(session_id) is not None:
            raise SessionExists(f"session {session_id} is open already", session_id=session_id)
        return self._open(session_id, ttl_s, durability)

    def facts(self, session_id: str) -> Session:
        """A live session, to be read. Raises SessionNotFound, SessionExpired or SessionLost."""
        session = self._live(session_id)
        if session is None:
            raise self._absent(session_id)
        return session

    def end(self, session_id: str) -> asyncio.Future[None]:
        """Ends a session when the requests before this one are done."""
        return self._act(session_id, lambda session: self._remove(session, Ending.CLOSED))

    def snapshot(self, session_id: str) -> asyncio.Future[Snapshot]:
        """The state after the requests before this one."""
        return self._act(session_id, self._take_snapshot)

    def restore(self, session_id: str, snapshot: Snapshot) -> asyncio.Future[bool]:
        """Puts a session where the snapshot was; opens it if need be. The future: whether it was opened."""
        self._check_accepting()
        session = self._live(session_id)
        if session is not None:
            return self._act(session_id, lambda session: self._put(session, snapshot, False))
        session = self._open(session_id, None, None)
        future = self._loop.create_future()
        future.set_result(self._put(session, snapshot, True))
        return future

    def fork(self, session_id: str, new_id: str | None, at_step: int | None) -> asyncio.Future[Session]:
        """Opens a new session from this one's state after the requests before this one."""
        if new_id is not None and self._live(new_id) is not None:
            raise SessionExists(f"session {new_id} is open already", session_id=new_id)
        return self._act(session_id, lambda session: self._fork(session, new_id, at_step))

    # Steps

    def step(self, command: StepCommand) -> asyncio.Future[Reply]:
        """Accepts a request; the future is its reply. Cancelling the future before the request is started
        takes it back; after that it is committed, and a retry gets its reply.

        Raises, or the future does: SessionNotFound, SessionExpired, SessionLost, StepConflict, NoCapacity,
        Unavailable, DeadlineExceeded, EngineFailure. In each of these cases the session has not moved.
        """
        self._check_accepting()
        session = self._live(command.session_id)
        if session is None:
            if command.step != 0 or self._ended_how(command.session_id) is not None:
                raise self._absent(command.session_id)
            session = self._open(command.session_id, None, None)
            session.opened_by_step = True
        return self._enqueue(session, Ticket(self._loop.create_future(), command, session=session))

    def predict(self, command: StepCommand) -> asyncio.Future[Reply]:
        """A sequence from zeros, without a session; the command's `session_id` and `step` mean nothing."""
        self._check_accepting()
        ticket = Ticket(self._loop.create_future(), command)
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
        self._sweeper.cancel()
        for session in self._sessions.values():
            for ticket in (session.current, *session.waiting):
                if ticket is not None:
                    ticket.settle(error=self._stopping())

    def check_integrity(self) -> None:
        """Raises RuntimeError unless engine, sessions and tickets agree."""
        self.engine.check_integrity()
        for session in self._sessions.values():
            if session.waiting and session.current is None:
                raise RuntimeError(f"requests of session {session.id} wait for nothing")
            if session.current is not None and session.current.job not in self._tickets:
                raise RuntimeError(f"session {session.id} waits for a job that nobody runs")

    # How: the life cycle

    def _open(self, session_id: str | None, ttl_s: float | None, durability: str | None) -> Session:
        if durability is not None and durability not in self.store.durabilities:
            raise InvalidValue(
                f"durability {durability!r} is not what the store can promise:"
                f" {', '.join(self.store.durabilities)}",
                field="durability",
            )
        if len(self._sessions) >= self.limits.sessions:
            self._sweep_now()
        if len(self._sessions) >= self.limits.sessions:
            self.counters.rejected["sessions"] += 1
            raise NoCapacity(
                f"{len(self._sessions)} sessions are open, which is the most",
                retry_after_s=self._until_next_expiry(),
            )
        session = Session(
            id=session_id or f"s-{self._mark}-{secrets.token_hex(8)}",
            ttl_s=self.limits.ttl_s if ttl_s is None else ttl_s,
            durability=durability or self.limits.durability,
            window=ReplayWindow(self.limits.replay_window),
            opened_at=time.time(),
            used_at=self._clock(),
        )
        self.store.reopen(session.id)
        self._sessions[session.id] = session
        self.counters.opened += 1
        self._serial += 1
        heapq.heappush(self._expiries, (session.expires_at, self._serial, session))
        return session

    def _live(self, session_id: str) -> Session | None:
        session = self._sessions.get(session_id)
        if session is not None and session.at_rest and self._clock() >= session.expires_at:
            self._remove(session, Ending.EXPIRED)
            return None
        return session

    def _remove(self, session: Session, ending: Ending | None) -> None:
        """Ends a session at rest (or in its own action): its state is freed, those who wait are told.
        Without an ending the session never was."""
        session.end()
        self.engine.forget(session.state)
        del self._sessions[session.id]
        if ending is not None:
            self.store.end(session.id, ending)
            self.counters.ended[ending.value] += 1
        waiting, session.waiting = session.waiting, type(session.waiting)()
        for ticket in waiting:
            self._finish(ticket, error=self._absent(session.id))

    def _ended_how(self, session_id: str) -> str | None:
        """expired, lost, or None if the id is as good as new."""
        if self.store.ending(session_id) is Ending.EXPIRED:
            return "expired"
        issued = _ISSUED_ID.fullmatch(session_id)
        return "lost" if issued is not None and issued[1] != self._mark else None

    def _absent(self, session_id: str) -> SessionNotFound | SessionExpired | SessionLost:
        how = self._ended_how(session_id)
        if how == "expired":
            self.counters.lost["expired"] += 1
            return SessionExpired(f"session {session_id} was idle for longer than its time to live")
        if how == "lost":
            self.counters.lost["process"] += 1
            return SessionLost(f"session {session_id} was kept in the memory of a process that ended")
        return SessionNotFound(f"there is no session {session_id}; step 0 opens it")

    def _sweep(self) -> None:
        self._sweep_now()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep_now(self) -> None:
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            _, serial, session = heapq.heappop(self._expiries)
            if self._sessions.get(session.id) is not session:
                continue
            if session.at_rest and session.expires_at <= now:
                self._remove(session, Ending.EXPIRED)
            else:
                due = max(session.expires_at, now + SWEEP_S)
                heapq.heappush(self._expiries, (due, serial, session))

    def _until_next_expiry(self) -> int:
        due = self._expiries[0][0] - self._clock() if self._expiries else 1.0
        return int(min(max(due, 1.0), 60.0))

    # How: actions on a session at rest

    def _act(self, session_id: str, action: Callable[[Session], T]) -> asyncio.Future[T]:
        self._check_accepting()
        session = self._live(session_id)
        if session is None:
            raise self._absent(session_id)
        return self._enqueue(session, Ticket(self._loop.create_future(), action=action, session=session))

    def _take_snapshot(self, session: Session) -> Snapshot:
        b = self.bundle
        return Snapshot(self.engine.read(session.state), session.next_step, b.name, b.version, b.digest)

    def _put(self, session: Session, snapshot: Snapshot, opened: bool) -> bool:
        self.engine.forget(session.state)
        session.state = self.engine.adopt(snapshot.state)
        session.next_step = snapshot.next_step
        session.window = ReplayWindow(self.limits.replay_window)
        session.opened_by_step = False
        return opened

    def _fork(self, session: Session, new_id: str | None, at_step: int | None) -> Session:
        if at_step is not None and at_step != session.next_step:
            raise StepConflict(
                f"the state before step {at_step} is not kept; the next step is {session.next_step}",
                expected_step=session.next_step,
            )
        if new_id is not None and self._live(new_id) is not None:  # opened while this waited its turn
            raise SessionExists(f"session {new_id} is open already", session_id=new_id)
        fork = self._open(new_id, session.ttl_s, session.durability)
        if session.state.place is not Place.FRESH:
            fork.state = self.engine.adopt(self.engine.read(session.state))
        fork.next_step = session.next_step
        return fork

    # How: the way of a request

    def _check_accepting(self) -> None:
        if self.draining:
            self.counters.rejected["draining"] += 1
            raise self._stopping()

    def _stopping(self) -> Unavailable:
        return Unavailable("the service is stopping; the request was not executed", retry_after_s=1)

    def _enqueue(self, session: Session, ticket: Ticket) -> asyncio.Future[Any]:
        try:
            self._accept(ticket)
        except NoCapacity:
            self._unopen(session)
            raise
        session.used_at = self._clock()
        session.waiting.append(ticket)
        if session.current is None:
            self._advance(session)
        return ticket.future

    def _accept(self, ticket: Ticket) -> None:
        if self._in_flight >= self.limits.queue:
            self.counters.rejected["queue"] += 1
            raise NoCapacity(f"{self._in_flight} requests are waiting, which is the most", retry_after_s=1)
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
        while session.waiting and session.current is None:
            ticket = session.waiting.popleft()
            if ticket.future.done():  # cancelled, or too late
                self._finish(ticket)
                continue
            try:
                self._take_up(session, ticket)
            except Exception as error:  # noqa: BLE001  a request's error is its answer, whatever it is
                self._finish(ticket, error=error)
        if session.at_rest:
            self._unopen(session)

    def _take_up(self, session: Session, ticket: Ticket) -> None:
        command = ticket.command
        if command is None:
            assert ticket.action is not None  # noqa: S101  a ticket has one or the other
            self._finish(ticket, ticket.action(session))
        elif command.step is None or command.step == session.next_step:
            session.current = ticket
            self._start(ticket)
        elif command.step > session.next_step:
            self.counters.conflicts["gap"] += 1
            raise StepConflict(
                f"step {command.step} is ahead; the next step is {session.next_step}",
                expected_step=session.next_step,
            )
        else:
            try:
                reply = session.window.answer(command.step, command.steps, command.options, session.next_step)
            except StepConflict:
                self.counters.conflicts["replay"] += 1
                raise
            self.counters.deduplicated += len(command.steps)
            self._finish(ticket, reply)

    def _start(self, ticket: Ticket) -> None:
        command, session = ticket.command, ticket.session
        assert command is not None  # noqa: S101  actions are not started
        ticket.job = Job(
            inputs=command.steps.prepared,
            state=None if session is None else session.state,
            rollout=self._rollout(command.options),
            trace=command.options.gates,
            deadline=ticket.deadline,
            gone=ticket.future.done,
        )
        self._tickets[ticket.job] = ticket
        self._engine_loop.submit(ticket.job)

    def _rollout(self, options: Options) -> Forecast | Generation | None:
        if options.horizon:
            return Forecast(self.bundle.spec, options.horizon)
        if options.generate is not None:
            g = options.generate
            return Generation(g.length, g.temperature, g.top_k, g.seed)
        return None

    def _on_tick(self, ended: list[Job]) -> None:
        tick, counters = self.engine.last_tick, self.counters
        if tick.batch:
            counters.tick_seconds.observe(tick.seconds)
            counters.batch_size.observe(tick.batch)
        finished: list[Finished] = []
        for job in ended:
            ticket = self._tickets.pop(job)
            if job.phase is Phase.DONE:
                counters.queue_seconds.observe(job.started - job.submitted)
                reply = self._reply(ticket, job)
                if ticket.session is None:
                    self.engine.commit(job)
                    self._finish(ticket, reply)
                else:
                    finished.append((ticket, job, reply))
            else:
                failed = job.phase is Phase.FAILED
                error = EngineFailure(str(job.error), retry_after_s=1) if failed else self._too_late()
                self._release(ticket, error)
        if finished:
            self._commit(finished)

    def _commit(self, finished: list[Finished]) -> None:
        """The tick's requests go to the store together; each is acknowledged when they are safe."""
        started = self.engine.clock()
        records = [
            StepRecord(reply.session_id, Committed(ticket.command.steps.raw, reply))
            for ticket, _, reply in finished
            if ticket.command is not None
        ]
        pending = self.store.commit(records)
        if pending is None:
            self._settle(finished, records, started, None)
        else:
            pending.add_done_callback(partial(self._settle, finished, records, started))

    def _settle(
        self, finished: list[Finished], records: list[StepRecord], started: float, pending: Pending
    ) -> None:
        error = pending.exception() if pending is not None else None
        self.counters.commit_seconds.observe(self.engine.clock() - started)
        for (ticket, job, reply), record in zip(finished, records, strict=True):
            session = ticket.session
            assert session is not None  # noqa: S101  predictions are not committed
            if error is not None:
                self.engine.abort(job)
                self._release(
                    ticket, Unavailable(f"the store did not take the step: {error}", retry_after_s=1)
                )
                continue
            self.engine.commit(job)
            session.window.add(record.committed)
            session.next_step = reply.next_step
            session.used_at = self._clock()
            session.opened_by_step = False
            self.counters.steps += reply.next_step - reply.step
            self._release(ticket, None, reply)
        self._engine_loop.wake()

    def _reply(self, ticket: Ticket, job: Job) -> Reply:
        command, session = ticket.command, ticket.session
        assert command is not None  # noqa: S101  only commands have jobs
        rollout, options = job.rollout, command.options
        start = 0 if session is None else session.next_step
        vocabulary = self.bundle.spec.vocabulary
        return Reply(
            session_id=command.session_id,
            step=start,
            next_step=start + len(command.steps),
            outputs=job.result,
            options=options,
            forecast=rollout.result if isinstance(rollout, Forecast) else None,
            generated=(
                "".join(vocabulary[token] for token in rollout.tokens)
                if isinstance(rollout, Generation)
                else None
            ),
            gates=job.trace_result if options.gates else None,
            state=self.engine.read_new(job) if options.state else None,
        )

    def _release(self, ticket: Ticket, error: BaseException | None, reply: Reply | None = None) -> None:
        """The job of a ticket has ended: answers, and lets the next request of the session go on."""
        session = ticket.session
        if session is not None:
            session.current = None
        self._finish(ticket, reply, error)
        if session is not None:
            self._advance(session)

    def _finish(self, ticket: Ticket, result: Any = None, error: BaseException | None = None) -> None:
        """The one place where an accepted request ends."""
        self._in_flight -= 1
        ticket.settle(result, error)
        if self.draining and not self._in_flight:
            self._quiet.set()

    def _unopen(self, session: Session) -> None:
        """Takes back a session that a step opened and that never moved."""
        if session.opened_by_step and session.at_rest and self._sessions.get(session.id) is session:
            self._remove(session, None)
