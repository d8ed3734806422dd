"""Sessions of a watch model: what is remembered beside h and c goes along, and moves only at a commit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.bundle import Bundle
from model.watch.detector import Detector
from model.watch.watcher import CARRY, check_carry
from service.engine.engine import Engine
from service.errors import InvalidValue, Unavailable
from service.sessions.custody import Upkeep
from service.sessions.inputs import InputReader
from service.sessions.manager import SessionManager
from service.sessions.memory import Form, Memory
from service.sessions.record import CorruptRecord
from service.sessions.register import Limits
from service.sessions.replies import Options, Reply, StepCommand
from service.sessions.retention import Retention
from service.sessions.shared import SharedManager
from service.sessions.snapshot import Snapshot
from service.sessions.store import MemoryStore
from service.sessions.stores.protocol import StoreFault
from service.sessions.stores.sqlite import SqliteStore
from tests.engine.making import CPU
from tests.model.watch.making import make_series, make_watch_bundle
from tests.sessions.making import JournalStore
from tests.sessions.simulated import Cluster, Replica, make_cluster, simulated

#: Between the engine's kernels and the network itself; values are near 1e6, likelihoods near 1
CLOSE = 1e-4
VALUES = make_series(120)


class Story:
    """A session's values in order, and what the detector says of each."""

    def __init__(self, bundle: Bundle, session_id: str = "a", values: list[float] = VALUES) -> None:
        self._reader, self.id, self.values = InputReader(bundle.spec, 10_000), session_id, values
        detector = Detector(bundle)
        readings = [detector.step(value) for value in values]
        self.expected = np.array([(r.expected, r.low, r.high, r.score, r.likelihood) for r in readings])

    def command(self, step: int, count: int = 1, session_id: str = "") -> StepCommand:
        steps = self._reader.series([[value] for value in self.values[step : step + count]])
        return StepCommand(session_id or self.id, steps, step)

    def check(self, reply: Reply) -> None:
        """The reply is what the detector says."""
        assert reply.outputs.shape == (reply.next_step - reply.step, 5)
        np.testing.assert_allclose(reply.outputs, self.expected[reply.step : reply.next_step], CLOSE, CLOSE)


def make_manager(
    bundle: Bundle, store: MemoryStore, slots: int = 16, host_sessions: int = 1000
) -> SessionManager:
    engine = Engine(bundle.network(), slots=slots, max_batch=8, quantum=4, device=CPU)
    limits = Limits(100, host_sessions, 100, 60.0, 16, "none", float("inf"))
    return SessionManager(bundle, engine, store, limits)


async def go(
    manager: SessionManager, story: Story, steps: range, count: int = 1, session_id: str = ""
) -> None:
    for step in steps[::count]:
        story.check(await manager.step(story.command(step, count, session_id)))


async def test_a_served_session_says_what_the_detector_says_in_one_request_or_in_many() -> None:
    bundle = make_watch_bundle()
    story, manager = Story(bundle), make_manager(bundle, MemoryStore())
    assert story.expected[:, 4].max() > 0.5
    await go(manager, story, range(20))
    await go(manager, story, range(20, 120), count=25)
    story.check(await manager.predict(story.command(0, 120)))
    retry = await manager.step(story.command(95, 25))
    assert retry.replayed
    story.check(retry)
    manager.check_integrity()
    manager.close()


async def test_it_goes_on_from_where_it_was_after_spill_and_store() -> None:
    bundle = make_watch_bundle()
    stories = [Story(bundle, name, make_series(40, seed)) for seed, name in enumerate("abcdef")]
    manager = make_manager(bundle, MemoryStore(), slots=4, host_sessions=1)
    places = set()
    for step in range(40):
        for story in stories:
            await go(manager, story, range(step, step + 1))
            await asyncio.sleep(0)
        places |= {place for place, count in manager.places().items() if count}
    assert {"host", "store"} <= places
    manager.close()


async def test_forks_and_snapshots_take_the_carry_along() -> None:
    bundle = make_watch_bundle()
    story, manager = Story(bundle), make_manager(bundle, MemoryStore())
    await go(manager, story, range(30))
    await manager.fork("a", "b", None)
    await go(manager, story, range(30, 60))
    await go(manager, story, range(30, 50), session_id="b")
    snapshot = await manager.snapshot("a")
    again = Snapshot.parse(snapshot.dump(), Form.of(bundle.spec), bundle.digest)
    assert again.dump() == snapshot.dump()
    other = make_manager(bundle, MemoryStore())
    assert await other.restore("c", again)
    await go(other, story, range(60, 80), session_id="c")
    await manager.restore("b", again)
    await go(manager, story, range(60, 120), 30, session_id="b")
    fresh = manager.open("new")
    empty = await manager.snapshot(fresh.id)
    assert empty.carry is not None
    check_carry(empty.carry)
    manager.close()
    other.close()


async def test_a_step_that_is_not_committed_leaves_the_carry() -> None:
    bundle, store = make_watch_bundle(), JournalStore()
    story, manager = Story(bundle), make_manager(bundle, store)
    await go(manager, story, range(30))
    store.broken = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            await manager.step(story.command(30, 5))
    store.broken = False
    await go(manager, story, range(30, 120), count=10)
    manager.close()


