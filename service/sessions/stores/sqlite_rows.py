"""The rows of one model's sessions. Each function runs inside its caller's transaction."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.sessions.stores.frames import HEADER, Frame, framed, frames, joined
from service.sessions.stores.past import Kept
from service.sessions.stores.protocol import Ending, Opening, Saved, StoreFault


@dataclass(slots=True)
class Row:
    """A session. after: of its owner's log, what was committed before that is not the session's any more."""

    id: int
    name: str
    epoch: int
    owner: int | None
    after: int
    held_at: float
    used_at: float
    ttl_s: float
    durability: str
    version: str
    digest: str
    opened_at: float
    next_step: int  # at least: runs and snapshots may be further
    damage: str | None


_COLUMNS = (
    "id, name, epoch, owner, after, held_at, used_at, ttl_s, durability, version, digest, opened_at, "
    "next_step, damage"
)


def find(db: sqlite3.Connection, model: int, name: str) -> Row | None:
    """The session of that name, its next_step and used_at as all rows of it say."""
    found = db.execute(
        f"SELECT {_COLUMNS} FROM session WHERE model = ? AND name = ?",  # noqa: S608
        (model, name),
    ).fetchone()
    return None if found is None else _complete(db, Row(*found))


def get(db: sqlite3.Connection, row: int) -> Row | None:
    found = db.execute(f"SELECT {_COLUMNS} FROM session WHERE id = ?", (row,)).fetchone()  # noqa: S608
    return None if found is None else _complete(db, Row(*found))


def add(db: sqlite3.Connection, model: int, name: str, opening: Opening, wall: float) -> Row:
    """Opens a session that there is not, nobody's yet."""
    ended = db.execute("SELECT epoch FROM ended WHERE model = ? AND name = ?", (model, name)).fetchone()
    db.execute("DELETE FROM ended WHERE model = ? AND name = ?", (model, name))
    made = db.execute(
        "INSERT INTO session (model, name, epoch, after, held_at, used_at, due, opened_at, ttl_s, "
        "durability, version, digest, next_step) VALUES (?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(model, name, ended[0] if ended else 0, wall, wall + opening.ttl_s, wall, opening.ttl_s),
            *(opening.durability, opening.version, opening.digest, opening.next_step),
        ),
    ).lastrowid
    row = get(db, made or 0)
    if row is None:
        raise LookupError(f"session {name} is not where it was just put")
    if opening.snapshot is not None:
        put_snapshot(db, row.id, opening.snapshot)
    return row


def fate(row: Row, wall: float) -> Ending | None:
    """How a session that nobody alive owns has ended already, though nobody noticed yet."""
    if row.owner is not None and row.durability == "none":
        return Ending.LOST
    return Ending.EXPIRED if row.used_at + row.ttl_s < wall else None


def ending(db: sqlite3.Connection, model: int, name: str, after: float) -> Ending | None:
    """How a session ended, if it did after that time."""
    found = db.execute(
        "SELECT ending FROM ended WHERE model = ? AND name = ? AND at >= ?", (model, name, after)
    ).fetchone()
    return None if found is None else Ending(found[0])


def _complete(db: sqlite3.Connection, row: Row) -> Row:
    last = db.execute(
        "SELECT next_step, at FROM run WHERE session = ? ORDER BY next_step DESC LIMIT 1", (row.id,)
    ).fetchone()
    if last is not None:
        row.next_step, row.used_at = max(row.next_step, last[0]), max(row.used_at, last[1])
    saved = db.execute("SELECT max(step) FROM snapshot WHERE session = ?", (row.id,)).fetchone()[0]
    row.next_step = max(row.next_step, saved or 0)
    return row


def add_run(db: sqlite3.Connection, tail: Sequence[Frame], at: float) -> None:
    """Records of one session, in order."""
    if tail:
        db.execute(
            "INSERT INTO run (session, first_step, next_step, at, data) VALUES (?, ?, ?, ?, ?)",
            (tail[0].row, tail[0].step, tail[-1].next_step, at, joined(tail)),
        )


def runs(db: sqlite3.Connection, row: int, name: str, behind: int, before: int | None = None) -> list[Kept]:
    """The records of runs with steps at or behind `behind`, and before `before`, in order."""
    found: list[Kept] = []
    query = (
        "SELECT first_step, next_step, data FROM run WHERE session = ? AND next_step > ? ORDER BY next_step"
    )
    for first, end, data in db.execute(query, (row, behind)):
        if before is not None and first >= before:
            break
        size = 0
        for frame in frames(data):
            size += len(frame.data)
            found.append(Kept(frame.step, frame.next_step, frame.data[HEADER:]))
        if size != len(data) or not size or found[-1].next_step != end:
            raise StoreFault(
                f"session {name}: a record of steps {first} to {end} is damaged: restore the file from a copy"
            )
    return found


