"""The store in a process's memory: what other stores do, in its plainest form.

A `Shelf` is what outlives a replica; several `MemoryStore`s over one shelf are the replicas of one model.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.sessions.stores import past
from service.sessions.stores.past import Kept
from service.sessions.stores.protocol import (
    Absent,
    Claim,
    Elsewhere,
    Ending,
    Entry,
    Fenced,
    History,
    Image,
    Keeping,
    Leaving,
    Opening,
    Rewriting,
    Saved,
    Stale,
    StoreFault,
)

REMEMBER_S = 86400.0


@dataclass(slots=True, eq=False)
class _Replica:
    address: str
    until: float  # of its lease
    fenced: bool = False


@dataclass(slots=True)
class _Session:
    ttl_s: float
    durability: str
    version: str
    digest: str
    opened_at: float
    epoch: int
    next_step: int
    used_at: float
    held_at: float = 0.0
    owner: _Replica | None = None
    snapshots: list[Saved] = field(default_factory=list)  # by step
    records: list[Kept] = field(default_factory=list)  # by step

    def put(self, snapshot: Saved) -> None:
        others = [s for s in self.snapshots if s.step != snapshot.step]
        self.snapshots = sorted([*others, snapshot], key=lambda s: s.step)


@dataclass(slots=True)
class _Ended:
    ending: Ending
    epoch: int
    at: float


class Shelf:
    """Sessions, endings and leases. clock: seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.secret = secrets.token_hex(32)
        self.sessions: dict[str, _Session] = {}
        self.endings: dict[str, _Ended] = {}  # oldest first
        self.replicas: list[_Replica] = []

    def end(self, session_id: str, ending: Ending) -> None:
        epoch = self.sessions.pop(session_id).epoch
        self.endings.pop(session_id, None)
        self.endings[session_id] = _Ended(ending, epoch, self.clock())

    def fence_lapsed(self, but: _Replica) -> None:
        """Takes every lease that ran out from its owner, for good."""
        now = self.clock()
        for replica in self.replicas:
            replica.fenced = replica.fenced or (replica.until <= now and replica is not but)
        self.replicas = [replica for replica in self.replicas if not replica.fenced]

    def fate(self, session: _Session) -> Ending | None:
        """How a session that nobody alive owns has ended already, though nobody noticed yet."""
        if session.owner is not None and session.durability == "none":
            return Ending.LOST
        return Ending.EXPIRED if self.clock() - session.used_at > session.ttl_s else None


