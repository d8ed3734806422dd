"""The engine: copy on write, ends, turns, and memory for more sessions than slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.engine import Engine, EngineError
from service.engine.jobs import Job, Phase, Place, Prepared, StateHandle
from service.engine.rollouts import Forecast
from tests.engine.making import (
    Clock,
    Oracle,
    assert_outputs,
    assert_state,
    bad_job,
    finish,
    make_engine,
    make_inputs,
    make_job,
    make_spec,
    run,
    tick,
)


def make_states(engine: Engine, count: int) -> tuple[list[StateHandle], list[Oracle]]:
    """Sessions that have made some steps, each another sequence, with their oracles."""
    states, oracles = [], []
    for n in range(count):
        states.append(StateHandle())
        oracles.append(Oracle(engine.runner.network))
        job = make_job(engine, 3 + n, states[-1], seed=50 + n)
        oracles[-1].run(job.inputs)
        run(engine, job)
    return states, oracles


def start(engine: Engine, job: Job) -> Job:
    """Submits and runs to its end, uncommitted."""
    engine.submit(job)
    while job.phase in (Phase.WAITING, Phase.RUNNING):
        tick(engine)
    return job


class Raising:
    """A rollout that can't go on."""

    steps = 3

    def feed(
        self, head: NDArray[np.float32], quantiles: NDArray[np.float32] | None = None
    ) -> Prepared | None:
        raise ArithmeticError("no head for heads")


# Copy on write


def test_a_session_moves_at_its_commit_and_not_before() -> None:
    engine = make_engine()
    (state,), (oracle,) = make_states(engine, 1)
    before = engine.read(state)
    job = start(engine, make_job(engine, 6, state))
    assert job.phase is Phase.DONE
    np.testing.assert_array_equal(engine.read(state), before)
    oracle.run(job.inputs)
    np.testing.assert_allclose(engine.read_new(job), oracle.state, atol=1e-5)
    engine.commit(job)
    assert_state(engine, state, oracle)
    engine.check_integrity()


def test_an_aborted_job_leaves_the_session_where_it_was() -> None:
    engine = make_engine()
    (state,), (oracle,) = make_states(engine, 1)
    before, free = engine.read(state), engine.slots.free
    job = start(engine, make_job(engine, 6, state, rollout=Forecast(make_spec(), 9)))
    engine.abort(job)
    engine.check_integrity()
    assert job.phase is Phase.ABORTED
    assert engine.slots.free == free
    np.testing.assert_array_equal(engine.read(state), before)
    again = make_job(engine, 6, state)
    run(engine, again)
    assert_outputs(engine, again, oracle.run(again.inputs))
    assert_state(engine, state, oracle)


def test_an_aborted_first_job_leaves_a_session_that_never_began() -> None:
    engine = make_engine()
    state = StateHandle()
    engine.abort(start(engine, make_job(engine, 5, state)))
    assert state.place is Place.FRESH
    assert not engine.read(state).any()
    assert engine.slots.free == engine.slots.slots


def test_a_state_has_one_job_at_a_time() -> None:
    engine = make_engine()
    state = StateHandle()
    engine.submit(make_job(engine, 1, state))
    with pytest.raises(RuntimeError, match="has a job already"):
        engine.submit(make_job(engine, 1, state))
    with pytest.raises(RuntimeError, match="has a job"):
        engine.forget(state)


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_a_job_ends_once(ending: str) -> None:
    engine = make_engine()
    job = start(engine, make_job(engine, 1, StateHandle()))
    getattr(engine, ending)(job)
    for again in (engine.commit, engine.abort):
        with pytest.raises(RuntimeError, match="expected no move at all"):
            again(job)
    engine.check_integrity()


def test_a_waiting_job_can_be_neither_committed_nor_aborted() -> None:
    engine = make_engine()
    job = make_job(engine)
    for verb in (engine.commit, engine.abort):
        with pytest.raises(RuntimeError, match="a job that is waiting expected"):
            verb(job)


def test_a_job_without_a_state_leaves_nothing_behind() -> None:
    engine = make_engine()
    job = make_job(engine, 9)
    run(engine, job)
    assert_outputs(engine, job, Oracle(engine.runner.network).run(job.inputs))
    assert engine.slots.free == engine.slots.slots
    assert engine.resident == engine.running == 0


# Ends


