"""What a store does: it keeps sessions beyond the process that steps them, and says who may step which.

A replica joins with an address and gets a lease, which it renews. It claims a session before it steps it, and
the claim's epoch is one more than the last one's. A commit names that epoch; a store takes a commit only from
the replica that made the newest claim, and only at the step that is next. A replica whose lease has run out
may be *fenced* by one that claims its sessions: from then on nothing of it is taken.

Time is the store's own, never a replica's wall clock.

All methods are called on one event loop and don't block it. Each does all it says or nothing, and raises:

- `Fenced`: this replica's lease ran out and another took over; it must drop its sessions and join again.
- `Stale`: a session named is not this replica's any more, or is at another step; nothing was done.
- `StoreFault`: the store says that it can't (full, read-only, damaged, newer format); nothing was done.
- `StoreAway`: no answer. Whether it was done is not known: what is in memory must be read again.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class StoreError(Exception):
    """Root of what a store raises."""


class Fenced(StoreError):
    """This replica's lease ran out and was taken from it."""


class Stale(StoreError):
    """A session named is not this replica's any more, or is at another step. `sessions`: which, if known."""

    def __init__(self, detail: str, sessions: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.sessions = tuple(sessions)


class StoreFault(StoreError):
    """The store can't do it, and says why; nothing was done."""


class StoreAway(StoreError):
    """The store did not answer; whether it did what was asked is not known."""


class Ending(enum.Enum):
    """How a session ended."""

    CLOSED = "closed"  # its client ended it
    EXPIRED = "expired"  # it was idle for longer than its time to live
    LOST = "lost"  # it was kept in memory alone (durability none), and its owner died


@dataclass(slots=True, frozen=True)
class Saved:
    """A snapshot: the state before `step`, as bytes that a store does not look into."""

    step: int
    data: bytes


@dataclass(slots=True, frozen=True)
class Opening:
    """What a session begins with. durability: none, journal or fsync. digest: of the model's weights.
    snapshot: where it begins if not at zeros; its step is the session's first."""

    ttl_s: float
    durability: str
    version: str
    digest: str
    snapshot: Saved | None = None

    @property
    def next_step(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.step


@dataclass(slots=True)
class Image:
    """A session that this replica now owns, as the store has it.

    snapshot: the newest; None: zeros at step 0. records: in order, without gaps: all behind the snapshot, and
    before it those of the newest `window` steps, as far as they are kept. opened: this claim opened it.
    taken: from another owner, whose lease had run out.
    """

    session_id: str
    epoch: int
    ttl_s: float
    durability: str
    version: str
    digest: str
    opened_at: float  # wall clock of the replica that opened it, for people
    idle_s: float  # since it was last stepped, claimed or released
    next_step: int
    snapshot: Saved | None
    records: list[bytes] = field(default_factory=list)
    opened: bool = False
    taken: bool = False


@dataclass(slots=True, frozen=True)
class Elsewhere:
    """Another replica owns the session, and its lease holds. lease_s: for how long at least."""

    address: str
    held_s: float  # since it claimed the session
    lease_s: float


@dataclass(slots=True, frozen=True)
class Absent:
    """There is no such session. ending: how it went, if that is known still."""

    ending: Ending | None = None


Claim = Image | Elsewhere | Absent


@dataclass(slots=True)  # frozen would double the cost of making one
class Entry:
    """One request to be committed: it moved the session from `step` to `next_step`. record: opaque bytes."""

    session_id: str
    epoch: int
    step: int
    next_step: int
    record: bytes
    sync: bool = False  # must survive a loss of power: durability fsync


@dataclass(slots=True, frozen=True)
class Leaving:
    """A session that its owner lets go of, at rest. snapshot: to be kept too, if it pays."""

    session_id: str
    epoch: int
    next_step: int
    snapshot: Saved | None = None


@dataclass(slots=True, frozen=True)
class Keeping:
    """A snapshot of an owned session, and the first step of which history is still wanted: what is not needed
    to have the state before any step from there on may go."""

    session_id: str
    epoch: int
    snapshot: Saved
    keep_from: int


@dataclass(slots=True, frozen=True)
class Rewriting:
    """A session's past is changed: it goes on at `next_step`, on another model's version perhaps.

    Records at and behind next_step go, those before it stay if `keep_records`; snapshots at other steps stay
    if they are before next_step and `keep_snapshots`. snapshot: at next_step; None: zeros (if next_step is
    0), or what a snapshot at next_step, or snapshots and records before it, give; StoreFault if they don't.
    """

    session_id: str
    epoch: int
    next_step: int
    version: str
    digest: str
    snapshot: Saved | None
    keep_records: bool
    keep_snapshots: bool


@dataclass(slots=True, frozen=True)
class History:
    """What is kept of a session's past. first_step: of the oldest step that can be had again; snapshot: the
    newest at or before the step that was asked for (None: zeros at step 0); records: from the snapshot's step
    (or from first_step if there is none) up to and with the one that reaches the step asked for."""

    first_step: int
    snapshot: Saved | None
    records: list[bytes]


class Store(Protocol):
    """The sessions of one model, as one replica sees the store they are in."""

    durabilities: tuple[str, ...]  # what it can promise; known after `join`
    lease_s: float
    secret: str  # known to all replicas of the store and to nobody else; after `join`

    async def join(self, address: str) -> None:
        """Becomes a new owner with a lease of `lease_s`, reachable at that URL. Again after Fenced: sessions
        of the former owner are not this one's."""
        ...

    async def renew(self) -> None:
        """The lease holds for `lease_s` more from when this was called. Raises Fenced."""
        ...

    async def leave(self) -> None:
        """Gives up the lease at once. Sessions that were not released are as if the replica had died."""
        ...

    async def claim(self, session_id: str, opening: Opening | None, window: int) -> Claim:
        """Makes this replica a session's owner: of one that nobody owns; or whose owner's lease has run out,
        which fences that owner; or that is this one's already. One that nobody alive owns and that was idle
        for longer than its time to live is ended, as by `sweep`. opening: opens one that is absent, whatever
        became of an earlier one of that name."""
        ...

    def commit(self, entries: Sequence[Entry]) -> asyncio.Future[None] | None:
        """Keeps a tick's requests, all or none, as safe as each one asks. None: it is done already. Raises,
        or the future does, what is said above."""
        ...

    async def save(self, snapshots: Sequence[Keeping]) -> None:
        """Keeps snapshots of owned sessions, and lets go of history that is not wanted any more."""
        ...

    async def release(self, sessions: Sequence[Leaving]) -> None:
        """Owned sessions have no owner any more. Those that are not this replica's are passed over."""
        ...

    async def end(self, session_id: str, epoch: int, ending: Ending) -> None:
        """An owned session is no more; how it went is remembered for a day."""
        ...

    async def history(self, session_id: str, epoch: int, step: int) -> History:
        """What is needed for the state of an owned session before `step`; its next_step at most."""
        ...

    async def rewrite(self, change: Rewriting) -> None:
        """Changes an owned session's past."""
        ...

    async def sweep(self) -> int:
        """Ends sessions that nobody alive owns and that were idle for longer than their time to live; and
        turns the owned ones of dead replicas that were kept in memory alone into lost ones. How many."""
        ...

    async def close(self) -> None:
        """Lets go of files and connections."""
        ...
