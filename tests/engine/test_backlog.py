"""What a request would wait. Seconds here are told, none pass."""

from __future__ import annotations

from itertools import pairwise

import pytest

from service.engine.backlog import OUTLIER, Backlog
from service.engine.jobs import Job, Phase, StateHandle
from tests.engine.making import Clock, make_engine, make_job, tick

MS = 1e-3


def make_backlog(steps: int, *, cost: float = MS, between: float = 0.0) -> Backlog:
    """Ticks of ten steps each, one behind the other but for the time between; then so many steps wait."""
    backlog, now = Backlog(), 0.0
    backlog.steps = steps
    for _ in range(20):
        now += between + 10 * cost
        backlog.learn(10, 10 * cost, now)
    return backlog


def test_while_nothing_is_known_nobody_waits() -> None:
    backlog = Backlog()
    backlog.steps = 10_000
    assert backlog.wait(100, 100) == 0.0


def test_a_request_waits_for_what_is_before_it() -> None:
    backlog = make_backlog(500)
    assert backlog.wait(1000, 5) == pytest.approx(0.5)
    assert backlog.seconds(64) == pytest.approx(0.064)


def test_a_small_one_passes_the_large_ones() -> None:
    backlog = make_backlog(5 * 1000)
    assert backlog.wait(2, 5) == pytest.approx(0.010)
    assert backlog.wait(1000, 5) == pytest.approx(5.0)


def test_what_runs_between_the_ticks_counts_while_there_is_work() -> None:
    assert make_backlog(500, between=30 * MS).wait(1000, 5) == pytest.approx(4 * 0.5)
    assert make_backlog(0, between=30 * MS).seconds(64) == pytest.approx(0.064)  # it was idle


def test_one_tick_that_the_machine_held_up_changes_little() -> None:
    backlog = make_backlog(100)
    backlog.learn(10, 10.0, 20.0)
    assert backlog.seconds(100) < 0.1 * (1 + OUTLIER) ** 2


def test_a_new_pace_is_known_after_some_ticks() -> None:
    backlog = make_backlog(100)
    for _ in range(200):
        backlog.learn(10, 20 * MS, 0.0)
    assert backlog.seconds(10) == pytest.approx(20 * MS, rel=0.1)


def test_steps_are_waited_for_until_they_were_run() -> None:
    clock = Clock()
    engine = make_engine(quantum=4, clock=clock)
    jobs = [make_job(engine, 12, StateHandle()) for _ in range(2)]
    for job in jobs:
        engine.submit(job)
    counted = []
    while engine.has_work:
        counted.append(engine._backlogs[False].steps)
        ended = tick(engine)
        for job in ended:
            engine.commit(job)
    assert counted[0] == 24
    assert all(later < earlier for earlier, later in pairwise(counted))
    assert engine._backlogs[False].steps == 0
    engine.check_integrity()


def test_a_job_that_is_dropped_is_waited_for_no_more() -> None:
    engine = make_engine()
    job = make_job(engine, 12, StateHandle())
    job.gone = lambda: True
    engine.submit(job)
    tick(engine)
    assert job.phase is Phase.DROPPED
    assert engine._backlogs[False].steps == 0
    engine.check_integrity()


def test_single_steps_are_not_counted() -> None:
    engine = make_engine()
    job: Job = make_job(engine, 1)
    engine.submit(job)
    assert engine._backlogs[False].steps == 0