def test_when_the_runner_raises_every_job_of_the_batch_fails_and_no_session_moves() -> None:
    engine = make_engine()
    states, oracles = make_states(engine, 3)
    before = [engine.read(state) for state in states]
    jobs = [
        make_job(engine, 2, states[0]),
        bad_job(states[1], 2),
        make_job(engine, 9, states[2]),
        make_job(engine, 3),
    ]
    for job in jobs:
        engine.submit(job)
    assert set(tick(engine)) == set(jobs)
    for job in jobs:
        assert job.phase is Phase.FAILED
        assert isinstance(job.error, EngineError)
    for state, old in zip(states, before, strict=True):
        np.testing.assert_array_equal(engine.read(state), old)
    assert not engine.has_work
    assert engine.running == 0
    again = [make_job(engine, 4, state) for state in states]
    run(engine, *again)
    for job, oracle in zip(again, oracles, strict=True):
        assert_outputs(engine, job, oracle.run(job.inputs))


def test_a_job_that_fails_in_a_later_tick_leaves_its_session_before_the_request() -> None:
    engine = make_engine(quantum=4)
    (state,), _ = make_states(engine, 1)
    before = engine.read(state)
    long = make_job(engine, 10, state)
    engine.submit(long)
    assert tick(engine) == []
    engine.submit(bad_job(steps=2))
    assert long in tick(engine)
    assert long.phase is Phase.FAILED
    np.testing.assert_array_equal(engine.read(state), before)


def test_a_group_that_fails_leaves_the_groups_before_and_behind_it_alone() -> None:
    """Traced jobs are groups of their own, and have ticks of their own."""
    engine = make_engine()
    good, poisoned, traced = make_job(engine, 2), bad_job(), make_job(engine, 2, trace=True)
    poisoned.trace = True
    for job in (poisoned, good, traced):
        engine.submit(job)
    assert tick(engine) == [good]
    assert len(tick(engine)) == 2
    assert [good.phase, poisoned.phase, traced.phase] == [Phase.DONE, Phase.FAILED, Phase.DONE]
    plain_fails = [bad_job(), make_job(engine, 2, trace=True)]
    for job in plain_fails:
        engine.submit(job)
    assert len(tick(engine) + tick(engine)) == 2
    assert [job.phase for job in plain_fails] == [Phase.FAILED, Phase.DONE]


def test_a_rollout_that_raises_fails_its_own_job_alone() -> None:
    """Its neighbours in the batch go on, those that are not finished too."""
    engine = make_engine(quantum=4)
    (state, other), (_, oracle) = make_states(engine, 2)
    before = engine.read(state)
    long, done = make_job(engine, 9, other), make_job(engine, 3)
    for job in (long, done, failing := make_job(engine, 2, state, rollout=Raising())):
        engine.submit(job)
    assert set(tick(engine)) == {done, failing}
    assert [done.phase, failing.phase] == [Phase.DONE, Phase.FAILED]
    assert str(failing.error) == "ArithmeticError: no head for heads"
    np.testing.assert_array_equal(engine.read(state), before)
    finish(engine)
    assert_outputs(engine, long, oracle.run(long.inputs))


def test_states_that_cannot_be_loaded_fail_their_own_jobs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    states, oracles = make_states(engine, 2)
    engine.spill(states)
    back = [make_job(engine, 1, state) for state in states]
    for job in (first := make_job(engine), *back, last := make_job(engine)):
        engine.submit(job)
    with monkeypatch.context() as patched:
        patched.setattr(engine.arena, "load_batch", _fail_to_copy)
        assert set(tick(engine)) == {first, *back, last}
    assert [job.phase for job in (first, *back, last)] == [Phase.DONE, Phase.FAILED, Phase.FAILED, Phase.DONE]
    assert (engine.restored, engine.on_host) == (0, 2)
    for state, oracle in zip(states, oracles, strict=True):
        assert (state.job, state.place) == (None, Place.HOST)
        assert_state(engine, state, oracle)
    again = [make_job(engine, 2, state) for state in states]
    run(engine, *again)
    for job, oracle in zip(again, oracles, strict=True):
        assert_outputs(engine, job, oracle.run(job.inputs))


def test_a_spill_that_fails_moves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(slots=4)
    states, oracles = make_states(engine, 4)
    with monkeypatch.context() as patched:
        patched.setattr(engine.arena, "fetch", _fail_to_copy)
        engine.submit(job := make_job(engine))
        assert tick(engine) == [job]
    assert job.phase is Phase.FAILED
    assert [state.place for state in states].count(Place.DEVICE) == engine.resident == 4 - engine.on_host
    for state, oracle in zip(states, oracles, strict=True):
        assert_state(engine, state, oracle)


