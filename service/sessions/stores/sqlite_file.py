"""The file of a SQLite store: its tables, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.sessions.stores.protocol import StoreAway, StoreError, StoreFault

FORMAT = 1  # PRAGMA user_version
APPLICATION = 0x43656C6C  # PRAGMA application_id
PATIENCE_S = 10.0  # with which another process's lock is waited for
_PAGE = 1024  # a commit writes whole pages to the log: small ones keep a tick of one record cheap

# No id is given twice: what names a replica that is gone must never mean another.
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE model (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE replica (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, address TEXT NOT NULL,
    boot TEXT NOT NULL, until REAL NOT NULL, lease_s REAL NOT NULL, fenced INTEGER NOT NULL DEFAULT 0);
CREATE TABLE session (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, name TEXT NOT NULL, epoch INTEGER NOT NULL,
    owner INTEGER, after INTEGER NOT NULL, held_at REAL NOT NULL, used_at REAL NOT NULL, due REAL NOT NULL,
    ttl_s REAL NOT NULL, durability TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL,
    opened_at REAL NOT NULL, next_step INTEGER NOT NULL, damage TEXT);
CREATE UNIQUE INDEX session_name ON session (model, name);
CREATE INDEX session_owner ON session (model, owner, due);
CREATE TABLE log (
    seq INTEGER PRIMARY KEY, owner INTEGER NOT NULL, n INTEGER NOT NULL, at REAL NOT NULL,
    sessions BLOB NOT NULL, data BLOB NOT NULL);
CREATE TABLE run (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL, first_step INTEGER NOT NULL, next_step INTEGER NOT NULL,
    at REAL NOT NULL, data BLOB NOT NULL);
CREATE INDEX run_session ON run (session, next_step);
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL, step INTEGER NOT NULL, crc INTEGER NOT NULL,
    data BLOB NOT NULL);
CREATE UNIQUE INDEX snapshot_session ON snapshot (session, step);
CREATE TABLE ended (
    model INTEGER NOT NULL, name TEXT NOT NULL, ending TEXT NOT NULL, epoch INTEGER NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (model, name)) WITHOUT ROWID;
CREATE INDEX ended_at ON ended (model, at);
"""

# Closing any descriptor of a file drops this process's locks on it: one is made while nobody else opens it.
_opening = threading.Lock()


def is_busy(error: sqlite3.Error) -> bool:
    """Another connection holds the lock; nothing was done."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def fault_of(error: sqlite3.Error, path: str) -> StoreError:
    """What SQLite's error means for a store."""
    code, name = getattr(error, "sqlite_errorcode", 0), getattr(error, "sqlite_errorname", "")
    detail = f"({error}; {name})"
    if code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC):
        return StoreAway(f"{path} could not be synced to its disk {detail}: check the disk")
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            says = "the disk is full, or a limit of the file's size is reached: make room"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            says = (
                "it is read-only: let this process write the file and its directory, or choose another path"
            )
        case sqlite3.SQLITE_CORRUPT:
            says = "the file is damaged: restore it from a copy, or move it and its -wal and -shm away"
        case sqlite3.SQLITE_NOTADB:
            says = "it is not a SQLite file, or its beginning is damaged: restore it, or choose another path"
        case sqlite3.SQLITE_CANTOPEN:
            says = "it can't be opened: its directory must exist, and this process must be let write there"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            says = f"another process held it locked for more than {PATIENCE_S:g} s: look what that one does"
        case sqlite3.SQLITE_IOERR:
            says = "it can't be read or written: check the disk, its room, and the limits of this process"
        case _:
            says = "SQLite refused"
    return StoreFault(f"{path}: {says} {detail}")


def connect(path: str, timeout_s: float, sync: str = "NORMAL") -> sqlite3.Connection:
    """A connection that never checkpoints by itself. sync NORMAL: a commit survives the process, FULL: a loss
    of power too. OFF is not for us: a checkpoint by it would put the whole file at risk."""
    db = sqlite3.connect(path, timeout_s, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(f"PRAGMA synchronous={sync}")
        db.execute("PRAGMA temp_store=MEMORY")
    except BaseException:
        db.close()
        raise
    return db


def open_file(path: str) -> sqlite3.Connection:
    """Opens a store's file, or makes it. Raises StoreFault."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with _opening:
                return _open(path)
        except sqlite3.Error as error:
            # Who makes the file has it locked in ways that SQLite does not wait for
            if not is_busy(error) or time.monotonic() > deadline:
                raise fault_of(error, path) from error
        time.sleep(0.01)


def _open(path: str) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        _sync_directory(path)
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreFault(
            f"{path} can't be made: {error.strerror}; choose another path, or mend that"
        ) from error
    db = connect(path, PATIENCE_S)
    try:
        _check_format(db, path)
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            _make(db, path)
        db.execute("PRAGMA cache_size=-16000")
    except BaseException:
        db.close()
        raise
    return db


def _sync_directory(path: str) -> None:
    """That there is the file, too, must survive a loss of power."""
    directory = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_format(db: sqlite3.Connection, path: str) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and (tables or version):
        raise StoreFault(f"{path} is a database of something else: choose another path")
    if version > FORMAT:
        raise StoreFault(
            f"{path} has format {version}, written by a newer Cellstate; this one reads up to {FORMAT}: "
            "update Cellstate, or choose another path"
        )


def _make(db: sqlite3.Connection, path: str) -> None:
    db.execute(f"PRAGMA page_size={_PAGE}")
    mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise StoreFault(f"{path} is on a file system without shared memory maps: choose one on a local disk")
    with transaction(db):
        if db.execute("PRAGMA user_version").fetchone()[0] != 0:
            return  # another process was faster
        for statement in _TABLES.split(";\n"):
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES ('secret', ?)", (secrets.token_hex(32),))
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute(f"PRAGMA user_version={FORMAT}")


@contextmanager
def transaction(db: sqlite3.Connection, write: bool = True) -> Iterator[None]:
    """All that is done inside, or nothing; all that is read, of one moment."""
    db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
