"""The store in one SQLite file, for all models and all processes of a machine.

A commit is one row of the `log` and one statement: all records of a tick, inserted if this replica is not
fenced. Nothing is looked up for a session, and this is why it need not be: a session leaves a living owner
only by what the owner does itself (release, end), so the owner's memory knows its sessions, their epochs and
next steps; and it leaves another owner only after that one is fenced, which is a column of one row.

Behind that the owner *flushes*: it writes the records, which it still has in memory, as one row of `run` for
each session, and then deletes them from the log. Whoever fences a dead owner does the same from its log. A
record may be in both for a while: a step that is in a run already is passed over.

Commits are tried on the event loop's thread: 15 µs for one record, 150 for 64. If the file is locked, or this
store's one worker thread is in a transaction, or a loss of power is to be survived (which waits for the
disk), the worker does it. `_lock` keeps the two apart: who holds it may use `_mine` and the connections; the
loop never waits for it. Checkpoints have a thread of their own.

Leases are by the clock that all processes of a machine share, which stops at no suspend and is set by nobody;
a lease from before the machine's last start has run out. Idle times and endings are by the wall clock.

If SQLite cannot say whether a transaction was done, the replica gives itself up: whoever asks next gets
Fenced, and joining again finds what was done.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from service.sessions.stores import past
from service.sessions.stores import sqlite_rows as rows
from service.sessions.stores.frames import HEADER, Frame, framed, joined
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
    StoreAway,
    StoreFault,
)
from service.sessions.stores.sqlite_file import (
    PATIENCE_S,
    connect,
    fault_of,
    is_busy,
    open_file,
    transaction,
)
from service.sessions.stores.sqlite_leases import Leases, boot_clock

log = logging.getLogger(__name__)
T = TypeVar("T")

REMEMBER_S = 86400.0  # how a session ended
FLUSH_BYTES = 4 << 20  # of records in the log, from when on they are moved to runs
HOLD_BYTES = 256 << 10  # moved in one transaction, which holds up the commits of others
CHECKPOINT_BYTES = 8 << 20  # written, from when on the write-ahead log is copied into the file
RESTART_PAGES = 32 << 10  # in the write-ahead log, from when on commits wait until it can begin anew
_PAGE_COST = 1500  # bytes that a commit writes besides its records, about

_COMMIT = (
    "INSERT INTO log (owner, n, at, sessions, data) SELECT ?1, ?2, ?3, ?4, ?5 "
    "WHERE EXISTS (SELECT 1 FROM replica WHERE id = ?1 AND NOT fenced)"
)


@dataclass(slots=True)
class _Mine:
    """An owned session. ahead: its next step if the commit under way succeeds. tail: of the log."""

    row: int
    epoch: int
    next_step: int
    durability: str
    ttl_s: float
    used_at: float
    ahead: int
    tail: list[Frame] = field(default_factory=list)


class SqliteStore:
    """One replica's view of the file. clock: seconds of this machine, the same for all its processes.

    Long, for one lock guards all of it; what needs no more than a connection is in sqlite_rows.
    """

    def __init__(
        self,
        path: str,
        model: str,
        lease_s: float = 5.0,
        flush_bytes: int = FLUSH_BYTES,
        clock: Callable[[], float] = boot_clock,
        wall: Callable[[], float] = time.time,
        *,
        fence: bool = True,
    ) -> None:
        self.durabilities: tuple[str, ...] = ()
        self._insert = _COMMIT if fence else _COMMIT.partition("WHERE EXISTS")[0] + "WHERE 1"
        self.lease_s = lease_s
        self.secret = ""
        self._path, self._model_name, self._flush_bytes = path, model, flush_bytes
        self._clock, self._wall, self._leases = clock, wall, Leases(clock)
        self._model = 0
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="store-checkpoint")
        self._quick: sqlite3.Connection | None = None  # for commits
        self._slow: sqlite3.Connection | None = None  # for all else
        self._sync: sqlite3.Connection | None = None  # for what survives a loss of power; when first needed
        self._id: int | None = None  # of this replica; None: to be fenced, or not joined yet
        self._former: int | None = None  # who it was when it gave itself up
        self._n = 0  # commits so far, as this replica
        self._mine: dict[str, _Mine] = {}
        self._sent = self._done = 0  # commits given to the worker, and finished by it
        self._flushed = 0  # of them, when the last flush began
        self._fresh = 0  # bytes in the log since then
        self._written = 0  # bytes since the last checkpoint
        self._flushing = self._checkpointing = self._closed = False

    # Leases

    async def join(self, address: str) -> None:
        await self._work(lambda: self._join(address))
        self.durabilities = ("none", "journal", "fsync")

    def _join(self, address: str) -> None:
        if self._slow is None:
            self._slow = open_file(self._path)
        if self._quick is None:
            self._quick = connect(self._path, 0.0)
        db, former = self._slow, self._id or self._former
        with transaction(db):
            if former is not None:
                rows.fence(db, former)
            db.execute("INSERT OR IGNORE INTO model (name) VALUES (?)", (self._model_name,))
            (model,) = db.execute("SELECT id FROM model WHERE name = ?", (self._model_name,)).fetchone()
            (secret,) = db.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()
            made = self._leases.grant(db, model, address, self.lease_s)
        self._id, self._former, self._model, self.secret = made, None, model, secret
        self._n = self._fresh = self._flushed = 0
        self._mine = {}

    async def renew(self) -> None:
        until = self._clock() + self.lease_s

        def renew() -> None:
            if not self._leases.renew(self._slow_db(), self._id, until):
                self._fall()

        await self._work(renew)

    async def leave(self) -> None:
        await self._work(self._leave)

    def _leave(self) -> None:
        if self._id is not None:
            with transaction(self._slow_db()):
                rows.fence(self._slow_db(), self._id)
            self._id, self._mine = None, {}

    # Claims

    async def claim(self, session_id: str, opening: Opening | None, window: int) -> Claim:
        return await self._work(lambda: self._claim(session_id, opening, window))

    def _claim(self, session_id: str, opening: Opening | None, window: int) -> Claim:
        db = self._db_for("" if opening is None else opening.durability)
        now, wall = self._clock(), self._wall()
        with transaction(db):
            self._check_fence(db)
            if opening is not None and opening.durability not in self.durabilities:
                raise StoreFault(f"this store can't promise {opening.durability!r}, only {self.durabilities}")
            row = rows.find(db, self._model, session_id)
            if row is not None and row.owner is not None and row.owner != self._id:
                lease = self._leases.of(db, row.owner)
                if lease.left_s > 0:
                    return Elsewhere(lease.address, max(now - row.held_at, 0.0), lease.left_s)
                if not lease.fenced:
                    rows.fence(db, row.owner)
                    row = rows.find(db, self._model, session_id)
            if row is not None and row.owner != self._id:
                fate = rows.fate(row, wall)
                if fate is not None:
                    rows.forget(db, self._model, row, fate, wall)
                    row = None
            if row is None and opening is None:
                return Absent(rows.ending(db, self._model, session_id, wall - REMEMBER_S))
            opened = row is None
            if row is None:
                assert opening is not None  # noqa: S101
                row = rows.add(db, self._model, session_id, opening, wall)
            mine = self._mine.get(session_id)
            if row.owner == self._id and mine is not None:
                rows.add_run(db, mine.tail, mine.used_at)
                row.next_step = max(row.next_step, mine.next_step)
                row.used_at = max(row.used_at, mine.used_at)
            snapshot, records = (None, []) if row.damage else self._load(db, row, window)
            taken = row.owner is not None and row.owner != self._id
            if not row.damage:
                row.epoch += 1
                db.execute(
                    "UPDATE session SET owner = ?, epoch = ?, after = ?, held_at = ?, used_at = ?, due = ?, "
                    "next_step = ? WHERE id = ?",
                    (self._id, row.epoch, self._n, now, wall, wall + row.ttl_s, row.next_step, row.id),
                )
        if row.damage:
            raise StoreFault(f"session {session_id}: {row.damage}; restore {self._path} from a copy")
        self._mine[session_id] = _Mine(
            row.id, row.epoch, row.next_step, row.durability, row.ttl_s, wall, ahead=row.next_step
        )
        return Image(
            session_id,
            row.epoch,
            row.ttl_s,
            row.durability,
            row.version,
            row.digest,
            row.opened_at,
            max(wall - row.used_at, 0.0),
            row.next_step,
            snapshot,
            [kept.record for kept in records],
            opened,
            taken,
        )

    def _load(self, db: sqlite3.Connection, row: rows.Row, window: int) -> tuple[Saved | None, list[Kept]]:
        snapshot = rows.newest_snapshot(db, row.id, row.name, row.next_step)
        first = min(0 if snapshot is None else snapshot.step, row.next_step - window)
        if row.durability == "none" and snapshot is None:
            return None, []
        return snapshot, past.since(rows.runs(db, row.id, row.name, first), snapshot, row.next_step, window)

    # Commits

    def commit(self, entries: Sequence[Entry]) -> asyncio.Future[None] | None:
        sync = True in [entry.sync for entry in entries]
        if not sync and self._sent == self._done and self._lock.acquire(blocking=False):
            try:
                self._commit(self._quick, entries)
                self._tend()
                return None
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise self._fault_of(error) from error
            finally:
                self._lock.release()
        self._sent += 1
        done = asyncio.get_running_loop().run_in_executor(self._worker, self._commit_later, entries, sync)
        return asyncio.shield(done)  # one that nobody waits for any more is done all the same

    def _commit_later(self, entries: Sequence[Entry], sync: bool) -> None:
        deadline, pause = time.monotonic() + PATIENCE_S, 0.0001
        with self._lock:
            try:
                while True:
                    try:
                        self._commit(self._db_for("fsync") if sync else self._quick, entries)
                        return self._tend()
                    except sqlite3.Error as error:
                        if not is_busy(error) or time.monotonic() > deadline:
                            raise self._fault_of(error) from error
                    time.sleep(pause)  # SQLite's own waiting is in milliseconds
                    pause = min(2 * pause, 0.002)
            finally:
                self._done += 1

    def _commit(self, db: sqlite3.Connection | None, entries: Sequence[Entry]) -> None:
        """All entries or, if it raises, none."""
        if self._id is None or db is None:
            raise Fenced("the lease ran out and was taken over; or there was none")
        if not entries:
            return
        known, moved, sent = self._mine.get, [], []
        stale = []
        try:
            for entry in entries:
                mine = known(entry.session_id)
                if mine is None or mine.epoch != entry.epoch or mine.ahead != entry.step:
                    stale.append(entry.session_id)
                    continue
                mine.ahead = entry.next_step
                moved.append(mine)
                sent.append(framed(mine.row, entry.step, entry.next_step, entry.record))
            if stale:
                raise Stale("sessions are not this replica's, or at another step", stale)
            self._n += (
                1  # also for one that fails: should it turn up one day, it must not pass for a later one
            )
            wall, data = self._wall(), joined(sent)
            sessions = struct.pack(f"<{len(moved)}q", *[mine.row for mine in moved])
            if db.execute(self._insert, (self._id, self._n, wall, sessions, data)).rowcount != 1:
                self._fall()
        except BaseException:
            for mine in moved:
                mine.ahead = mine.next_step
            raise
        for mine, frame in zip(moved, sent, strict=True):
            mine.next_step = frame.next_step
            mine.used_at = wall
            mine.tail.append(frame)
        self._fresh += len(data)
        self._written += len(data) + _PAGE_COST

    # Snapshots, endings, the past

    async def save(self, snapshots: Sequence[Keeping]) -> None:
        await self._work(lambda: self._save(snapshots))

    def _save(self, snapshots: Sequence[Keeping]) -> None:
        db = self._slow_db()
        bases: list[tuple[_Mine, int, int]] = []
        with transaction(db):
            self._check_fence(db)
            for keeping in snapshots:
                mine, step = self._expect(keeping.session_id, keeping.epoch), keeping.snapshot.step
                if step > mine.next_step and mine.durability != "none":
                    raise Stale(f"session {keeping.session_id} is not that far", [keeping.session_id])
                rows.put_snapshot(db, mine.row, keeping.snapshot)
                bases.append((mine, step, rows.trim(db, mine.row, keeping.keep_from)))
                self._written += len(keeping.snapshot.data) + _PAGE_COST
        for mine, step, base in bases:
            mine.next_step = mine.ahead = max(mine.next_step, step)
            mine.tail = [frame for frame in mine.tail if frame.next_step > base]

    async def release(self, sessions: Sequence[Leaving]) -> None:
        await self._work(lambda: self._release(sessions))

    def _release(self, sessions: Sequence[Leaving]) -> None:
        db, wall = self._slow_db(), self._wall()
        gone = []
        with transaction(db):
            self._check_fence(db)
            for leaving in sessions:
                mine, saved = self._mine.get(leaving.session_id), leaving.snapshot
                if mine is None or mine.epoch != leaving.epoch:
                    continue
                carried = mine.durability == "none" and saved is not None and saved.step == leaving.next_step
                if leaving.next_step != mine.next_step and not carried:
                    raise Stale(f"session {leaving.session_id} is at another step", [leaving.session_id])
                rows.add_run(db, mine.tail, mine.used_at)
                if saved is not None:
                    rows.put_snapshot(db, mine.row, saved)
                    self._written += len(saved.data)
                db.execute(
                    "UPDATE session SET owner = NULL, used_at = ?, due = ?, next_step = ? WHERE id = ?",
                    (wall, wall + mine.ttl_s, leaving.next_step, mine.row),
                )
                gone.append(leaving.session_id)
                self._written += _PAGE_COST
        for session_id in gone:
            del self._mine[session_id]

    async def end(self, session_id: str, epoch: int, ending: Ending) -> None:
        await self._work(lambda: self._end(session_id, epoch, ending))

    def _end(self, session_id: str, epoch: int, ending: Ending) -> None:
        mine = self._mine.get(session_id)
        db = self._db_for("" if mine is None else mine.durability)
        with transaction(db):
            self._check_fence(db)
            row = rows.get(db, self._expect(session_id, epoch).row)
            if row is not None:
                rows.forget(db, self._model, row, ending, self._wall())
        del self._mine[session_id]

    async def history(self, session_id: str, epoch: int, step: int) -> History:
        return await self._work(lambda: self._history(session_id, epoch, step))

    def _history(self, session_id: str, epoch: int, step: int) -> History:
        db = self._slow_db()
        with transaction(db, write=False):
            self._check_fence(db)
            mine = self._expect(session_id, epoch)
            if step > mine.next_step:
                raise Stale(f"session {session_id} is not that far", [session_id])
            steps = rows.snapshot_steps(db, mine.row)
            snapshot = rows.newest_snapshot(db, mine.row, session_id, step)
            base = 0 if snapshot is None else snapshot.step
            oldest = rows.oldest_step(db, mine.row)
            records = rows.runs(db, mine.row, session_id, base, before=step)
        if oldest is None:
            oldest = mine.tail[0].step if mine.tail else mine.next_step
        records += [Kept(f.step, f.next_step, f.data[HEADER:]) for f in mine.tail]
        return past.until(steps, oldest, snapshot, records, step)

    async def rewrite(self, change: Rewriting) -> None:
        await self._work(lambda: self._rewrite(change))

    def _rewrite(self, change: Rewriting) -> None:
        known = self._mine.get(change.session_id)
        db, at = self._db_for("" if known is None else known.durability), change.next_step
        with transaction(db):
            self._check_fence(db)
            mine, wall = self._expect(change.session_id, change.epoch), self._wall()
            rows.add_run(db, mine.tail, mine.used_at)
            rows.cut_runs(db, mine.row, change.session_id, at if change.keep_records else 0, wall)
            # Of snapshots at next_step, one stays if there is no new one and it does not begin anew
            stays = change.snapshot is None and at > 0
            if change.keep_snapshots:
                db.execute("DELETE FROM snapshot WHERE session = ? AND step >= ?", (mine.row, at + stays))
            else:
                db.execute(
                    "DELETE FROM snapshot WHERE session = ? AND NOT (step = ? AND ?)", (mine.row, at, stays)
                )
            if change.snapshot is not None:
                rows.put_snapshot(db, mine.row, change.snapshot)
            db.execute(
                "UPDATE session SET version = ?, digest = ?, next_step = ?, after = ?, used_at = ?, due = ? "
                "WHERE id = ?",
                (change.version, change.digest, at, self._n, wall, wall + mine.ttl_s, mine.row),
            )
            row = rows.get(db, mine.row)
            if row is not None and stays:
                self._load(db, row, 0)  # or it raises StoreFault
        mine.next_step, mine.ahead, mine.used_at, mine.tail = at, at, wall, []

    async def sweep(self) -> int:
        dead = await self._work(self._fence_dead)
        count = 0
        for replica in [*dead, None]:
            more = True
            while more:
                ended, more = await self._work(partial(self._bury, replica))
                count += ended
        return count

    def _fence_dead(self) -> list[int]:
        """Replicas of this model whose leases have run out."""
        db, dead = self._slow_db(), []
        for (replica,) in db.execute(
            "SELECT id FROM replica WHERE model = ? AND id != ?", (self._model, self._id)
        ).fetchall():
            with transaction(db):
                self._check_fence(db)
                lease = self._leases.of(db, replica)
                if lease.left_s <= 0 and not lease.fenced:
                    rows.fence(db, replica)
            if lease.left_s <= 0:
                dead.append(replica)
        return dead

    def _bury(self, replica: int | None) -> tuple[int, bool]:
        """Looks at some sessions of a dead replica, or of nobody: they end, or are nobody's. How many ended,
        and whether there may be more."""
        db, wall, most, count = self._slow_db(), self._wall(), 200, 0
        due = float("inf") if replica is not None else wall
        with transaction(db):
            self._check_fence(db)
            found = db.execute(
                "SELECT id FROM session WHERE model = ? AND owner IS ? AND due < ? LIMIT ?",
                (self._model, replica, due, most),
            ).fetchall()
            for (session,) in found:
                row = rows.get(db, session)
                fate = None if row is None else rows.fate(row, wall)
                if row is not None and fate is not None:
                    rows.forget(db, self._model, row, fate, wall)
                    count += 1
                elif row is not None:
                    db.execute(
                        "UPDATE session SET owner = NULL, used_at = ?, due = ? WHERE id = ?",
                        (row.used_at, row.used_at + row.ttl_s, session),
                    )
            if replica is None:
                db.execute("DELETE FROM ended WHERE model = ? AND at < ?", (self._model, wall - REMEMBER_S))
            elif len(found) < most:
                db.execute("DELETE FROM replica WHERE id = ?", (replica,))
        return count, len(found) == most

    async def close(self) -> None:
        if self._closed:
            return
        self._closed, loop = True, asyncio.get_running_loop()
        for thread, last in ((self._worker, self._close), (self._keeper, lambda: None)):
            await loop.run_in_executor(thread, last)
            thread.shutdown(wait=False)

    def _close(self) -> None:
        with self._lock:
            connections = (self._quick, self._sync, self._slow)
            self._quick = self._sync = self._slow = self._id = None
        for db in connections:
            if db is not None:
                db.close()

    # In the background

    def _tend(self) -> None:
        """Begins a flush or a checkpoint if it is time."""
        if self._fresh > self._flush_bytes and not self._flushing:
            self._flushing = True
            self._worker.submit(self._flush)
        if self._written > CHECKPOINT_BYTES and not self._checkpointing:
            self._checkpointing, self._written = True, 0
            self._keeper.submit(self._checkpoint)

    def _flush(self) -> None:
        """Moves the log so far to runs: some sessions at a time, so that commits get their turn."""
        try:
            with self._lock:
                names = deque([name for name, mine in self._mine.items() if mine.tail])
                rows_each = max((self._n - self._flushed) * HOLD_BYTES // (self._fresh + 1), 1)
                n, replica, self._fresh, self._flushed = self._n, self._id, 0, self._n
            while names:
                self._locked(partial(self._flush_some, names))
            while self._locked(partial(self._drop_log, replica, n, rows_each)):
                pass
        except Exception as error:  # noqa: BLE001  (the log has it all still; the next flush does it)
            log.warning("committed steps could not be moved from the log: %s", error)
        finally:
            self._flushing = False

    def _flush_some(self, names: deque[str]) -> None:
        db, size, found = self._slow_db(), 0, []
        with transaction(db):
            self._check_fence(db)
            while names and size < HOLD_BYTES:
                mine = self._mine.get(names.popleft())
                if mine is not None and mine.tail:
                    rows.add_run(db, mine.tail, mine.used_at)
                    size += _PAGE_COST + sum([len(frame.data) for frame in mine.tail])
                    found.append(mine)
        for mine in found:
            mine.tail = []
        self._written += size

    def _drop_log(self, replica: int | None, n: int, most: int) -> bool:
        """Deletes rows up to n of the log, whose records are in runs. Whether there may be more."""
        part = "SELECT seq FROM log WHERE owner = ? AND n <= ? ORDER BY seq LIMIT ?"
        dropped = self._slow_db().execute(f"DELETE FROM log WHERE seq IN ({part})", (replica, n, most))  # noqa: S608
        return dropped.rowcount == most

    def _checkpoint(self) -> None:
        try:
            db = connect(self._path, 0.1)
            try:
                _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages > RESTART_PAGES and not db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]:
                    # Whoever writes next syncs the new log's beginning: better here than in a commit
                    db.execute("UPDATE replica SET until = until WHERE id = ?", (self._id,))
            finally:
                db.close()
        except Exception as error:  # noqa: BLE001  (the next checkpoint does it)
            log.warning("the write-ahead log of %s could not be copied into it: %s", self._path, error)
        finally:
            self._checkpointing = False

    # Threads and faults

    async def _work(self, do: Callable[[], T]) -> T:
        """Does it on the worker's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._locked, do)

    def _locked(self, do: Callable[[], T]) -> T:
        with self._lock:
            try:
                return do()
            except sqlite3.Error as error:
                raise self._fault_of(error) from error
            finally:
                self._tend()

    def _fault_of(self, error: sqlite3.Error) -> Exception:
        fault = fault_of(error, self._path)
        if isinstance(fault, StoreAway):
            self._former, self._id, self._mine = self._id, None, {}
        return fault

    def _fall(self) -> None:
        """Another took this replica's lease."""
        self._id, self._mine = None, {}
        raise Fenced("the lease ran out and was taken over")

    def _check_fence(self, db: sqlite3.Connection) -> None:
        if self._id is None or self._leases.of(db, self._id).fenced:
            self._fall()

    def _expect(self, session_id: str, epoch: int) -> _Mine:
        mine = self._mine.get(session_id)
        if mine is None or mine.epoch != epoch:
            raise Stale(f"session {session_id} is not this replica's", [session_id])
        return mine

    def _slow_db(self) -> sqlite3.Connection:
        if self._slow is None:
            raise Fenced("this replica has not joined")
        return self._slow

    def _db_for(self, durability: str) -> sqlite3.Connection:
        db = self._slow_db()
        if durability != "fsync":
            return db
        if self._sync is None:
            self._sync = connect(self._path, PATIENCE_S, sync="FULL")
        return self._sync
