"""The sessions of this replica and the store: claimed, restored, committed, saved and released.

What a replica has of a session in memory is a copy: the store's is the session. A commit that is refused, or
whose outcome is not known, ends the copy, and the next request reads the session again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from model.bundle import Bundle
from model.config import ModelSpec
from model.versions import order
from service.engine.engine import Engine
from service.engine.jobs import Job, Place, StateHandle
from service.errors import (
    CellstateError,
    Elsewhere,
    InvalidValue,
    Moving,
    SessionDamaged,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    StepConflict,
    Unavailable,
    VersionConflict,
)
from service.logs import Repeated
from service.sessions.counters import Counters
from service.sessions.inputs import InputReader, same_time
from service.sessions.jobs import drafted, watcher_of
from service.sessions.lease import Lease
from service.sessions.memory import Form, Memory, adopt, read
from service.sessions.neighbours import Neighbours, Release
from service.sessions.record import CorruptRecord, check, raw_inputs, span
from service.sessions.retention import Retention
from service.sessions.session import Session
from service.sessions.stores.protocol import (
    Absent,
    Ending,
    Fenced,
    Image,
    Keeping,
    Leaving,
    Opening,
    Rewriting,
    Saved,
    Stale,
    Store,
    StoreAway,
    StoreError,
    StoreFault,
)
from service.sessions.window import ReplayWindow

log = logging.getLogger("cellstate")

#: A snapshot is due after so many steps: it adds 32 bytes and a quarter of a microsecond to a step of a 2x256
#: LSTM, where running 128 steps again takes milliseconds.
SNAPSHOT_STEPS = 128
#: A session that moved less than so long ago stays where it is: its requests are passed on to its owner.
SETTLED_S = 1.0
#: Beyond the owner's lease, so long a request waits for a session whose owner does not answer.
PATIENCE_S = 1.0
#: How often a replica looks for sessions that nobody has come back for, on average.
SWEEP_S = 30.0
#: Sessions released in one go.
TOGETHER = 256
#: How many steps cost as much to run again as a snapshot costs to write, until both were measured.
STEPS_OF_A_WRITE = 16

#: Whether this request's session is to be had whatever it takes: the replica that owns it did not answer.
INSIST: ContextVar[bool] = ContextVar("insist", default=False)


@contextmanager
def insisting() -> Iterator[None]:
    """Requests that are made inside insist."""
    token = INSIST.set(True)
    try:
        yield
    finally:
        INSIST.reset(token)


Run = Callable[[Job], Awaitable[None]]


@dataclass(slots=True, frozen=True)
class Upkeep:
    """history: what can be forked from or gone back to, at least. upgrade: what becomes of a session of
    another version of the model: pin, replay or reset. specs: of the versions that are known, by digest."""

    window: int
    history: Retention
    upgrade: str
    specs: Mapping[str, ModelSpec] = field(default_factory=dict)


class Custody:
    """Of one model in one replica. run: runs a job on the engine to its end, and commits it there. release:
    asks the replica at an address to let go of a session: whether it did; None if there was no answer.
    beside: of a newer version of the model in this replica, whose lease serves both."""

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        engine: Engine,
        upkeep: Upkeep,
        counters: Counters,
        run: Run,
        release: Release,
        on_lost: Callable[[], None],
        beside: Custody | None = None,
        *,
        trusted: bool = True,
    ) -> None:
        self.store_kind = type(store).__name__.removesuffix("Store").lower()
        self.store, self._bundle, self._engine, self._upkeep = store, bundle, engine, upkeep
        self._counters, self._run, self._neighbours = counters, run, Neighbours(release)
        self._reader, self._form = InputReader(bundle.spec, 1), Form.of(bundle.spec)
        self._watcher = watcher_of(bundle.spec)
        self._leads = beside is None
        self.lease: Lease = (
            Lease(store, on_lost, trusted=trusted) if beside is None else beside.lease.share(on_lost)
        )
        self._loop = asyncio.get_running_loop()
        self._address = ""
        self._sweeping: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._repeated = Repeated(log)
        self._replayed = self._written = 0.0  # seconds, of a step run again and of a snapshot, on average

    async def start(self, address: str) -> None:
        """Joins the store. Raises StoreError."""
        self._address = address
        if self._leads:
            await self.lease.take(address)
            self._sweeping = self._loop.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Ends what nobody has come back for, now and then."""
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(0.5, 1.5))  # noqa: S311  replicas take turns
            await _quietly(self.store.sweep(), self._repeated)

    async def stop(self) -> None:
        """Leaves the store; sessions that were not released are as if the replica had died."""
        for task in (*self._tasks, *([self._sweeping] if self._sweeping else [])):
            task.cancel()
        if self._leads:
            await self.lease.give_up()
            await self.store.close()

    def opening(self, ttl_s: float, durability: str, snapshot: Saved | None = None) -> Opening:
        return Opening(ttl_s, durability, self._bundle.version, self._bundle.digest, snapshot)

    # A session comes

    async def claim(
        self, session_id: str, opening: Opening | None, pull: bool, insist: bool, by_step: bool
    ) -> Image:
        """Makes the session this replica's. opening: opens an absent one; by_step: not if it expired or was
        lost, which its client must learn first. pull: takes it over from another one that lives, unless it
        has just moved there; insist: even then. Raises Elsewhere, SessionNotFound, SessionExpired,
        SessionLost or Moving."""
        deadline = self._loop.time() + self.store.lease_s + PATIENCE_S
        window = max(self._upkeep.window, 1)
        ask, owner = None if by_step else opening, ""
        handed_over = False
        while True:
            found = await self.store.claim(session_id, ask, window)
            if isinstance(found, Image):
                if not found.opened and found.idle_s >= found.ttl_s:
                    await self.store.end(session_id, found.epoch, Ending.EXPIRED)
                    self._tell(logging.DEBUG, "expired", "a session has expired", session=session_id)
                    continue
                if handed_over or found.taken:
                    self._counters.takeovers["lease" if found.taken else "handed over"] += 1
                    self._came(session_id, owner, taken=found.taken)
                return found
            if isinstance(found, Absent):
                known = found.ending in (Ending.EXPIRED, Ending.LOST)
                if ask is not None or opening is None or known:
                    raise self._absent(session_id, found.ending)
                ask = opening
                continue
            mine = found.address == self._address  # a former process of this address: it can't answer
            settled = found.held_s >= SETTLED_S
            if not mine and not (insist or (pull and settled)):
                raise Elsewhere(found.address)
            owner = found.address
            let_go = None if mine else await self._neighbours.release(found, session_id)
            handed_over = bool(let_go)
            if let_go:
                continue
            if let_go is False:
                raise Elsewhere(found.address)
            if self._loop.time() > deadline:
                raise Moving(f"the replica that owns session {session_id} does not answer", retry_after_s=1)
            await self._neighbours.wait(found)

    def _came(self, session_id: str, owner: str, *, taken: bool) -> None:
        event, told = "moved", "a session came from another replica"
        if taken:
            event, told = "taken_over", "a session was taken over from a replica that is gone"
        self._tell(logging.INFO, event, told, session=session_id, owner=owner)

    def _tell(self, level: int, event: str, message: str, **about: str) -> None:
        """What may happen to thousands of sessions in a second: the first one's line, and how many more."""
        model = self._bundle.name
        if log.isEnabledFor(logging.DEBUG):
            log.log(level, message, extra={"event": event, "model": model, **about})
        else:
            self._repeated.tell(event, level, message, event=event, model=model, **about)

    def _absent(self, session_id: str, ending: Ending | None) -> CellstateError:
        if ending is Ending.EXPIRED:
            return SessionExpired(f"session {session_id} was idle for longer than its time to live")
        if ending is Ending.LOST:
            return SessionLost(f"session {session_id} was kept in the memory of a process that ended")
        return SessionNotFound(f"there is no session {session_id}; step 0 opens it")

    async def restore(self, session: Session, image: Image) -> None:
        """Makes the session what the image says. Raises SessionDamaged or Unavailable; its state is then
        untouched."""
        session.epoch, session.ttl_s, session.durability = image.epoch, image.ttl_s, image.durability
        session.opened_at, session.next_step = image.opened_at, image.next_step
        try:
            if image.digest != self._bundle.digest:
                await self._upgrade(session, image)
                return
            saved = image.snapshot
            session.saved_step = 0 if saved is None else saved.step
            behind = [record for record in image.records if span(record)[1] > session.saved_step]
            session.state = await self._rebuilt(session.id, saved, behind, image.next_step)
            self._fill_window(session, image)
        except CorruptRecord as error:
            raise SessionDamaged(f"session {session.id} can't be restored: {error}") from error

    def _fill_window(self, session: Session, image: Image) -> None:
        window = self._upkeep.window
        newest = [record for record in image.records if span(record)[1] > image.next_step - window]
        for record in newest:
            check(record, session.id)  # a damaged one is found now and not when a retry wants it
        session.window = ReplayWindow(window, newest)

    async def _rebuilt(
        self, session_id: str, saved: Saved | None, records: Sequence[bytes], step: int
    ) -> StateHandle:
        """The state before `step`: a snapshot, and the records behind it run again."""
        base = at = 0 if saved is None else saved.step
        size, parts = self._reader.step_bytes, []
        for record in records:
            first, end = span(record)
            if first > at or end <= at:
                raise CorruptRecord(f"the journal of session {session_id} has no step {at}")
            raw = raw_inputs(record, session_id)
            if len(raw) != (end - first) * size:
                raise CorruptRecord(f"step {first} of session {session_id} is of another width")
            end = min(end, step)
            parts.append(raw[(at - first) * size : (end - first) * size])
            at = end
            if at == step:
                break
        if at != step:
            raise CorruptRecord(f"the journal of session {session_id} ends at step {at}, not {step}")
        try:
            steps = self._reader.prepared(
                b"".join(parts)
            )  # all at once: one by one it takes as long as to run
        except ValueError as error:
            raise CorruptRecord(
                f"a step after {base} of session {session_id} does not fit: {error}"
            ) from error
        if saved is None:
            state = StateHandle(name=session_id)
        else:
            state = adopt(self._engine, self._form.unpack(saved.data, session_id), session_id)
        if len(steps):
            draft = None
            if self._watcher is not None:
                steps, draft = drafted(self._watcher, state, b"".join(parts))
            job = Job(steps, state)
            began = self._loop.time()
            try:
                await self._run(job)
            except BaseException:
                if state.job is None:  # else the engine still has it, and this replica is stopping
                    self._engine.forget(state)
                raise
            if self._watcher is not None and draft is not None:
                _, state.carry = self._watcher.after(draft, job.result)
            self._replayed = _average(self._replayed, (self._loop.time() - began) / len(job.inputs))
            self._counters.replayed += len(job.inputs)
        return state

    async def _upgrade(self, session: Session, image: Image) -> None:
        """A session of another version of the model, which is not served here: it waits, or goes on with this
        one. Raises Unavailable or VersionConflict; the session is nobody's then, and as it was."""
        try:
            ahead = order(image.version) > order(self._bundle.version)
            if ahead or self._upkeep.upgrade == "pin":
                raise Unavailable(
                    f"session {session.id} is of version {image.version} of the model, which is not served"
                    f" here{' yet, or no more' if ahead else ''}",
                    retry_after_s=1,
                )
            if self._upkeep.upgrade == "replay":
                state = await self._replayed_whole(session, image)
            else:
                state = adopt(self._engine, self.zeros(), session.id)
        except BaseException:
            with contextlib.suppress(StoreError):
                await self.store.release([Leaving(session.id, session.epoch, image.next_step)])
            raise
        saved = Saved(image.next_step, read(self._engine, state).pack())
        try:
            await self.store.rewrite(self._rewriting(session, saved, keep=True, snapshots=False))
            self._fill_window(session, image)
        except BaseException:
            self._engine.forget(state)
            raise
        session.state, session.saved_step = state, image.next_step
        self._counters.upgraded[self._upkeep.upgrade] += 1
        told = "a session of another version goes on with this one"
        versions = {"version": self._bundle.version, "before": image.version}
        self._tell(logging.INFO, "upgraded", told, session=session.id, **versions)

    async def _replayed_whole(self, session: Session, image: Image) -> StateHandle:
        """The state that this version of the model comes to by all that is kept of the session's inputs."""
        whole = await self.store.claim(session.id, None, 2**62)
        if not isinstance(whole, Image):
            raise Moving(f"session {session.id} has just moved; come back", retry_after_s=0)
        session.epoch, records = whole.epoch, whole.records
        before, spec = self._upkeep.specs.get(image.digest), self._bundle.spec
        if before is not None and before.vocabulary != spec.vocabulary:
            raise self._unlike(session.id, image.version, "vocabulary")
        if before is not None and not same_time(before, spec):
            raise self._unlike(session.id, image.version, "time among its inputs")
        width = len(spec.inputs)
        for record in records if width else ():
            first, end = span(record)
            if len(raw_inputs(record, session.id)) != (end - first) * width * 8:
                raise self._unlike(session.id, image.version, "number of inputs")
        first = span(records[0])[0] if records else image.next_step
        return await self._rebuilt(session.id, Saved(first, self.zeros().pack()), records, image.next_step)

    def _unlike(self, session_id: str, version: str, what: str) -> VersionConflict:
        return VersionConflict(
            f"session {session_id} is of version {version} of the model, which has another {what} than"
            f" version {self._bundle.version}: its history can't be replayed",
            version=version,
        )

    def _rewriting(self, session: Session, saved: Saved, *, keep: bool, snapshots: bool) -> Rewriting:
        b = self._bundle
        return Rewriting(session.id, session.epoch, saved.step, b.version, b.digest, saved, keep, snapshots)

    # Snapshots

    def keep(self, sessions: Sequence[Session]) -> None:
        """Takes snapshots of sessions that have just moved, and saves them in its own time."""
        due = [session for session in sessions if session.next_step - session.saved_step >= SNAPSHOT_STEPS]
        if not due:
            return
        keepings, now = [], self._loop.time()
        for session in due:
            saved = Saved(session.next_step, read(self._engine, session.state).pack())
            keepings.append(Keeping(session.id, session.epoch, saved, self._keep_from(session, now)))
            session.saved_step = session.next_step
        self.in_background(self._save(keepings))

    def _keep_from(self, session: Session, now: float) -> int:
        history, marks = self._upkeep.history, session.marks or []
        session.marks = history.marked(session.next_step, marks, now)
        window = max(0, session.next_step - self._upkeep.window)
        return min(window, history.keep_from(session.next_step, marks, now))

    async def _save(self, keepings: list[Keeping]) -> None:
        began = self._loop.time()
        await self.store.save(keepings)
        self._counters.snapshots += len(keepings)
        self._counters.snapshot_bytes += sum(len(keeping.snapshot.data) for keeping in keepings)
        self._written = _average(self._written, (self._loop.time() - began) / len(keepings))

    def in_background(self, work: Awaitable[None]) -> None:
        """Does what no request waits for; that it failed is logged, and made up for by a later one."""
        task = self._loop.create_task(_quietly(work, self._repeated))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def commit_failed(self, error: BaseException, sessions: int) -> None:
        """Steps were run that the store did not take; their requests are told."""
        name = type(error).__name__
        self._repeated.tell(
            ("commit", name),
            logging.WARNING,
            "the store did not take steps; their requests are told",
            event="commit_failed",
            error=f"{name}: {error}",
            model=self._bundle.name,
            sessions=sessions,
        )

    # A session leaves

    def may_go(self, session: Session) -> bool:
        """Whether the store would have all of it: not if it is in memory alone, and parked there."""
        return session.epoch >= 0 and (session.durability != "none" or session.state.place is not Place.STORE)

    async def let_go(self, sessions: Sequence[Session]) -> None:
        """Releases sessions at rest, each with a snapshot if a replay would cost more. Raises StoreError."""
        await self.store.release([self._leaving(session) for session in sessions])

    async def disown(self, session_id: str) -> bool:
        """Releases a session that the store says is this replica's, though it is not in its memory any more:
        a commit was not answered, say, and nobody came back here. False if it isn't."""
        found = await self.store.claim(session_id, None, 0)
        if not isinstance(found, Image) or found.durability == "none":
            return False
        await self.store.release([Leaving(session_id, found.epoch, found.next_step)])
        return True

    def _leaving(self, session: Session) -> Leaving:
        steps = session.next_step - session.saved_step
        dear = steps * self._replayed >= self._written if self._written else steps >= STEPS_OF_A_WRITE
        saved = None
        here = session.state.place in (Place.DEVICE, Place.HOST)
        if steps and here and (dear or session.durability == "none"):
            saved = Saved(session.next_step, read(self._engine, session.state).pack())
        return Leaving(session.id, session.epoch, session.next_step, saved)

    # Its past

    async def state_before(self, session: Session, step: int) -> Memory:
        """What an owned session remembered before an earlier step. Raises StepConflict if that
        is not kept."""
        if session.durability == "none":
            raise StepConflict(
                f"the state before step {step} is not kept: the session is in memory alone"
                f" (durability none); the next step is {session.next_step}",
                expected_step=session.next_step,
            )
        history = await self.store.history(session.id, session.epoch, step)
        reached = 0 if history.snapshot is None else history.snapshot.step
        reached = span(history.records[-1])[1] if history.records else reached
        if step < history.first_step or reached < step:  # behind a gap: where it was rewound to, say
            raise StepConflict(
                f"the state before step {step} is not kept any more; the oldest is that before step"
                f" {history.first_step}, and the next step is {session.next_step}",
                expected_step=session.next_step,
            )
        try:
            state = await self._rebuilt(session.id, history.snapshot, history.records, step)
        except CorruptRecord as error:
            raise SessionDamaged(f"step {step} of session {session.id} can't be had: {error}") from error
        memory = read(self._engine, state)
        self._engine.forget(state)
        return memory

    async def replace(self, session: Session, step: int, memory: Memory, *, keep: bool) -> None:
        """The session goes on at `step` from that state. keep: what was before it stays its past."""
        saved = Saved(step, memory.pack())
        await self.store.rewrite(self._rewriting(session, saved, keep=keep, snapshots=keep))
        session.saved_step, session.marks = step, None

    async def end(self, session: Session, ending: Ending) -> None:
        await self.store.end(session.id, session.epoch, ending)

    def zeros(self) -> Memory:
        """What every sequence starts from."""
        return self._form.zeros()

    def check_durability(self, durability: str | None) -> None:
        """Raises InvalidValue for one that the store can't promise."""
        if durability is not None and durability not in self.store.durabilities:
            raise InvalidValue(
                f"durability {durability!r} is not what the store can promise:"
                f" {', '.join(self.store.durabilities)}",
                field="durability",
            )


