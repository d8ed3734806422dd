"""Several threads compute what one does, to the bit; they sleep, wake and end as they should."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from model.config import ModelSpec
from service.engine import cpu_runner
from service.engine.cpu_runner import CpuRunner
from service.engine.native import team
from service.engine.native.team import ASLEEP, can_sleep
from service.engine.runner import Batch, Outcome
from tests.engine.following import make_runner
from tests.engine.making import make_inputs, make_spec
from tests.engine.native.making import PATHS, PROCESSORS

pytestmark = pytest.mark.skipif(not can_sleep(), reason="a system without teams")

SERIES, TEXT = make_spec(hidden=100), make_spec("text", hidden=37, layers=3)
#: In every precision, on the widest vectors and, where there are any, on tiles
LANES = next(iter(PROCESSORS.values())).lanes
FASTEST = [name for name in PATHS if name.endswith(f"of {LANES}")] + [n for n in PATHS if "tiles" in n]
RAGGED = [40, 31, 31, 25, 9, 3, 2, 1]
SLOTS, MOST = 80, 70
PATIENCE_S = 30.0  # of a test with a thread, on a machine that is busy


@pytest.fixture(autouse=True, params=["units", "rows"])
def shared(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """These networks are small: else a step of few sessions would not be shared, or only one way."""
    monkeypatch.setattr(cpu_runner, "SHARED", 1)
    monkeypatch.setattr(cpu_runner, "BY_ROWS", 1 if request.param == "rows" else 1000)


@contextmanager
def runners(spec: ModelSpec, path: str, threads: int) -> Iterator[tuple[CpuRunner, CpuRunner]]:
    """One of a single thread, and one with a team that ends."""
    one = make_runner(spec, path, slots=SLOTS, max_batch=MOST)
    many = make_runner(spec, path, slots=SLOTS, max_batch=MOST, threads=threads)
    try:
        assert many._team.size == threads
        yield one, many
    finally:
        many._team.close()


def states_of(runner: CpuRunner) -> NDArray[np.float32]:
    return runner.arena.states.numpy().copy()


def assert_same(one: Outcome, other: Outcome) -> None:
    for a, b in zip(one.outputs, other.outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.heads.keys() == other.heads.keys()
    for position, head in one.heads.items():
        np.testing.assert_array_equal(head, other.heads[position])


def batch_of(runner: CpuRunner, source: list[int], target: list[int], lengths: list[int], seed: int) -> Batch:
    inputs = [make_inputs(runner.network.spec, t, seed=100 * seed + b) for b, t in enumerate(lengths)]
    return Batch(source, target, inputs, heads=[0])


def assert_agree(one: CpuRunner, many: CpuRunner, batch: Batch) -> None:
    assert_same(many.run(batch), one.run(batch))
    np.testing.assert_array_equal(states_of(many), states_of(one))


def workers() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("cellstate-kernel-")}


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("path", FASTEST)
@pytest.mark.parametrize("spec", [SERIES, TEXT], ids=["series", "text"])
def test_a_step_of_a_team_is_the_step_of_one(spec: ModelSpec, path: str, threads: int) -> None:
    """Of 1 to 70 sessions that begin, stay in their rows, change them, fork and follow each other."""
    rng = np.random.default_rng(3)
    with runners(spec, path, threads) as (one, many):
        for count in range(1, MOST + 1):
            lengths, rows = [1] * count, rng.permutation(SLOTS)[:count].tolist()
            assert_agree(one, many, batch_of(one, [one.arena.padding] * count, rows, lengths, count))
            assert_agree(one, many, batch_of(one, rows, rows, lengths, count))  # in place
            if count % 8 == 7:
                assert_agree(one, many, batch_of(one, rows, rows[1:] + rows[:1], lengths, count))  # around
                assert_agree(one, many, batch_of(one, rows[:1] * count, rows, lengths, count))  # all of one


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("path", FASTEST)
@pytest.mark.parametrize("spec", [SERIES, TEXT], ids=["series", "text"])
def test_a_chunk_of_a_team_is_the_chunk_of_one(
    spec: ModelSpec, path: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged, of one session and of many, in one block and in several; and what evaluation asks for."""
    for block in (256, 7):
        monkeypatch.setattr(cpu_runner, "BLOCK", block)
        with runners(spec, path, threads) as (one, many):
            many_long = sorted(np.random.default_rng(4).integers(1, 20, MOST).tolist(), reverse=True)
            for n, lengths in enumerate((RAGGED, [5], [5, 4], [3, 3, 3], many_long, RAGGED)):
                rows, new = list(range(len(lengths))), [one.arena.padding] * len(lengths)
                assert_agree(one, many, batch_of(one, new, rows, lengths, n))
                batch = batch_of(one, rows, rows, lengths, n)
                assert_agree(one, many, batch)
                # behind a session's end there is nothing to compare
                found, expected = many.tops(batch), one.tops(batch)
                for b, t in enumerate(lengths):
                    np.testing.assert_array_equal(found[:t, b], expected[:t, b])