def oldest_step(db: sqlite3.Connection, row: int) -> int | None:
    """The first step of a session's oldest run."""
    found = db.execute(
        "SELECT first_step FROM run WHERE session = ? ORDER BY next_step LIMIT 1", (row,)
    ).fetchone()
    return None if found is None else int(found[0])


def cut_runs(db: sqlite3.Connection, row: int, name: str, end: int, at: float) -> None:
    """Deletes the records that go beyond a step."""
    over = runs(db, row, name, end)
    db.execute("DELETE FROM run WHERE session = ? AND next_step > ?", (row, end))
    add_run(db, [framed(row, *kept) for kept in over if kept.next_step <= end], at)


def snapshot_steps(db: sqlite3.Connection, row: int) -> list[int]:
    found = db.execute("SELECT step FROM snapshot WHERE session = ? ORDER BY step", (row,))
    return [step for (step,) in found]


def put_snapshot(db: sqlite3.Connection, row: int, snapshot: Saved) -> None:
    db.execute(
        "INSERT OR REPLACE INTO snapshot (session, step, crc, data) VALUES (?, ?, ?, ?)",
        (row, snapshot.step, zlib.crc32(snapshot.data), snapshot.data),
    )


def newest_snapshot(db: sqlite3.Connection, row: int, name: str, step: int) -> Saved | None:
    """The newest at or before a step."""
    found = db.execute(
        "SELECT step, crc, data FROM snapshot WHERE session = ? AND step <= ? ORDER BY step DESC LIMIT 1",
        (row, step),
    ).fetchone()
    if found is None:
        return None
    if zlib.crc32(found[2]) != found[1]:
        raise StoreFault(
            f"session {name}: the snapshot at step {found[0]} is damaged: restore the file from a copy"
        )
    return Saved(found[0], found[2])


def trim(db: sqlite3.Connection, row: int, keep_from: int) -> int:
    """Deletes what the states from there on don't need. Returns the step that they begin from."""
    base = db.execute(
        "SELECT max(step) FROM snapshot WHERE session = ? AND step <= ?", (row, keep_from)
    ).fetchone()[0]
    if base is None:
        return 0
    db.execute("DELETE FROM snapshot WHERE session = ? AND step < ?", (row, base))
    db.execute("DELETE FROM run WHERE session = ? AND next_step <= ?", (row, base))
    return int(base)


def forget(db: sqlite3.Connection, model: int, row: Row, how: Ending, at: float) -> None:
    """Deletes a session and notes how it ended."""
    db.execute("DELETE FROM run WHERE session = ?", (row.id,))
    db.execute("DELETE FROM snapshot WHERE session = ?", (row.id,))
    db.execute("DELETE FROM session WHERE id = ?", (row.id,))
    db.execute(
        "INSERT OR REPLACE INTO ended VALUES (?, ?, ?, ?, ?)", (model, row.name, how.value, row.epoch, at)
    )


@dataclass(slots=True)
class _Tail:
    row: Row
    frames: list[Frame] = field(default_factory=list)
    at: float = 0.0


def fence(db: sqlite3.Connection, replica: int) -> None:
    """Takes a replica's lease for good, and moves its log to the runs of its sessions.

    A damaged record stops its own session, which is marked; the others go on.
    """
    db.execute("UPDATE replica SET fenced = 1 WHERE id = ?", (replica,))
    tails: dict[int, _Tail | None] = {}

    def tail_of(session: int, n: int) -> _Tail | None:
        if session not in tails:
            row = get(db, session)
            tails[session] = _Tail(row) if row is not None and row.owner == replica else None
        tail = tails[session]
        return tail if tail is not None and n > tail.row.after else None

    for n, at, sessions, data in _log_of(db, replica):
        wanted = Counter(struct.unpack(f"<{len(sessions) // 8}q", sessions[: len(sessions) // 8 * 8]))
        for frame in frames(data):
            wanted[frame.row] -= 1
            tail = tail_of(frame.row, n)
            if tail is None or frame.next_step <= tail.row.next_step:
                continue  # not the session's any more, or in a run already
            if frame.step != tail.row.next_step:
                tail.row.damage = f"steps {tail.row.next_step} to {frame.step} are missing in the log"
                continue
            tail.frames.append(frame)
            tail.row.next_step, tail.at = frame.next_step, at
        for session, missing in wanted.items():
            tail = tail_of(session, n) if missing > 0 else None
            if tail is not None:
                tail.row.damage = f"a record at or behind step {tail.row.next_step} is damaged in the log"
    for tail in tails.values():
        if tail is not None:
            add_run(db, tail.frames, tail.at)
            if tail.row.damage is not None:
                db.execute("UPDATE session SET damage = ? WHERE id = ?", (tail.row.damage, tail.row.id))
    db.execute("DELETE FROM log WHERE owner = ?", (replica,))


def _log_of(db: sqlite3.Connection, replica: int) -> Iterator[tuple[int, float, bytes, bytes]]:
    yield from db.execute("SELECT n, at, sessions, data FROM log WHERE owner = ? ORDER BY seq", (replica,))