def told(error: BaseException) -> CellstateError:
    """What a request is told of what a store raised."""
    if isinstance(error, CellstateError):
        return error
    if isinstance(error, StoreFault):
        return Unavailable(f"the store can't take it: {error}", retry_after_s=1)
    if isinstance(error, Fenced):
        return Moving("this replica lost its sessions to another one; come back", retry_after_s=0)
    if isinstance(error, Stale):
        return Moving("the session has another owner; come back", retry_after_s=0)
    if isinstance(error, StoreError):
        return Unavailable(f"the store is away: {error}", retry_after_s=1)
    return Unavailable(f"{type(error).__name__}: {error}", retry_after_s=1)


def reason_of(error: BaseException) -> str:
    """The same as a label: one of few words."""
    kinds = {StoreAway: "away", Stale: "stale", Fenced: "fenced", StoreFault: "fault"}
    return next((word for kind, word in kinds.items() if isinstance(error, kind)), "other")


async def _quietly(work: Awaitable[object], repeated: Repeated) -> None:
    try:
        await work
    except StoreError as error:
        told = "what no request waits for was not stored, and will be again"
        repeated.tell("quietly", logging.WARNING, told, event="store_refused", error=str(error))


def _average(old: float, new: float) -> float:
    return new if old == 0.0 else old + (new - old) / 8
