"""What only the SQLite store does: processes that die, files that are damaged, disks that are full."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from service.sessions.stores import sqlite as sqlite_store
from service.sessions.stores.frames import frames
from service.sessions.stores.protocol import (
    Absent,
    Elsewhere,
    Fenced,
    Image,
    Keeping,
    Leaving,
    StoreAway,
    StoreFault,
)
from service.sessions.stores.sqlite import SqliteStore
from service.sessions.stores.sqlite_file import fault_of
from tests.sessions.stores.stores import (
    Clock,
    a_record,
    a_snapshot,
    an_entry,
    an_opening,
    claimed,
    committed,
    opened,
    stepped,
)

ROOT = Path(__file__).parents[3]

# Commits steps of some sessions, one tick after the other, and says which step is kept.
COMMITTER = """
import asyncio, sys
from tests.sessions.stores.stores import an_entry, an_opening, opened
from service.sessions.stores.sqlite import SqliteStore

async def main(path, prefix, ticks, flush_bytes):
    store = SqliteStore(path, "m", 0.2, flush_bytes=int(flush_bytes))
    await store.join("http://" + prefix)
    images = [await opened(store, f"{prefix}-{i}") for i in range(8)]
    for step in range(int(ticks)):
        pending = store.commit([an_entry(image, step, sync=step % 50 == 7) for image in images])
        if pending is not None:
            await pending
        print(step, flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def a_committer(path: Path, prefix: str, ticks: int, flush_bytes: int = 20_000) -> subprocess.Popen[str]:
    arguments = [str(path), prefix, str(ticks), str(flush_bytes)]
    return subprocess.Popen(
        [sys.executable, "-c", COMMITTER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


class Stores:
    """Replicas over one file, by one clock."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, Clock()
        self.made: list[SqliteStore] = []

    async def replica(self, flush_bytes: int = 1 << 30) -> SqliteStore:
        store = SqliteStore(str(self.path), "m", 5.0, flush_bytes, clock=self.clock, wall=self.clock)
        self.made.append(store)
        await store.join("http://here")
        return store

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.path)) as db:
            found = db.execute(statement, values).fetchall()
            db.commit()
            return found

    async def close(self) -> None:
        for store in self.made:
            await store.close()


@pytest_asyncio.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    stores = Stores(tmp_path / "sessions.db")
    yield stores
    await stores.close()


# Processes


@pytest.mark.parametrize("flush_bytes", [5_000, 1 << 30])
async def test_what_was_acknowledged_outlives_a_killed_process(tmp_path: Path, flush_bytes: int) -> None:
    path = tmp_path / "sessions.db"
    with a_committer(path, "p", 100_000, flush_bytes) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(300)]
        process.send_signal(signal.SIGKILL)
        acknowledged = int((lines + process.stdout.read().splitlines(keepends=True))[-1])
    store = SqliteStore(str(path), "m")
    await store.join("http://heir")
    await asyncio.sleep(0.25)  # the dead one's lease
    counts = set()
    for name in (f"p-{i}" for i in range(8)):
        image = await store.claim(name, None, 1 << 40)
        assert isinstance(image, Image)
        assert image.records == [a_record(step, name) for step in range(image.next_step)]
        counts.add(image.next_step)
    assert len(counts) == 1  # a tick is kept whole or not at all
    assert acknowledged + 1 <= counts.pop() <= acknowledged + 2
    await store.close()


async def test_processes_commit_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    processes = [a_committer(path, prefix, 400) for prefix in "pq"]  # they also make the file at once
    for process in processes:
        out, _ = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0
        assert out.split() == [str(step) for step in range(400)]
    store = SqliteStore(str(path), "m")
    await store.join("http://heir")
    await asyncio.sleep(0.25)
    for name in ("p-0", "p-7", "q-3"):
        assert (await claimed(store, name, window=1000)).records == [
            a_record(step, name) for step in range(400)
        ]
    await store.close()


async def test_a_commit_waits_its_turn_while_another_process_writes(stores: Stores) -> None:
    store = await stores.replica()
    image = await opened(store)
    assert store.commit([an_entry(image, 0)]) is None
    with closing(sqlite3.connect(stores.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        pending = [store.commit([an_entry(image, step)]) for step in (1, 2)]
        await asyncio.sleep(0.05)
        assert all(future is not None and not future.done() for future in pending)
        other.execute("COMMIT")
    for future in pending:
        assert future is not None
        await future
    assert store.commit([an_entry(image, 3)]) is None
    assert (await claimed(store)).next_step == 4


async def test_a_commit_that_nobody_waits_for_is_done_all_the_same(stores: Stores) -> None:
    store = await stores.replica()
    image = await opened(store)
    with closing(sqlite3.connect(stores.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        pending = [store.commit([an_entry(image, step)]) for step in (0, 1)]
        for future in pending:
            assert future is not None
            future.cancel()
        other.execute("COMMIT")
    assert (await claimed(store)).next_step == 2
    assert store.commit([an_entry(await claimed(store), 2)]) is None


async def test_a_lease_ends_with_the_machines_boot(stores: Stores) -> None:
    one, two = await stores.replica(), await stores.replica()
    await stepped(one, await opened(one), 0, 3)
    assert isinstance(await two.claim("s", None, 0), Elsewhere)
    stores.sql("UPDATE replica SET boot = 'before' WHERE id = 1")
    assert (await claimed(two)).next_step == 3


async def test_a_replica_that_cannot_tell_gives_itself_up(stores: Stores) -> None:
    store = await stores.replica()
    image = await opened(store)
    await stepped(store, image, 0, 3)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    assert isinstance(store._fault_of(error), StoreAway)
    with pytest.raises(Fenced):
        store.commit([an_entry(image, 3)])
    await store.join("http://again")
    assert (await claimed(store)).records == [a_record(step) for step in range(3)]


# The log and the runs


async def test_the_log_is_moved_to_runs(stores: Stores) -> None:
    store = await stores.replica(flush_bytes=10_000)
    images = [await opened(store, f"s{i}") for i in range(20)]
    for step in range(40):
        await committed(store, [an_entry(image, step) for image in images])
    await store.renew()  # behind the last flush
    assert len(stores.sql("SELECT seq FROM log")) < 10
    assert len(stores.sql("SELECT id FROM run")) < 20 * 30
    for image in images:
        found = await claimed(store, image.session_id)
        assert found.records == [a_record(step, image.session_id) for step in range(40)]


async def test_a_step_that_is_in_a_run_and_in_the_log_comes_once(stores: Stores) -> None:
    one, two = await stores.replica(flush_bytes=0), await stores.replica()
    await stepped(one, await opened(one), 0, 3)
    await one.renew()
    kept = stores.sql("SELECT data, session FROM run")
    assert kept
    for n, (data, session) in enumerate(kept):  # as if it had died between writing the runs and deleting this
        assert isinstance(session, int)
        stores.sql(
            "INSERT INTO log (owner, n, at, sessions, data) VALUES (1, ?, 0, ?, ?)",
            n + 1,
            session.to_bytes(8, "little"),
            data,
        )
    stores.clock.now += 10
    await two.renew()
    assert (await claimed(two)).records == [a_record(step) for step in range(3)]


async def test_the_write_ahead_log_does_not_grow_for_ever(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(sqlite_store, "RESTART_PAGES", 200)
    store = await stores.replica(flush_bytes=50_000)
    images = [await opened(store, f"s{i}") for i in range(50)]
    sizes = []
    for step in range(200):
        await committed(store, [an_entry(image, step) for image in images])
        await asyncio.sleep(0)
        sizes.append(os.stat(f"{stores.path}-wal").st_size)
    assert max(sizes) < 4_000_000  # of some 8 MB written
    assert (await claimed(store, "s7")).next_step == 200


async def test_trimmed_history_is_deleted(stores: Stores) -> None:
    store = await stores.replica()
    image = await opened(store)
    for start in range(0, 100, 10):
        await stepped(store, image, start, start + 10)
        image = await claimed(store)
        await store.save([Keeping("s", image.epoch, a_snapshot(start + 10), start - 10)])
    assert len(stores.sql("SELECT id FROM run")) == 2
    assert [step for (step,) in stores.sql("SELECT step FROM snapshot ORDER BY step")] == [80, 90, 100]


# Files


async def test_only_its_owner_reads_the_file(stores: Stores) -> None:
    store = await stores.replica()
    await stepped(store, await opened(store), 0, 3)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in stores.path.parent.iterdir()}
    assert modes == {f"sessions.db{end}": 0o600 for end in ("", "-wal", "-shm")}


async def test_a_file_is_found_again(stores: Stores) -> None:
    store = await stores.replica()
    image = await opened(store)
    await stepped(store, image, 0, 3)
    await store.release([Leaving("s", image.epoch, 3, a_snapshot(3))])
    await store.close()
    again = await stores.replica()
    assert (await claimed(again)).snapshot == a_snapshot(3)
    assert again.secret == store.secret


def join_fault(path: Path | str) -> str:
    async def join() -> str:
        store = SqliteStore(str(path), "m")
        with pytest.raises(StoreFault) as caught:
            await store.join("http://here")
        await store.close()
        return str(caught.value)

    return asyncio.run(join())


def test_a_file_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    stores = Stores(tmp_path / "sessions.db")

    async def make() -> None:
        await stores.replica()
        await stores.close()

    asyncio.run(make())
    stores.sql("PRAGMA user_version = 2")
    before = stores.path.read_bytes()
    assert "newer Cellstate" in join_fault(stores.path)
    assert stores.path.read_bytes() == before


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    assert "something else" in join_fault(path)
    path.write_bytes(b"not a database at all " * 100)
    assert "not a SQLite file" in join_fault(path)
    assert path.read_bytes() == b"not a database at all " * 100


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "choose another path" in join_fault(tmp_path / "none" / "sessions.db")
    assert "can't be opened" in join_fault(tmp_path)


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A directory, and the rights of a user who is not root."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.chmod(folder, 0o777) if not root else os.seteuid(0)


def test_a_file_or_directory_that_may_not_be_written() -> None:
    with as_nobody() as folder:
        path = folder / "sessions.db"
        stores = Stores(path)

        async def make() -> None:
            await stores.replica()
            await stores.close()

        asyncio.run(make())
        path.chmod(0o400)
        assert "read-only" in join_fault(path)
    with as_nobody() as folder:
        if os.geteuid() != folder.stat().st_uid:
            folder = Path("/")  # nobody's to write
        else:
            folder.chmod(0o500)
        assert "can't be made" in join_fault(folder / "sessions-of-nobody.db")


FULL = """
import asyncio, resource, sys
from service.sessions.stores.protocol import StoreFault
from service.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores.stores import an_entry, claimed, committed, opened

async def main(path, sync):
    store = SqliteStore(path, "m")
    await store.join("http://here")
    image = await opened(store)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    step = 0
    try:
        while step < 10_000:
            await committed(store, [an_entry(image, step, sync=sync == "sync")])
            step += 1
    except StoreFault as fault:
        print(fault)
    assert 10 < step < 10_000
    for _ in range(3):
        try:
            await committed(store, [an_entry(image, step)])
        except StoreFault:
            pass
        else:
            step += 1  # a small one may find room
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await committed(store, [an_entry(image, step)])
    assert (await claimed(store, window=100_000)).next_step == step + 1
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("sync", ["sync", "journal"])
def test_a_full_disk_fails_commits_and_harms_nothing(tmp_path: Path, sync: str) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "sessions.db"), sync],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "check the disk" in done.stdout or "make room" in done.stdout


async def test_a_page_limit_reached_is_a_fault(stores: Stores) -> None:
    store = await stores.replica()
    image = await opened(store)
    assert store._quick is not None
    store._quick.execute("PRAGMA max_page_count = 60")
    with pytest.raises(StoreFault, match="make room"):
        await stepped(store, image, 0, 1000)
    image = await claimed(store, window=1000)
    assert image.records == [a_record(step) for step in range(image.next_step)]


# Damage


def flipped(data: object, at: int) -> bytes:
    assert isinstance(data, bytes)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


async def test_a_damaged_run_stops_its_session_only(stores: Stores) -> None:
    one, two = await stores.replica(), await stores.replica()
    for name in ("good", "bad"):
        image = await opened(one, name)
        await stepped(one, image, 0, 5)
        await one.release([Leaving(name, image.epoch, 5)])
    ((run, data),) = stores.sql("SELECT id, data FROM run WHERE session = 2")
    for damage in (flipped(data, 60), flipped(data, 2), flipped(data, 30), b"", bytes(data)[:-7]):  # type: ignore[call-overload]
        stores.sql("UPDATE run SET data = ? WHERE id = ?", damage, run)
        with pytest.raises(StoreFault, match="session bad"):
            await two.claim("bad", an_opening(), 256)
    assert (await claimed(two, "good")).next_step == 5
    stores.sql("UPDATE run SET data = ? WHERE id = ?", data, run)
    assert (await claimed(two, "bad")).next_step == 5


@pytest.mark.parametrize("at", [1, 5, 14, 22, 26, 80, -1])
async def test_a_damaged_record_in_the_log_of_the_dead_stops_its_session_only(
    stores: Stores, at: int
) -> None:
    one, two = await stores.replica(), await stores.replica()
    images = [await opened(one, name) for name in ("first", "bad", "last")]
    for step in range(3):
        await committed(one, [an_entry(image, step) for image in images])
    ((seq, data),) = stores.sql("SELECT seq, data FROM log WHERE n = 2")
    assert isinstance(data, bytes)
    first, bad, _ = frames(data)
    place = len(first.data) + at % len(bad.data)
    stores.sql("UPDATE log SET data = ? WHERE seq = ?", flipped(data, place), seq)
    stores.clock.now += 10
    await two.renew()
    assert (await claimed(two, "first")).next_step == 3
    assert (await claimed(two, "last")).next_step == 3
    with pytest.raises(StoreFault, match="session bad"):
        await two.claim("bad", an_opening(), 256)


async def test_a_truncated_log_of_the_dead_stops_the_sessions_it_lacks(stores: Stores) -> None:
    one, two = await stores.replica(), await stores.replica()
    images = [await opened(one, name) for name in ("kept", "cut", "gone")]
    await committed(one, [an_entry(image, 0) for image in images])
    stores.sql("UPDATE log SET data = substr(data, 1, length(data) * 6 / 10)")
    stores.clock.now += 10
    await two.renew()
    assert (await claimed(two, "kept")).next_step == 1
    for name in ("cut", "gone"):
        with pytest.raises(StoreFault, match=f"session {name}"):
            await two.claim(name, None, 256)


async def test_a_damaged_snapshot_stops_its_session(stores: Stores) -> None:
    store = await stores.replica()
    image = await opened(store, opening=an_opening(snapshot=a_snapshot(3)))
    ((data,),) = stores.sql("SELECT data FROM snapshot")
    stores.sql("UPDATE snapshot SET data = ?", flipped(data, 100))
    with pytest.raises(StoreFault, match="snapshot at step 3 is damaged"):
        await store.claim("s", None, 256)
    with pytest.raises(StoreFault, match="snapshot at step 3 is damaged"):
        await store.history("s", image.epoch, 3)
    await stepped(store, image, 3, 4)  # what is in memory goes on


@pytest.mark.parametrize("seed", range(6))
async def test_damaged_pages_give_faults_and_nothing_else(stores: Stores, seed: int) -> None:
    chance = random.Random(seed)
    store = await stores.replica()
    for i in range(60):
        image = await opened(store, f"s{i}")
        await stepped(store, image, 0, 6)
        await store.release([Leaving(f"s{i}", image.epoch, 6, a_snapshot(6))])
    await store.close()
    data = bytearray(stores.path.read_bytes())
    for _ in range(4):
        at = chance.randrange(1024, len(data) - 512)
        data[at : at + 300] = chance.randbytes(300)
    stores.path.write_bytes(data)
    store = SqliteStore(str(stores.path), "m", clock=stores.clock, wall=stores.clock)
    try:
        await store.join("http://here")
        for i in range(60):
            try:
                found = await store.claim(f"s{i}", None, 256)
            except StoreFault:
                continue
            if isinstance(found, Image):
                assert (found.next_step, found.snapshot) == (6, a_snapshot(6))
                assert found.records == [a_record(step, f"s{i}") for step in range(6)]
            else:
                assert isinstance(found, Absent)
    except StoreFault:
        pass  # the file can't be used at all
    finally:
        await store.close()


def test_every_fault_says_what_to_do() -> None:
    for code in range(1, 29):
        error = sqlite3.OperationalError("as SQLite says it")
        error.sqlite_errorcode, error.sqlite_errorname = code, f"CODE_{code}"
        says = str(fault_of(error, "/a/path"))
        assert "/a/path" in says
        assert "as SQLite says it" in says