def _fail_to_copy(*_: object, **__: object) -> None:
    raise MemoryError("no page is left")


def test_a_job_nobody_wants_any_more_is_dropped_before_its_start() -> None:
    engine = make_engine()
    (state,), (oracle,) = make_states(engine, 1)
    wanted = [False]
    job = make_job(engine, 3, state)
    job.gone = lambda: not wanted[0]
    engine.submit(job)
    assert tick(engine) == [job]
    assert job.phase is Phase.DROPPED
    assert state.job is None
    assert_state(engine, state, oracle)
    kept = make_job(engine, 9, state)
    kept.gone = lambda: not wanted[0]
    wanted[0] = True
    engine.submit(kept)
    tick(engine)
    wanted[0] = False  # too late: it was started
    assert finish(engine) == [kept]
    assert kept.phase is Phase.COMMITTED


def test_a_deadline_counts_until_the_start_and_not_beyond() -> None:
    clock = Clock()
    engine = make_engine(quantum=4, clock=clock)
    in_time, late = make_job(engine, 9), make_job(engine, 9)
    for job in (in_time, late):
        job.deadline = clock.now + 1
    engine.submit(in_time)
    clock.now += 1  # the deadline itself is still in time
    tick(engine)
    engine.submit(late)
    clock.now += 1
    assert tick(engine) == [late]
    assert late.phase is Phase.DROPPED
    assert finish(engine) == [in_time]
    assert in_time.phase is Phase.COMMITTED


def test_an_illegal_move_says_what_was_expected_and_what_came() -> None:
    job = Job(np.zeros((1, 3), np.float32))
    with pytest.raises(RuntimeError, match=r"waiting expected .*running.*; committed came"):
        job.move(Phase.COMMITTED)


# Turns


def test_a_tick_runs_a_quantum_of_each_and_says_so() -> None:
    engine = make_engine(quantum=4, max_batch=3)
    for steps in (9, 2, 6, 3):
        engine.submit(make_job(engine, steps))
    tick(engine)
    assert (engine.last_tick.batch, engine.last_tick.steps) == (3, 4 + 2 + 4)
    tick(engine)
    assert (engine.last_tick.batch, engine.last_tick.steps) == (3, 3 + 4 + 2)


def test_single_steps_have_a_tick_of_their_own_before_the_long_requests() -> None:
    engine = make_engine(quantum=4)
    long, single = make_job(engine, 8), make_job(engine, 1)
    engine.submit(long)
    engine.submit(single)
    assert tick(engine) == [single]
    assert engine.last_tick.steps == 1
    assert tick(engine) == []
    assert tick(engine) == [long]


def test_the_single_step_at_the_end_of_a_long_request_goes_with_the_long_ones() -> None:
    engine = make_engine(quantum=4)
    tail, long = make_job(engine, 5), make_job(engine, 40)
    engine.submit(tail)
    engine.submit(long)
    assert tick(engine) == []
    assert tick(engine) == [tail]
    assert engine.last_tick.steps == 1 + 4


def test_a_short_request_is_not_held_up_by_long_ones() -> None:
    """A full batch of long requests runs; one that comes then is answered with the next tick."""
    engine = make_engine(slots=32, max_batch=4, quantum=4)
    long = [make_job(engine, 400) for _ in range(4)]
    for job in long:
        engine.submit(job)
    for _ in range(5):
        tick(engine)
    short = make_job(engine, 1)
    engine.submit(short)
    assert tick(engine) == [short]
    assert all(job.phase is Phase.RUNNING for job in long)


