from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model.bundle import Bundle
from model.config import ModelSpec
from service.engine.engine import Engine
from service.errors import InvalidValue, SessionExists, Unavailable, VersionConflict
from service.sessions.custody import Upkeep
from service.sessions.inputs import InputReader
from service.sessions.manager import SessionManager
from service.sessions.register import Limits
from service.sessions.replies import Options, StepCommand
from service.sessions.retention import Retention
from service.sessions.shared import SharedManager
from service.sessions.store import MemoryStore as Nothing
from service.sessions.stores.memory import MemoryStore, Shelf
from service.sessions.versions import Versions
from tests.engine.making import CPU, Oracle, make_network, make_spec
from tests.sessions.making import TOLERANCE, make_rows

LIMITS = Limits(100, 1000, 100, 60.0, 64, "journal")


def make_version(version: str, seed: int, *, inputs: int = 3, hidden: int = 8, shift: float = 0.0) -> Bundle:
    """shift: of the inputs' means, so that a step that one version has read is not another's."""
    spec = make_spec(inputs=inputs, hidden=hidden)
    signals = tuple(replace(signal, mean=signal.mean + shift) for signal in spec.inputs)
    spec = replace(spec, inputs=signals, outputs=signals)
    weights = make_network(spec, seed).state_dict()
    return Bundle("tiny", version, spec, weights, digest=f"{seed}" * 64)


def make_timed(version: str, seed: int, calendar: tuple[str, ...]) -> Bundle:
    """Two values and the time."""
    spec = make_spec(inputs=2, hidden=8, calendar=calendar)
    return Bundle("tiny", version, spec, make_network(spec, seed).state_dict(), digest=f"{seed}" * 64)


V1, V2 = make_version("1", 1), make_version("2", 2, shift=0.5)
WIDE = make_version("3", 3, inputs=4)


async def nobody(address: str, session_id: str) -> bool:
    return False


def make_engine(bundle: Bundle) -> Engine:
    return Engine(bundle.network(), slots=16, max_batch=8, quantum=4, device=CPU)


@asynccontextmanager
async def replica(shelf: Shelf, upgrade: str, *bundles: Bundle) -> AsyncIterator[Versions]:
    """Serves these versions, the newest first, of which only pinned sessions need the others."""
    store = MemoryStore(shelf)
    upkeep = Upkeep(64, Retention(64), upgrade, {bundle.digest: bundle.spec for bundle in bundles})
    managers: list[SharedManager] = []
    for bundle in bundles if upgrade == "pin" else bundles[:1]:
        beside = managers[0] if managers else None
        managers.append(
            SharedManager(bundle, make_engine(bundle), store, LIMITS, upkeep, nobody, beside=beside)
        )
    versions = Versions(managers)
    await versions.start("http://here")
    try:
        yield versions
        versions.check_integrity()
        assert await versions.drain(5)
        await versions.leave()
    finally:
        versions.close()
        await versions.stop()


def command(
    spec: ModelSpec, session_id: str, step: int, count: int = 1, options: Options | None = None
) -> StepCommand:
    """Steps of the session's one sequence, read for that version."""
    rows = make_rows(V1.spec, 100, seed=sum(session_id.encode()))[step : step + count]
    return StepCommand(session_id, InputReader(spec, 1000).series(rows), step, options or Options())


def expected(bundle: Bundle, session_id: str, first: int, end: int) -> Oracle:
    """The reference, run over that part of the session's sequence from zeros."""
    oracle = Oracle(bundle.network())
    oracle.run(command(bundle.spec, session_id, first, end - first).steps.prepared)
    return oracle


async def state(versions: Versions, session_id: str) -> NDArray[np.float32]:
    return (await versions.snapshot(session_id)).state


def on(versions: Versions, session_id: str) -> str:
    return versions.of(session_id).bundle.version


@pytest.fixture
def ids() -> list[str]:
    return [f"s{n}" for n in range(6)]


@pytest.fixture
async def shelf(ids: list[str]) -> Shelf:
    """Sessions of version 1 with 5 steps each."""
    shelf = Shelf()
    async with replica(shelf, "pin", V1) as old:
        for name in ids:
            for step in range(5):
                await old.step(command(V1.spec, name, step))
    return shelf


