"""The sessions of one replica among several, or of one that outlives its process: the manager with a store.

A session that is not here is claimed and restored when it is asked for; requests that come meanwhile wait
for it in their order. A step is acknowledged when the store has it. What the store refuses, or does not
answer, ends the copy that is here, and the next request reads the session again: so memory and store never
part.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from model.bundle import Bundle
from service.asked import current_trace
from service.engine.engine import Engine
from service.engine.jobs import COMMITTED, DONE, Job, Place
from service.errors import (
    CellstateError,
    Elsewhere,
    EngineFailure,
    Moving,
    NoCapacity,
    QuotaExceeded,
    SessionDamaged,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
)
from service.sessions.custody import INSIST, TOGETHER, Custody, Upkeep, reason_of, told
from service.sessions.inputs import InputReader
from service.sessions.jobs import check_horizon
from service.sessions.manager import Finished, SessionManager
from service.sessions.memory import Memory, adopt, read
from service.sessions.neighbours import Release
from service.sessions.record import encode
from service.sessions.register import Limits
from service.sessions.replies import Reply
from service.sessions.session import Session, Ticket
from service.sessions.snapshot import Snapshot
from service.sessions.store import MemoryStore, failure_of
from service.sessions.stores.protocol import (
    Ending,
    Entry,
    Fenced,
    Image,
    Leaving,
    Opening,
    Saved,
    Stale,
    Store,
    StoreAway,
    StoreFault,
)
from service.sessions.times import add_commit
from service.sessions.window import ReplayWindow

log = logging.getLogger("cellstate")


@dataclass(slots=True, frozen=True)
class Unsafe:
    """What tests of the tests switch off, to see that they find the damage. Never set otherwise."""

    fence: bool = False  # a replica goes on though its lease ran out
    window: bool = False  # a step that was committed is stepped again


class SharedManager(SessionManager):
    """Create it on the running loop; `start` before it serves; `leave` after `drain`, then `close`."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        store: Store,
        limits: Limits,
        upkeep: Upkeep,
        release: Release,
        clock: Callable[[], float] = time.monotonic,
        unsafe: Unsafe | None = None,
        beside: SharedManager | None = None,
    ) -> None:
        """beside: of a newer version of the model in this replica; they share the lease."""
        super().__init__(bundle, engine, MemoryStore(), limits, clock)
        self._unsafe = unsafe or Unsafe()
        self._runs: dict[Job, asyncio.Future[None]] = {}  # jobs that restore a session
        self.custody: Custody = Custody(
            store,
            bundle,
            engine,
            upkeep,
            self.counters,
            self._run,
            release,
            self._on_lost,
            None if beside is None else beside.custody,
            trusted=not self._unsafe.fence,
        )
        self._reader = InputReader(bundle.spec, 2**31)
        self._newest: SharedManager = self
        self._versions: dict[str, SharedManager] = {bundle.digest: self}  # served here, by digest
        self._register.on_expired = self._on_expired

    def serve_beside(self, newest: SharedManager, versions: dict[str, SharedManager]) -> None:
        """Tells it of the other versions of the model that this replica serves, by digest."""
        self._newest, self._versions = newest, versions

    async def start(self, address: str) -> None:
        """Joins the store, as the replica at that address. Raises StoreError, or InvalidValue if the store
        can't promise the default durability."""
        await self.custody.start(address)
        self.custody.check_durability(self.limits.durability)

    async def leave(self) -> None:
        """Releases every session, for whoever is asked for it next. After `drain`."""
        mine = [session for session in self._register if session.at_rest and self.custody.may_go(session)]
        for n in range(0, len(mine), TOGETHER):
            some = mine[n : n + TOGETHER]
            try:
                await self.custody.let_go(some)
            except Exception as error:  # noqa: BLE001  they come back when the lease has run out
                about = {"event": "not_released", "sessions": len(some)}
                log.warning("sessions were not released: %s", error, extra=about)
            else:
                self.counters.released += len(some)
        if mine:
            about = {"event": "released", "sessions": len(mine), "model": self.bundle.name}
            log.info("sessions are released for others", extra=about)

    async def stop(self) -> None:
        """Ends the work with the store. After `close`."""
        await self.custody.stop()

    # Life cycle

    async def open_session(
        self, session_id: str | None = None, ttl_s: float | None = None, durability: str | None = None
    ) -> Session:
        self._check_accepting()
        self.custody.check_durability(durability)
        opening = self.custody.opening(
            self.limits.ttl_s if ttl_s is None else ttl_s, durability or self.limits.durability
        )
        return await self._open(session_id, opening)

    async def _open(self, session_id: str | None, opening: Opening) -> Session:
        session_id = session_id or self._register.new_id()
        taken = SessionExists(f"session {session_id} is open already", session_id=session_id)
        if self._register.get(session_id) is not None or self._held_beside(session_id) is not None:
            raise taken
        session = self._arrive(session_id, opening, pull=False)
        ticket = Ticket(self._loop.create_future(), action=_itself, session=session)
        try:
            await self._enqueue(session, ticket)
        except Elsewhere:
            raise taken from None
        if not session.newly:
            raise taken
        return session

    async def find(self, session_id: str) -> Session:
        self._check_accepting()
        session = self._register.get(session_id)
        if session is not None and session.at_rest and session.epoch >= 0:
            return session  # to read facts does not put off the session's end
        return await self._act(session_id, _itself)

    def end(self, session_id: str) -> asyncio.Future[None]:
        return self._act(session_id, SharedManager._end)

    async def _end(self, session: Session) -> None:
        await self.custody.end(session, Ending.CLOSED)
        self._close(session)

    def restore(self, session_id: str, snapshot: Snapshot) -> asyncio.Future[bool]:
        self._check_accepting()
        target = self._versions[snapshot.digest]
        session = self._register.get(session_id)
        if session is None:
            session = self._arrive(session_id, target._opening(), pull=False)
        else:
            session.newly = False

        async def put(manager: SharedManager, session: Session) -> bool:
            await target.custody.replace(session, snapshot.next_step, snapshot.memory, keep=False)
            if manager is target:
                return manager._actions.put(session, snapshot, session.newly)
            manager._unload(session)  # the next request finds it to be of the snapshot's version
            return session.newly

        return self._enqueue(session, Ticket(self._loop.create_future(), action=put, session=session))

    def fork(self, session_id: str, new_id: str | None, at_step: int | None) -> asyncio.Future[Session]:
        async def fork(manager: SharedManager, session: Session) -> Session:
            step = session.next_step if at_step is None else at_step
            memory = await manager._memory(session, step)
            saved = None if memory is None else Saved(step, memory.pack())
            opening = manager.custody.opening(session.ttl_s, session.durability, saved)
            return await manager._open(new_id, opening)

        return self._act(session_id, fork, reads=True)

    def rewind(self, session_id: str, step: int) -> asyncio.Future[Session]:
        return self._act(session_id, lambda manager, session: manager._rewind(session, step), reads=True)

    async def _rewind(self, session: Session, step: int) -> Session:
        if step == session.next_step:
            return session
        memory = await self._memory(session, step)
        if memory is None:
            memory = self.custody.zeros()
        await self.custody.replace(session, step, memory, keep=True)
        self._residence.forget(session)
        session.state = adopt(self.engine, memory, session.id)
        session.next_step = step
        session.window = ReplayWindow(self.limits.replay_window, session.window.before(step))
        self._residence.tidy_soon()
        return session

    async def _memory(self, session: Session, step: int) -> Memory | None:
        """What the session remembered before a step, None for nothing. Raises StepConflict."""
        if step > session.next_step:
            self._actions.check_step(session, step)
        if step == session.next_step:
            return None if session.state.place is Place.FRESH else read(self.engine, session.state)
        return await self.custody.state_before(session, step)

    # To and from other replicas

    def hand_over(self, session_id: str) -> asyncio.Future[bool]:
        """Lets go of a session for another replica, after the requests before this one; also while this one
        stops. False if it is in memory alone and would lose what a retry is answered from; those of it are
        passed on."""
        if not self.custody.lease.holds:
            raise _fenced()
        session = self._register.get(session_id)
        if session is None:
            return self._loop.create_task(self.custody.disown(session_id))
        action = SharedManager._hand_over
        return self._enqueue(session, Ticket(self._loop.create_future(), action=action, session=session))

    async def _hand_over(self, session: Session) -> bool:
        if session.durability == "none":
            return False
        await self.custody.let_go([session])
        self.counters.released += 1
        self._unload(session)
        return True

    # How: arrivals

    def _check_accepting(self) -> None:
        super()._check_accepting()
        if not self.custody.lease.holds:
            self.counters.rejected["lease"] += 1
            raise Moving("this replica's lease is being renewed; nothing has happened", retry_after_s=0)

    def _opening(self) -> Opening:
        return self.custody.opening(self.limits.ttl_s, self.limits.durability)

    def _unknown(self, session_id: str, opens: bool, pull: bool) -> Session:
        return self._arrive(session_id, self._opening() if opens else None, pull=pull, by_step=True)

    def _arrive(
        self, session_id: str, opening: Opening | None, *, pull: bool, by_step: bool = False
    ) -> Session:
        """A session that is claimed and restored; its requests wait. by_step: one that expired or was lost is
        not opened again. Raises NoCapacity."""
        self._check_queue()  # now: one that nobody waits for must not be opened
        refusal: QuotaExceeded | None = None
        if opening is not None:
            try:
                self._register.check_quota(session_id)
            except QuotaExceeded as error:  # it may be open, and then it comes: only a new one is refused
                opening, refusal = None, error
        session = self._register.arrive(session_id)
        session.current = Ticket(self._loop.create_future(), busy=True)
        self._begin(self._bring(session, opening, pull, by_step, refusal))
        return session

    async def _bring(
        self,
        session: Session,
        opening: Opening | None,
        pull: bool,
        by_step: bool,
        refusal: QuotaExceeded | None = None,
    ) -> None:
        """refusal: what those who wait are told if there is no such session, which must not be opened."""
        joined, trace, began = self.custody.lease.joined, current_trace(), self.engine.clock()
        try:
            image = await self.custody.claim(session.id, opening, pull, INSIST.get(), by_step)
        except Exception as error:  # noqa: BLE001  those who wait are told, whatever it is
            session.current = None
            why = told(error)
            if refusal is not None and type(error) is SessionNotFound:
                self.counters.rejected["session_quota"] += 1
                why = refusal
            self._unload(session, why, opened=opening is not None)
            return
        if trace is not None:
            trace.add("claim", began, self.engine.clock(), {"store": self.custody.store_kind})
        home = self._versions.get(image.digest, self._newest)
        if home is self:
            await self._settle_in(session, image, opening, joined)
        else:
            self._pass_over(session, image, opening, home, joined)

    async def _settle_in(self, session: Session, image: Image, opening: Opening | None, joined: int) -> None:
        trace, began = current_trace(), self.engine.clock()
        try:
            await self.custody.restore(session, image)
            if joined != self.custody.lease.joined:
                raise Fenced("the lease was lost while the session came")
        except Exception as error:  # noqa: BLE001  those who wait are told, whatever it is
            session.current = None
            self._unload(session, told(error), opened=opening is not None)
            return
        if trace is not None and image.next_step:
            behind = image.next_step - (0 if image.snapshot is None else image.snapshot.step)
            trace.add("restore", began, self.engine.clock(), {"steps": behind})
        session.newly, session.current = image.opened, None
        self.counters.opened += image.opened
        self.counters.claimed += not image.opened
        self._register.settle(session)
        self._residence.tidy_soon()
        self._advance(session)

    def _pass_over(
        self, session: Session, image: Image, opening: Opening | None, home: SharedManager, joined: int
    ) -> None:
        """A session that has come is of another version: that one's manager has it from now on, and all who
        wait for it."""
        waiting, session.waiting = session.waiting or [], None
        session.current = None
        self._register.drop(session)
        try:
            other = home._register.arrive(session.id)
        except NoCapacity as error:
            for ticket in waiting:
                self._finish(ticket, error=error)
            leaving = Leaving(session.id, image.epoch, image.next_step)
            self.custody.in_background(self.custody.store.release([leaving]))
            return
        other.current = Ticket(self._loop.create_future(), busy=True)
        for ticket in waiting:
            self._lend(ticket, home)
            ticket.session = other
            other.wait(ticket)
        home._begin(home._settle_in(other, image, opening, joined))

    def _lend(self, ticket: Ticket, to: SharedManager) -> None:
        """Another version's manager answers this request."""
        self._in_flight -= 1
        to._in_flight += 1
        if self.draining and not self._in_flight:
            self._quiet.set()

    def _held_beside(self, session_id: str) -> SharedManager | None:
        """The manager of another version that has the session."""
        others = (manager for manager in self._versions.values() if manager is not self)
        return next((manager for manager in others if manager.holds(session_id)), None)

    def _reroute(self, ticket: Ticket, session_id: str) -> None:
        to = self._held_beside(session_id)
        if to is None and self._register.get(session_id) is None:
            to = self._newest
        if to is None or to is self:
            super()._reroute(ticket, session_id)
        else:
            self._lend(ticket, to)
            to._reroute(ticket, session_id)

    def _unload(self, session: Session, error: CellstateError | None = None, *, opened: bool = False) -> None:
        """The copy of a session that is here ends. Those who wait are told the error; without one, or from a
        step 0 on that an absent session was not asked to be opened for, they ask again."""
        waiting, session.waiting = session.waiting or [], None
        self._register.drop(session)
        again = error is None
        for ticket in waiting:
            opens = ticket.command is not None and ticket.command.step == 0
            again = again or (isinstance(error, SessionNotFound) and opens and not opened)
            if again and not self.draining:
                self._reroute(ticket, session.id)
            else:
                self._finish(ticket, error=error or self._stopping())

    async def _run(self, job: Job) -> None:
        """Runs a job that no request has asked for, and commits it in the engine."""
        future = self._runs[job] = self._loop.create_future()
        self._engine_loop.submit(job)
        await future

    def _on_run(self, job: Job) -> None:
        future = self._runs.pop(job)
        if job.phase is DONE:
            self.engine.commit(job)
        if future.done():  # nobody waits any more: this replica is stopping
            return
        if job.phase is COMMITTED:
            future.set_result(None)
        else:
            future.set_exception(EngineFailure(str(job.error), retry_after_s=1))

    def _failed(self, session: Session, ticket: Ticket, error: Exception) -> None:
        self._finish(ticket, error=told(error))
        if isinstance(error, Fenced):
            self.custody.lease.lost()
        # Where the store has it now is not known; what is in memory alone is where it was
        unknown = isinstance(error, StoreAway) and session.durability != "none"
        if unknown or isinstance(error, Stale | Fenced):
            self.counters.dropped[reason_of(error)] += 1
            self._unload(session)

    def _count(self, ticket: Ticket, error: BaseException) -> None:
        super()._count(ticket, error)
        if isinstance(error, SessionExpired):
            self.counters.lost["expired"] += 1
        elif isinstance(error, SessionLost):
            self.counters.lost["process"] += 1
        elif isinstance(error, SessionDamaged):
            self.counters.lost["damaged"] += 1

    # How: commits

    def _advance(self, session: Session) -> None:
        super()._advance(session)
        if session.epoch < 0 and session.at_rest and session in self._register:
            self._register.drop(session)

    def _take_up(self, session: Session, ticket: Ticket) -> None:
        if session.epoch < 0:
            raise _fenced()
        command = ticket.command
        if self._unsafe.window and command is not None and (command.step or 0) < session.next_step:
            ticket.command = command = replace(command, step=None)
        if command is not None and len(self._versions) > 1 and command.steps.spec is not self.bundle.spec:
            check_horizon(command.options, self.bundle.spec)
            ticket.command = replace(command, steps=self._reader.again(command.steps))
        super()._take_up(session, ticket)

    def _commit(self, finished: list[Finished]) -> None:
        kept = [one for one in finished if _session(one[0]).durability != "none"]
        if len(kept) < len(finished):
            self._settle_unkept([one for one in finished if _session(one[0]).durability == "none"])
        if not kept:
            return
        started, entries = self.engine.clock(), []
        for ticket, _, reply in kept:
            session, command = _session(ticket), ticket.command
            assert command is not None  # noqa: S101  only commands are finished
            record = encode(command.steps.raw, reply)
            sync = session.durability == "fsync"
            entries.append(Entry(session.id, session.epoch, reply.step, reply.next_step, record, sync))
        try:
            pending = self.custody.store.commit(entries)
        except Exception as error:  # noqa: BLE001  as good as a future that fails: each request must end
            pending = self._loop.create_future()
            pending.set_exception(error)
        if pending is None:
            self._settle_kept(kept, entries, started, None)
        else:
            pending.add_done_callback(partial(self._settle_kept, kept, entries, started))

    def _settle_unkept(self, finished: list[Finished]) -> None:
        """Steps that are in memory alone, if they still are this replica's."""
        now, holds = self._register.clock(), self.custody.lease.holds
        for ticket, job, reply in finished:
            session, command = _session(ticket), ticket.command
            assert command is not None  # noqa: S101
            if not holds or session.epoch < 0:
                self.engine.abort(job)
                session.current = None
                self._finish(ticket, error=_fenced())
                if session.epoch < 0:
                    self._unload(session)
                else:
                    self._advance(session)
                continue
            self._move(ticket, job, reply, encode(command.steps.raw, reply), now)

    def _settle_kept(
        self,
        kept: list[Finished],
        entries: Sequence[Entry],
        started: float,
        pending: asyncio.Future[None] | None,
    ) -> None:
        error = None if pending is None else failure_of(pending)
        ended = self.engine.clock()
        self.counters.commit_seconds.observe(ended - started)
        if self.traced:
            size = sum(len(entry.record) for entry in entries)
            traces = (ticket.trace for ticket, _, _ in kept)
            add_commit(traces, started, ended, self.custody.store_kind, size, error is not None)
        if error is not None:
            self._refused(kept, error)
        else:
            now = self._register.clock()
            for (ticket, job, reply), entry in zip(kept, entries, strict=True):
                self._move(ticket, job, reply, entry.record, now)
                self.counters.commit_bytes += len(entry.record)
            self.custody.keep([_session(ticket) for ticket, _, _ in kept])
        self._engine_loop.wake()

    def _move(self, ticket: Ticket, job: Job, reply: Reply, record: bytes, now: float) -> None:
        session = _session(ticket)
        self.engine.commit(job)
        session.state.carry = ticket.carry
        session.window.keep(record)
        session.next_step, session.used_at = reply.next_step, now
        self.counters.steps += reply.next_step - reply.step
        self._release(ticket, None, reply)

    def _refused(self, kept: list[Finished], error: BaseException) -> None:
        """A commit that failed. If the store said that nothing was done, the sessions are where they were;
        else nobody here knows where they are."""
        if isinstance(error, Fenced):
            self.custody.lease.lost()
        self.counters.commit_failures[reason_of(error)] += 1
        self.custody.commit_failed(error, len(kept))
        for ticket, job, _ in kept:
            self.engine.abort(job)
            session, why = _session(ticket), told(error)
            if isinstance(error, StoreFault):
                self._release(ticket, why)
                continue
            session.current = None
            self._finish(ticket, error=why)
            if isinstance(error, Stale) and error.sessions and session.id not in error.sessions:
                self._advance(session)  # another one's step spoilt the commit
            else:
                self.counters.dropped[reason_of(error)] += 1
                self._unload(session)

    def _on_lost(self) -> None:
        """Another replica has taken over: what is at rest here is dropped, all else when it comes to rest."""
        for session in list(self._register):
            session.epoch = -1
            if session.at_rest:
                self._register.drop(session)

    def _on_expired(self, session: Session) -> None:
        self.custody.in_background(self.custody.end(session, Ending.EXPIRED))

    def close(self) -> None:
        super().close()
        for future in self._runs.values():
            future.cancel()


def _fenced() -> Moving:
    return Moving("the lease ran out during the request; come back", retry_after_s=0)


def _itself(manager: SharedManager, session: Session) -> Session:
    return session


def _session(ticket: Ticket) -> Session:
    assert ticket.session is not None  # noqa: S101  predictions are not committed
    return ticket.session