def test_a_queue_of_short_requests_goes_through_in_turns_with_the_long_ones() -> None:
    """With L long and n short ones and B in a batch, the last short one is out after (L + n) / B ticks, and
    one more for the batch that ran when it came."""
    engine = make_engine(slots=64, max_batch=4, quantum=4)
    for _ in range(6):
        engine.submit(make_job(engine, 1000))
    tick(engine)
    short = [make_job(engine, 1) for _ in range(10)]
    for job in short:
        engine.submit(job)
    ticks = 0
    while any(job.phase is Phase.WAITING for job in short):
        tick(engine)
        ticks += 1
    assert ticks <= -(-(6 + 10) // 4) + 1


def test_long_requests_end_too_while_short_ones_keep_coming() -> None:
    engine = make_engine(slots=64, max_batch=2, quantum=4)
    long = make_job(engine, 40)
    engine.submit(long)
    ticks = 0
    while long.phase in (Phase.WAITING, Phase.RUNNING):
        for _ in range(2):
            engine.submit(make_job(engine, 1))
        for job in tick(engine):
            if job is not long:
                engine.commit(job)
        ticks += 1
        assert ticks <= 200
    assert long.phase is Phase.DONE


@pytest.mark.parametrize("task", ["series", "text"])
def test_traces_and_plain_jobs_share_a_tick(task: str) -> None:
    spec = make_spec(task)
    engine = make_engine(spec, quantum=5)
    jobs = [make_job(engine, t, StateHandle(), seed=t, trace=t % 2 == 0) for t in (1, 2, 7, 12, 13)]
    if task == "series":
        jobs[3].rollout = rollout = Forecast(spec, 9)
    run(engine, *jobs)
    for job in jobs:
        oracle = Oracle(engine.runner.network)
        assert_outputs(engine, job, oracle.run(job.inputs))
        assert job.state is not None
        assert_state(engine, job.state, oracle)
        if job.trace:
            assert job.trace_result.shape == (len(job.inputs), 2, 6, 16)
            np.testing.assert_allclose(job.trace_result[-1, :, 5], oracle.reference.h, atol=1e-5)
        else:
            assert not job.traces
        if job.rollout is not None:
            expected = oracle.forecast(9) * [s.std for s in spec.outputs] + [s.mean for s in spec.outputs]
            np.testing.assert_allclose(rollout.result, expected, atol=1e-4)


# More sessions than slots


@pytest.mark.parametrize("slots", [3, 4, 5])
def test_sessions_beyond_the_slots_spill_and_come_back(slots: int) -> None:
    engine = make_engine(slots=slots, max_batch=4, quantum=3)
    states = [StateHandle() for _ in range(9)]
    oracles = [Oracle(engine.runner.network) for _ in states]
    for turn in range(6):
        jobs = [make_job(engine, 1 + (turn + n) % 8, s, seed=turn * 9 + n) for n, s in enumerate(states)]
        if turn % 2:
            jobs[4].rollout = Forecast(make_spec(), 10)
        run(engine, *jobs)
        for job, state, oracle in zip(jobs, states, oracles, strict=True):
            assert_outputs(engine, job, oracle.run(job.inputs))
            assert_state(engine, state, oracle)
    places = [state.place for state in states]
    assert places.count(Place.HOST) == engine.on_host >= 9 - slots
    assert places.count(Place.DEVICE) == engine.resident <= slots
    assert engine.evicted - engine.restored == engine.on_host
    assert engine.restored > 9
    for state in states:
        engine.forget(state)
    engine.check_integrity()
    assert (engine.on_host, engine.resident, engine.slots.free) == (0, 0, slots)


def test_states_that_return_in_one_tick_are_loaded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    states, oracles = make_states(engine, 5)
    engine.spill(states)
    loads: list[int] = []
    load_batch = engine.arena.load_batch

    def counted(rows: Sequence[int], values: NDArray[np.float32]) -> None:
        loads.append(len(rows))
        load_batch(rows, values)

    monkeypatch.setattr(engine.arena, "load_batch", counted)
    jobs = [make_job(engine, 3, state, seed=n) for n, state in enumerate(states)]
    run(engine, *jobs)
    assert loads == [5]
    assert engine.restored == 5
    for job, state, oracle in zip(jobs, states, oracles, strict=True):
        assert_outputs(engine, job, oracle.run(job.inputs))
        assert_state(engine, state, oracle)


@pytest.mark.parametrize(("slots", "mark"), [(3, 0), (16, 4), (256, 64), (4096, 128)])
def test_the_low_water_mark_is_a_small_part_of_the_slots(slots: int, mark: int) -> None:
    assert make_engine(slots=slots).low_water == mark


def test_slots_are_freed_ahead_of_those_longest_idle() -> None:
    engine = make_engine(slots=16)
    states, oracles = make_states(engine, 12)
    few = [engine.short]
    (last,), (oracle,) = make_states(engine, 1)
    few.append(engine.short)
    engine.spill_ahead()
    engine.check_integrity()
    assert [*few, engine.short] == [False, True, False]
    assert [state.place for state in states[:4]] == [Place.HOST] * 4
    assert {state.place for state in (*states[4:], last)} == {Place.DEVICE}
    assert (engine.evicted, engine.spilled_ahead, engine.slots.free) == (4, 4, 7)
    for state, its in zip([*states, last], [*oracles, oracle], strict=True):
        assert_state(engine, state, its)


def test_a_state_in_the_store_is_neither_read_nor_stepped() -> None:
    engine = make_engine()
    (state,), (oracle,) = make_states(engine, 1)
    engine.spill([state])
    lent, values = engine.host.lend(1)
    engine.host.confirm(lent, kept=True)
    assert (state.place, engine.on_host, engine.host.stored) == (Place.STORE, 0, 1)
    with pytest.raises(RuntimeError, match="fetched first"):
        engine.read(state)
    with pytest.raises(RuntimeError, match="fetched first"):
        engine.submit(make_job(engine, 1, state))
    engine.host.adopt(lent, values)
    assert_state(engine, state, oracle)
    engine.check_integrity()


def test_the_longest_idle_is_spilled_first() -> None:
    engine = make_engine(slots=4)
    states, _ = make_states(engine, 3)
    run(engine, make_job(engine, 1, states[0]))  # now states[1] is idle for longest
    run(engine, make_job(engine, 1, StateHandle()), make_job(engine, 1))
    assert [state.place for state in states] == [Place.DEVICE, Place.HOST, Place.DEVICE]


def test_uncommitted_jobs_hold_their_rows_and_the_others_wait() -> None:
    """No room is made out of a state whose job is not committed; the one who waits is first when it is."""
    engine = make_engine(slots=3)
    (state,), (oracle,) = make_states(engine, 1)
    done = start(engine, make_job(engine, 2, state, rollout=Forecast(make_spec(), 3)))
    waiting, younger = make_job(engine, 1, rollout=Forecast(make_spec(), 3)), make_job(engine, 1)
    engine.submit(waiting)
    engine.submit(younger)
    for _ in range(3):
        assert tick(engine) == []
        assert engine.last_tick.batch == 0
    oracle.run(done.inputs)
    engine.commit(done)
    assert tick(engine) == [waiting, younger]
    assert_state(engine, state, oracle)


def test_fewer_than_three_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3, not 2"):
        make_engine(slots=2)


# States from outside


def test_an_adopted_state_goes_on_where_it_was_read() -> None:
    engine, elsewhere = make_engine(), make_engine()
    (state,), (oracle,) = make_states(engine, 1)
    adopted = elsewhere.adopt(engine.read(state))
    assert (adopted.place, elsewhere.on_host) == (Place.HOST, 1)
    job = make_job(elsewhere, 5, adopted)
    run(elsewhere, job)
    assert_outputs(elsewhere, job, oracle.run(job.inputs))
    assert (adopted.place, elsewhere.on_host) == (Place.DEVICE, 0)


def test_what_is_read_and_adopted_is_a_copy() -> None:
    engine = make_engine()
    (state,), (oracle,) = make_states(engine, 1)
    copy = engine.read(state)
    adopted = engine.adopt(copy)
    copy[:] = 7
    engine.read(adopted)[:] = 7
    assert_state(engine, state, oracle)
    assert_state(engine, adopted, oracle)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 2, 15), np.float32), np.zeros((2, 2, 16)), np.zeros((2, 16), np.float32)]
)
def test_a_state_of_another_size_or_type_is_refused(wrong: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"a state is float32 \[2, 2, 16\]"):
        make_engine().adopt(wrong)


def test_a_forgotten_state_starts_again_from_zeros() -> None:
    engine = make_engine()
    (state,), _ = make_states(engine, 1)
    engine.forget(state)
    engine.forget(state)  # there is nothing to free any more
    engine.check_integrity()
    assert engine.slots.free == engine.slots.slots
    job = make_job(engine, 4, state)
    run(engine, job)
    assert_outputs(engine, job, Oracle(engine.runner.network).run(job.inputs))


def test_a_request_in_one_piece_is_the_request_in_many() -> None:
    """Whatever the cut, the reference over the whole."""
    engine = make_engine()
    whole = make_inputs(make_spec(), 60)
    expected = Oracle(engine.runner.network).run(whole)
    for cut in (1, 2, 7, 60):
        state, rows = StateHandle(), []
        for at in range(0, 60, cut):
            job = Job(whole[at : at + cut], state)
            run(engine, job)
            rows.append(job.result)
        joined = Job(whole)
        joined.outputs = np.concatenate(rows)
        assert_outputs(engine, joined, expected)