async def test_a_pinned_session_stays_on_its_version_until_it_ends(shelf: Shelf, ids: list[str]) -> None:
    async with replica(shelf, "pin", V2, V1) as new:
        # Read for the newest version, as nobody knows better before the session has come
        replies = await asyncio.gather(*(new.step(command(V2.spec, name, 5, 2)) for name in ids))
        assert [reply.next_step for reply in replies] == [7] * len(ids)
        for name in ids:
            assert on(new, name) == "1"
            np.testing.assert_allclose(await state(new, name), expected(V1, name, 0, 7).state, atol=TOLERANCE)
        await new.step(command(V2.spec, "fresh", 0))
        assert on(new, "fresh") == "2"
        assert [len(manager) for manager in new.managers] == [1, len(ids)]
        with pytest.raises(SessionExists):
            await new.open_session(ids[0])
        await new.end(ids[0])
        await new.step(command(V2.spec, ids[0], 0))
        assert on(new, ids[0]) == "2"
        np.testing.assert_allclose(await state(new, ids[0]), expected(V2, ids[0], 0, 1).state, atol=TOLERANCE)


async def test_what_waits_for_a_session_goes_with_it_in_order(shelf: Shelf) -> None:
    async with replica(shelf, "pin", V2, V1) as new:
        steps = [new.step(command(V2.spec, "s0", step)) for step in (5, 6, 7)]
        snapshot = new.snapshot("s0")
        end = new.end("s0")
        again = new.step(command(V2.spec, "s0", 0))
        assert [(await step).step for step in steps] == [5, 6, 7]
        assert ((await snapshot).next_step, (await snapshot).digest) == (8, V1.digest)
        await end
        assert (await again).next_step == 1
        assert on(new, "s0") == "2"


async def test_a_retry_is_answered_by_the_version_that_stepped(shelf: Shelf) -> None:
    async with replica(shelf, "pin", V2, V1) as new:
        reply = await new.step(command(V2.spec, "s1", 4))
        assert reply.replayed
        assert reply.next_step == 5


async def test_a_fork_is_of_the_same_version_and_never_over_another(shelf: Shelf) -> None:
    async with replica(shelf, "pin", V2, V1) as new:
        await new.fork("s0", "forked", 3)
        assert on(new, "forked") == "1"
        np.testing.assert_allclose(await state(new, "forked"), expected(V1, "s0", 0, 3).state, atol=TOLERANCE)
        await new.step(command(V2.spec, "fresh", 0))
        with pytest.raises(SessionExists):
            await new.fork("s0", "fresh", None)
        assert (await new.step(command(V2.spec, "fresh", 1))).next_step == 2
        await new.rewind("s0", 2)
        np.testing.assert_allclose(await state(new, "s0"), expected(V1, "s0", 0, 2).state, atol=TOLERANCE)


async def test_a_replayed_session_is_what_the_new_version_makes_of_its_history(
    shelf: Shelf, ids: list[str]
) -> None:
    async with replica(shelf, "replay", V2, V1) as new:
        await asyncio.gather(*(new.step(command(V2.spec, name, 5)) for name in ids))
        for name in ids:
            np.testing.assert_allclose(await state(new, name), expected(V2, name, 0, 6).state, atol=TOLERANCE)
        assert new.newest.counters.upgraded == {"replay": len(ids)}
        assert (await new.step(command(V2.spec, ids[0], 2))).replayed
    async with replica(shelf, "replay", V2) as again:
        await again.step(command(V2.spec, ids[0], 6))
        np.testing.assert_allclose(
            await state(again, ids[0]), expected(V2, ids[0], 0, 7).state, atol=TOLERANCE
        )
        assert not again.newest.counters.upgraded


async def test_a_reset_session_goes_on_from_zeros(shelf: Shelf, ids: list[str]) -> None:
    async with replica(shelf, "reset", V2) as new:
        await asyncio.gather(*(new.step(command(V2.spec, name, 5)) for name in ids))
        for name in ids:
            np.testing.assert_allclose(await state(new, name), expected(V2, name, 5, 6).state, atol=TOLERANCE)


async def test_with_other_inputs_nothing_can_be_replayed_and_nothing_is_damaged(shelf: Shelf) -> None:
    rows = make_rows(WIDE.spec, 1)
    wide = StepCommand("s0", InputReader(WIDE.spec, 10).series(rows), 5)
    async with replica(shelf, "replay", WIDE) as new:
        with pytest.raises(VersionConflict, match="number of inputs"):
            await new.step(wide)
        assert len(new) == 0
    async with replica(shelf, "pin", WIDE, V1) as both:
        with pytest.raises(InvalidValue):
            await both.step(wide)  # by now it is known what it must be
        reply = await both.step(command(V1.spec, "s0", 5))
        assert reply.next_step == 6
        np.testing.assert_allclose(await state(both, "s0"), expected(V1, "s0", 0, 6).state, atol=TOLERANCE)