class MemoryStore:
    """One replica's view of a shelf."""

    def __init__(self, shelf: Shelf, lease_s: float = 5.0) -> None:
        self.durabilities: tuple[str, ...] = ("none", "journal")
        self.lease_s = lease_s
        self.secret = shelf.secret
        self._shelf = shelf
        self._me = _Replica("", 0.0, fenced=True)

    async def join(self, address: str) -> None:
        self._me.fenced = True
        self._me = _Replica(address, self._shelf.clock() + self.lease_s)
        self._shelf.replicas.append(self._me)

    async def renew(self) -> None:
        self._check_fence()
        self._me.until = self._shelf.clock() + self.lease_s

    async def leave(self) -> None:
        self._me.fenced = True

    async def claim(self, session_id: str, opening: Opening | None, window: int) -> Claim:
        self._check_fence()
        shelf, now = self._shelf, self._shelf.clock()
        session = shelf.sessions.get(session_id)
        if session is not None and session.owner is not self._me:
            owner = session.owner
            if owner is not None and not owner.fenced:
                if owner.until > now:
                    return Elsewhere(owner.address, now - session.held_at, owner.until - now)
                owner.fenced = True
            fate = shelf.fate(session)
            if fate is not None:
                shelf.end(session_id, fate)
                session = None
        if session is None and opening is None:
            ended = shelf.endings.get(session_id)
            return Absent(ended.ending if ended and now - ended.at <= REMEMBER_S else None)
        opened = session is None
        if session is None:
            assert opening is not None  # noqa: S101
            session = self._open(session_id, opening)
        snapshot = past.newest(session.snapshots, session.next_step)
        records = past.since(session.records, snapshot, session.next_step, window)
        taken = session.owner is not None and session.owner is not self._me
        idle_s, session.used_at, session.held_at = now - session.used_at, now, now
        session.owner = self._me
        session.epoch += 1
        return Image(
            session_id,
            session.epoch,
            session.ttl_s,
            session.durability,
            session.version,
            session.digest,
            session.opened_at,
            idle_s,
            session.next_step,
            snapshot,
            [kept.record for kept in records],
            opened,
            taken,
        )

    def commit(self, entries: Sequence[Entry]) -> asyncio.Future[None] | None:
        self._check_fence()
        ahead: dict[str, int] = {}
        stale = []
        for entry in entries:
            session = self._owned(entry.session_id, entry.epoch)
            if session is None or ahead.get(entry.session_id, session.next_step) != entry.step:
                stale.append(entry.session_id)
            ahead[entry.session_id] = entry.next_step
        if stale:
            raise Stale("sessions are not this replica's, or at another step", stale)
        now = self._shelf.clock()
        for entry in entries:
            session = self._shelf.sessions[entry.session_id]
            session.records.append(Kept(entry.step, entry.next_step, entry.record))
            session.next_step, session.used_at = entry.next_step, now
        return None

    async def save(self, snapshots: Sequence[Keeping]) -> None:
        self._check_fence()
        found = [(self._expect(k.session_id, k.epoch), k) for k in snapshots]
        for session, keeping in found:
            if keeping.snapshot.step > session.next_step and session.durability != "none":
                raise Stale(f"session {keeping.session_id} is not that far", [keeping.session_id])
        for session, keeping in found:
            session.put(keeping.snapshot)
            session.next_step = max(session.next_step, keeping.snapshot.step)
            base = past.newest(session.snapshots, keeping.keep_from)
            if base is not None:
                session.snapshots = [s for s in session.snapshots if s.step >= base.step]
                session.records = [k for k in session.records if k.next_step > base.step]

    async def release(self, sessions: Sequence[Leaving]) -> None:
        self._check_fence()
        found = [(session, s) for s in sessions if (session := self._owned(s.session_id, s.epoch))]
        for session, leaving in found:
            carried = leaving.snapshot is not None and leaving.snapshot.step == leaving.next_step
            if leaving.next_step != session.next_step and not (session.durability == "none" and carried):
                raise Stale(f"session {leaving.session_id} is at another step", [leaving.session_id])
        now = self._shelf.clock()
        for session, leaving in found:
            session.owner, session.used_at, session.next_step = None, now, leaving.next_step
            if leaving.snapshot is not None:
                session.put(leaving.snapshot)

    async def end(self, session_id: str, epoch: int, ending: Ending) -> None:
        self._check_fence()
        self._expect(session_id, epoch)
        self._shelf.end(session_id, ending)

    async def history(self, session_id: str, epoch: int, step: int) -> History:
        self._check_fence()
        session = self._expect(session_id, epoch)
        if step > session.next_step:
            raise Stale(f"session {session_id} is not that far", [session_id])
        steps = [s.step for s in session.snapshots]
        oldest = session.records[0].step if session.records else session.next_step
        return past.until(steps, oldest, past.newest(session.snapshots, step), session.records, step)

    async def rewrite(self, change: Rewriting) -> None:
        self._check_fence()
        session = self._expect(change.session_id, change.epoch)
        at = change.next_step
        records = [k for k in session.records if change.keep_records and k.next_step <= at]
        snapshots = [s for s in session.snapshots if change.keep_snapshots and s.step < at]
        if change.snapshot is not None:
            snapshots.append(change.snapshot)
        elif at > 0:
            snapshots += [s for s in session.snapshots if s.step == at]
            past.since(records, past.newest(snapshots, at), at, 0)  # or it raises StoreFault
        session.records, session.snapshots, session.next_step = records, snapshots, at
        session.version, session.digest, session.used_at = change.version, change.digest, self._shelf.clock()

    async def sweep(self) -> int:
        self._check_fence()
        shelf = self._shelf
        shelf.fence_lapsed(but=self._me)
        unowned = [(i, s) for i, s in shelf.sessions.items() if s.owner is None or s.owner.fenced]
        fates = [(session_id, fate) for session_id, s in unowned if (fate := shelf.fate(s))]
        for session_id, fate in fates:
            shelf.end(session_id, fate)
        now = shelf.clock()
        shelf.endings = {i: e for i, e in shelf.endings.items() if now - e.at <= REMEMBER_S}
        return len(fates)

    async def close(self) -> None:
        pass

    def _check_fence(self) -> None:
        if self._me.fenced:
            raise Fenced("the lease ran out and was taken over; or there was none")

    def _owned(self, session_id: str, epoch: int) -> _Session | None:
        session = self._shelf.sessions.get(session_id)
        return session if session and session.owner is self._me and session.epoch == epoch else None

    def _expect(self, session_id: str, epoch: int) -> _Session:
        session = self._owned(session_id, epoch)
        if session is None:
            raise Stale(f"session {session_id} is not this replica's", [session_id])
        return session

    def _open(self, session_id: str, opening: Opening) -> _Session:
        shelf = self._shelf
        if opening.durability not in self.durabilities:
            raise StoreFault(f"this store can't promise {opening.durability!r}, only {self.durabilities}")
        ended = shelf.endings.pop(session_id, None)
        shelf.sessions[session_id] = session = _Session(
            opening.ttl_s,
            opening.durability,
            opening.version,
            opening.digest,
            opened_at=time.time(),
            epoch=ended.epoch if ended else 0,
            next_step=opening.next_step,
            used_at=shelf.clock(),
            snapshots=[] if opening.snapshot is None else [opening.snapshot],
        )
        return session