@pytest.mark.parametrize("threads", [2, 3])
def test_a_chunk_may_read_rows_that_another_session_writes(threads: int) -> None:
    """Around, and all of one that goes on itself: to nobody's thread is a row lost before it was read."""
    rows = list(range(8))
    with runners(SERIES, FASTEST[0], threads) as (one, many):
        assert_agree(one, many, batch_of(one, [one.arena.padding] * 8, rows, RAGGED, 0))
        for n in range(30):
            assert_agree(one, many, batch_of(one, rows, rows[1:] + rows[:1], RAGGED, n))
            assert_agree(one, many, batch_of(one, [0] * 8, rows, RAGGED, n))


def test_2000_steps_in_a_row_are_those_of_one() -> None:
    """Calls that follow each other at once, of another number of sessions each."""
    rows = list(range(9))
    with runners(SERIES, FASTEST[-1], 2) as (one, many):
        for n in range(2000):
            some = rows[: 1 + n % 9]
            batch = batch_of(one, some, some, [1] * len(some), n)
            assert_same(many.run(batch), one.run(batch))
        np.testing.assert_array_equal(states_of(many), states_of(one))


def wait_asleep(runner: CpuRunner) -> None:
    """All workers; there is no event for it."""
    until = time.monotonic() + PATIENCE_S
    while not runner._team._boxes[:, ASLEEP].all():
        assert time.monotonic() < until, "the workers do not go to sleep"
        time.sleep(0.02)


def test_workers_that_have_fallen_asleep_wake_up() -> None:
    rows = list(range(6))
    with runners(TEXT, FASTEST[0], 3) as (one, many):
        for n in range(20):
            wait_asleep(many)
            lengths = [1] * 6 if n % 2 else RAGGED[:6]
            assert_agree(one, many, batch_of(one, rows, rows, lengths, n))


def test_workers_end_with_their_team() -> None:
    before = workers()
    with runners(SERIES, FASTEST[0], 3) as (_, many):
        mine = workers() - before
        assert sorted(t.name for t in mine) == ["cellstate-kernel-1", "cellstate-kernel-2"]
        assert all(t.daemon for t in mine)
        many._team.close()
        assert workers() == before
        many._team.close()  # a second time changes nothing


@pytest.mark.parametrize("asleep", [False, True], ids=["looking", "asleep"])
def test_workers_end_when_nobody_has_the_runner_any_more(asleep: bool) -> None:
    before = workers()
    runner = make_runner(SERIES, FASTEST[0], threads=2)
    runner.run(batch_of(runner, [runner.arena.padding] * 4, [0, 1, 2, 3], [1] * 4, 0))
    assert len(workers() - before) == 1
    if asleep:
        wait_asleep(runner)
    del runner
    gc.collect()
    assert workers() == before


def test_two_teams_do_not_meet() -> None:
    """Each called from a thread of its own."""
    spec, path, rows = TEXT, FASTEST[-1], list(range(8))
    alone = make_runner(spec, path, slots=SLOTS, max_batch=MOST)
    batches = [batch_of(alone, rows, rows, RAGGED if n % 5 == 0 else [1] * 8, n) for n in range(60)]
    expected = [alone.run(batch) for batch in batches]
    found: dict[int, list[Outcome]] = {}

    def work(number: int, runner: CpuRunner) -> None:
        found[number] = [runner.run(batch) for batch in batches]

    teams = [make_runner(spec, path, slots=SLOTS, max_batch=MOST, threads=2) for _ in range(2)]
    threads = [threading.Thread(target=work, args=item) for item in enumerate(teams)]
    for thread in threads:
        thread.start()
    for thread, runner in zip(threads, teams, strict=True):
        thread.join()
        runner._team.close()
    assert sorted(found) == [0, 1]
    for outcomes in found.values():
        for one, other in zip(outcomes, expected, strict=True):
            assert_same(one, other)
    for runner in teams:
        np.testing.assert_array_equal(states_of(runner), states_of(alone))


def test_where_no_thread_can_sleep_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "can_sleep", lambda: False)
    before = workers()
    many = make_runner(SERIES, FASTEST[0], threads=4)
    assert many._team.size == len(many._hands) == 1
    assert workers() == before
    one = make_runner(SERIES, FASTEST[0])
    for lengths in ([1] * 8, RAGGED):
        assert_agree(one, many, batch_of(one, [one.arena.padding] * 8, list(range(8)), lengths, 0))


@pytest.mark.parametrize(
    ("system", "machine", "found"),
    [
        ("Linux", "x86_64", True),
        ("Linux", "aarch64", True),
        ("Linux", "riscv64", False),
        ("Darwin", "arm64", False),
        ("Windows", "AMD64", False),
    ],
)
def test_threads_sleep_where_their_system_call_is_known(
    system: str, machine: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert can_sleep() == found