async def test_a_history_without_the_time_is_not_replayed_as_one_with_it(shelf: Shelf) -> None:
    timed = make_timed("4", 4, ("day",))
    assert len(timed.spec.inputs) == len(V1.spec.inputs)
    rows = make_rows(timed.spec, 3)
    after = StepCommand("s0", InputReader(timed.spec, 10).series(rows[:1]), 5)
    async with replica(shelf, "replay", timed, V1) as new:
        with pytest.raises(VersionConflict, match="another time among its inputs"):
            await new.step(after)
        with pytest.raises(InvalidValue, match="another time"):
            InputReader(timed.spec, 10).again(command(V1.spec, "s0", 5).steps)
    younger = make_timed("5", 5, ("week", "day"))
    async with replica(shelf, "replay", timed) as new:
        for step, row in enumerate(rows[:2]):
            await new.step(StepCommand("t", InputReader(timed.spec, 10).series([row]), step))
    async with replica(shelf, "replay", younger, timed) as new:
        reader = InputReader(younger.spec, 10)
        await new.step(StepCommand("t", reader.series(rows[2:]), 2))
        oracle = Oracle(younger.network())
        oracle.run(reader.series(rows).prepared)
        np.testing.assert_allclose(await state(new, "t"), oracle.state, atol=TOLERANCE)


async def test_versions_only_go_up(shelf: Shelf) -> None:
    async with replica(shelf, "replay", V2) as new:
        await new.step(command(V2.spec, "s0", 5))
    for upgrade in ("pin", "replay", "reset"):
        async with replica(shelf, upgrade, V1) as old:
            with pytest.raises(Unavailable, match="version 2"):
                await old.step(command(V1.spec, "s0", 6))
    async with replica(shelf, "replay", V2) as new:
        assert (await new.step(command(V2.spec, "s0", 6))).next_step == 7


async def test_a_snapshot_decides_the_version_that_its_session_is_on(shelf: Shelf) -> None:
    async with replica(shelf, "pin", V2, V1) as new:
        old = await new.snapshot("s0")
        await new.step(command(V2.spec, "fresh", 0))
        young = await new.snapshot("fresh")
        assert await new.restore("copy", old) is True
        assert on(new, "copy") == "1"
        assert await new.restore("fresh", old) is False
        await new.find("fresh")
        assert (on(new, "fresh"), (await new.find("fresh")).next_step) == ("1", 5)
        np.testing.assert_array_equal(await state(new, "fresh"), old.state)
        assert await new.restore("s1", young) is False
        await new.find("s1")
        assert on(new, "s1") == "2"
        np.testing.assert_array_equal(await state(new, "s1"), young.state)
        with pytest.raises(InvalidValue, match="not served here"):
            new.restore("copy", replace(old, digest="f" * 64))
    async with replica(shelf, "replay", V2, V1) as new:
        with pytest.raises(InvalidValue, match="not served here"):
            new.restore("copy", old)


async def test_a_horizon_is_what_the_sessions_version_sees() -> None:
    shelf, spec = Shelf(), make_spec(hidden=8, leads=2)
    narrow = replace(spec, architecture=replace(spec.architecture, output_size=1), outputs=spec.outputs[:1])
    weights = make_network(narrow).state_dict()
    short = Bundle("tiny", "0", narrow, weights, digest="0" * 64)
    async with replica(shelf, "pin", short) as old:
        await old.step(command(narrow, "s0", 0))
    async with replica(shelf, "pin", V2, short) as new:
        with pytest.raises(InvalidValue, match="sees 2 steps ahead"):
            await new.step(command(V2.spec, "s0", 1, options=Options(horizon=3)))
        reply = await new.step(command(V2.spec, "s0", 1, options=Options(horizon=2)))
        assert reply.forecast is not None
        assert reply.forecast.shape == (2, 1)


async def test_no_room_on_the_sessions_version_leaves_it_for_another_time(shelf: Shelf) -> None:
    async with replica(shelf, "pin", V2, V1) as new:
        new.managers[1]._register._limits = replace(LIMITS, sessions=1)
        await new.step(command(V2.spec, "s0", 5))
        with pytest.raises(Exception, match="the most"):
            await new.step(command(V2.spec, "s1", 5))
        new.managers[1]._register._limits = LIMITS
        assert (await new.step(command(V2.spec, "s1", 5))).next_step == 6


async def test_without_a_store_there_is_one_version() -> None:
    one, other = (SessionManager(b, make_engine(b), Nothing(), LIMITS) for b in (V2, V1))
    try:
        with pytest.raises(ValueError, match="one version"):
            Versions([one, other])
        with pytest.raises(ValueError, match="differ"):
            Versions([one, one])
    finally:
        one.close()
        other.close()