async def test_what_else_may_be_asked_for() -> None:
    bundle = make_watch_bundle()
    story, manager = Story(bundle), make_manager(bundle, MemoryStore())
    command = story.command(0, 10)
    command.options = Options(gates=True, state=True)
    reply = await manager.step(command)
    story.check(reply)
    assert reply.gates is not None
    assert reply.state is not None
    with pytest.raises(InvalidValue, match=r"more than 1e\+30"):
        InputReader(bundle.spec, 10).series([[1e31]])
    manager.close()


# With a store


@simulated
async def test_a_session_comes_to_another_replica_handed_over_or_after_a_crash() -> None:
    async with make_cluster(0) as cluster:
        bundle = make_watch_bundle()
        one, two = await cluster.add(bundle=bundle), await cluster.add(bundle=bundle)
        story = Story(bundle)
        await through(cluster, one, story, range(10))
        await asyncio.sleep(2)
        await through(cluster, two, story, range(10, 30))  # handed over
        await cluster.crash(two)
        await through(cluster, one, story, range(30, 60), count=3)  # taken over, and run again


@simulated
async def test_it_is_rewound_and_forked_at_an_earlier_step() -> None:
    async with make_cluster(0) as cluster:
        bundle = make_watch_bundle()
        one, story = await cluster.add(bundle=bundle), Story(bundle)
        await through(cluster, one, story, range(40))
        await one.manager.rewind("a", 33)
        await through(cluster, one, story, range(33, 50))
        await one.manager.fork("a", "b", 45)
        for step in range(45, 60):
            story.check(await cluster.step(one, story.command(step, 1, "b")))


@simulated
async def test_a_commit_that_is_refused_or_unknown_is_what_the_store_says() -> None:
    async with make_cluster(0) as cluster:
        bundle = make_watch_bundle()
        one, story = await cluster.add(bundle=bundle), Story(bundle)
        await through(cluster, one, story, range(20))
        for after in (False, True):
            one.store.fail("commit", StoreFault("the disk is full"), after=False)
            with pytest.raises(Unavailable):
                await cluster.step(one, story.command(20 + after))
            await through(cluster, one, story, range(20 + after, 21 + after))
        await through(cluster, one, story, range(22, 40))


async def through(cluster: Cluster, replica: Replica, story: Story, steps: range, count: int = 1) -> None:
    for step in steps[::count]:
        story.check(await cluster.step(replica, story.command(step, count)))


async def test_a_process_that_dies_is_followed_by_one_that_reads_snapshot_and_journal(tmp_path: Path) -> None:
    bundle = make_watch_bundle()
    story = Story(bundle, values=make_series(300))
    limits = Limits(100, 1000, 100, 60.0, 16, "journal")
    upkeep = Upkeep(16, Retention(16), "replay")

    async def process(steps: range) -> bytes:
        """A process from its start to its death: nothing is released."""
        engine = Engine(bundle.network(), slots=16, max_batch=8, quantum=64, device=CPU)
        store = SqliteStore(str(tmp_path / "s.db"), "watch")
        manager = SharedManager(bundle, engine, store, limits, upkeep, nobody)
        await manager.start("http://one")
        await go(manager, story, steps)
        snapshot = await manager.snapshot("a")
        manager.close()
        await manager.stop()
        return snapshot.dump()

    await process(range(10))
    await process(range(10, 150))  # beyond a snapshot of the store
    await process(range(150, 160))


async def nobody(address: str, session_id: str) -> bool | None:
    return None


# On the wire and on disk


def make_memory() -> Memory:
    form = Form.of(make_watch_bundle().spec)
    return Memory(np.zeros(form.shape, np.float32), np.linspace(0, 1, CARRY))


def test_a_packed_memory_is_read_again_and_a_damaged_one_is_not() -> None:
    form, memory = Form.of(make_watch_bundle().spec), make_memory()
    blob = memory.pack()
    again = form.unpack(blob, "a")
    np.testing.assert_array_equal(again.state, memory.state)
    np.testing.assert_array_equal(_carry(again), _carry(memory))
    with pytest.raises(CorruptRecord, match="checksum"):
        form.unpack(blob[:-1] + bytes([blob[-1] ^ 1]), "a")
    with pytest.raises(CorruptRecord, match="another size"):
        Form(form.shape).unpack(blob, "a")


def _carry(memory: Memory) -> NDArray[np.float64]:
    assert memory.carry is not None
    return memory.carry


def test_a_snapshot_without_a_carry_or_with_a_wrong_one_is_refused() -> None:
    form, memory = Form.of(make_watch_bundle().spec), make_memory()
    with pytest.raises(InvalidValue, match="must hold"):
        Snapshot.parse(Snapshot(memory.state, 3, "watch", "1", "d").dump(), form, "d")
    for bad in (np.full(CARRY, np.nan), np.full(CARRY, -1.0), np.zeros(CARRY - 1)):
        with pytest.raises(InvalidValue) as raised:
            Snapshot.parse(Snapshot(memory.state, 3, "watch", "1", "d", bad).dump(), form, "d")
        assert raised.value.facts["field"] == "carry"
    with pytest.raises(InvalidValue, match="must hold"):
        Snapshot.parse(Snapshot(memory.state, 3, "w", "1", "d", memory.carry).dump(), Form(form.shape), "d")
