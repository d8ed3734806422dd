"""Whatever the schedule, every session is the float64 reference over its own committed inputs.

Hypothesis draws an engine and a list of operations; beside each session runs its oracle. After every
operation the engine's books must balance, and at the end every job must have ended exactly once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from service.engine.engine import Engine
from service.engine.jobs import Job, Phase, Place, StateHandle
from service.engine.rollouts import Forecast, Generation
from tests.engine.making import (
    DEVICES,
    Clock,
    Oracle,
    bad_job,
    make_engine,
    make_inputs,
    make_spec,
    normalised,
)

TOLERANCE = 1e-4  # normalised values and log-probabilities
SPECS = {
    "series": make_spec(hidden=6, leads=3),
    "residual": make_spec(hidden=6, residual=True),
    "text": make_spec("text", hidden=6),
}


@dataclass(eq=False)
class Sequence:
    """One session, and where it should be."""

    state: StateHandle
    oracle: Oracle
    job: Job | None = None
    ahead: Oracle | None = None  # where it is if its DONE job is committed


class Machine(RuleBasedStateMachine):
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.sequences: list[Sequence] = []
        self.jobs: list[Job] = []
        self.ends: Counter[Job] = Counter()  # how often each job was reported
        self.done: list[Job] = []  # neither committed nor aborted yet
        self.gone: set[Job] = set()
        self.poison: set[Job] = set()
        self.of: dict[Job, Sequence] = {}
        self.seed = 0
        self.loan: tuple[list[StateHandle], NDArray[np.float32]] = ([], np.zeros(0, np.float32))
        self.stored: dict[StateHandle, NDArray[np.float32]] = {}

    @initialize(
        name=st.sampled_from(sorted(SPECS)),
        slots=st.integers(3, 9),
        max_batch=st.integers(1, 6),
        quantum=st.integers(1, 12),
        device=st.sampled_from(DEVICES),
    )
    def begin(self, name: str, slots: int, max_batch: int, quantum: int, device: object) -> None:
        self.engine = make_engine(
            SPECS[name],
            slots=slots,
            max_batch=max_batch,
            quantum=quantum,
            clock=self.clock,
            device=device,  # type: ignore[arg-type]
        )
        self.start = Oracle(self.engine.runner.network)
        self.sequences = [Sequence(StateHandle(), self.start.copy()) for _ in range(5)]

    # What clients do

    @rule(
        who=st.integers(0, 4),
        steps=st.integers(1, 50),
        trace=st.booleans(),
        rollout=st.sampled_from([0, 0, 1, 4, 15]),
        patience=st.sampled_from([0.0, 1.0, 1e9]),
    )
    def step(self, who: int, steps: int, trace: bool, rollout: int, patience: float) -> None:
        sequence = self.sequences[who]
        if sequence.job is None:
            self.fetch(sequence.state)
            sequence.job = self.submit(sequence.state, steps, trace, rollout, patience)
            self.of[sequence.job] = sequence

    @rule(steps=st.lists(st.integers(1, 50), min_size=5, max_size=5), rollout=st.sampled_from([0, 0, 7]))
    def everybody_steps(self, steps: list[int], rollout: int) -> None:
        for who, count in enumerate(steps):
            self.step(who, count, trace=count % 5 == 0, rollout=rollout, patience=1e9)

    @rule(steps=st.integers(1, 50), rollout=st.sampled_from([0, 3, 15]))
    def predict(self, steps: int, rollout: int) -> None:
        self.submit(None, steps, False, rollout, 1e9)

    @rule(who=st.none() | st.integers(0, 4), really=st.sampled_from([False, False, False, True]))
    def send_what_the_runner_cannot_run(self, who: int | None, really: bool) -> None:
        """Its whole batch fails with it."""
        sequence = None if who is None else self.sequences[who]
        if really and (sequence is None or sequence.job is None):
            if sequence is not None:
                self.fetch(sequence.state)
            job = bad_job(None if sequence is None else sequence.state)
            if sequence is not None:
                sequence.job = job
                self.of[job] = sequence
            self.poison.add(job)
            self.jobs.append(job)
            self.engine.submit(job)

    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        if self.jobs:
            self.gone.add(self.jobs[-1 - which % len(self.jobs)])

    @rule(who=st.integers(0, 4), reopen=st.booleans())
    def forget(self, who: int, reopen: bool) -> None:
        sequence = self.sequences[who]
        if sequence.job is None:
            self.engine.forget(sequence.state)
            self.sequences[who] = Sequence(StateHandle() if reopen else sequence.state, self.start.copy())

    @rule(who=st.integers(0, 4), onto=st.integers(0, 4))
    def fork(self, who: int, onto: int) -> None:
        source, target = self.sequences[who], self.sequences[onto]
        if target.job is None and source is not target:
            self.fetch(source.state)
            state = self.engine.adopt(self.engine.read(source.state))
            self.engine.forget(target.state)
            self.sequences[onto] = Sequence(state, source.oracle.copy())

    # What the engine and its owner do

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(who=st.integers(0, 4))
    def spill(self, who: int) -> None:
        state = self.sequences[who].state
        if state.place is Place.DEVICE and state.job is None:
            self.engine.spill([state])

    @rule()
    def spill_ahead(self) -> None:
        if self.engine.short:
            self.engine.spill_ahead()

    @rule(count=st.integers(1, 5))
    def lend_to_the_store(self, count: int) -> None:
        if not self.loan[0]:
            self.loan = self.engine.host.lend(count)

    @rule(kept=st.sampled_from([True, True, False]))
    def store_answers(self, kept: bool) -> None:
        """Whatever became of the states in the meantime."""
        states, values = self.loan
        self.loan = ([], values)
        for state in self.engine.host.confirm(states, kept):
            self.stored[state] = values[states.index(state)]

    @rule(count=st.integers(1, 5))
    def fetch_from_the_store(self, count: int) -> None:
        self.stored = {s: v for s, v in self.stored.items() if s.place is Place.STORE}  # else: forgotten
        states = list(self.stored)[:count]
        if states:
            self.engine.host.adopt(states, np.stack([self.stored.pop(state) for state in states]))

    @rule(times=st.integers(1, 12), verdict=st.sampled_from(["commit", "commit", "abort", "hold"]))
    def run(self, times: int, verdict: str) -> None:
        """As the manager does it: each tick's jobs are settled at once, unless the store is slow."""
        for _ in range(times):
            self.tick()
            self.books_balance()
            while self.done and verdict != "hold":
                self.settle(0, verdict == "commit")

    def tick(self) -> None:
        for job in self.engine.tick():
            self.ends[job] += 1
            if job.phase is Phase.DONE:
                self.check_result(job)
                self.done.append(job)
            else:
                assert job.phase in (Phase.FAILED, Phase.DROPPED)
                assert job.phase is not Phase.DROPPED or job in self.gone or self.clock.now > job.deadline
                assert job.phase is not Phase.FAILED or self.poison
                self.detach(job)

    @precondition(lambda self: self.done)
    @rule(which=st.integers(0, 10), commit=st.booleans())
    def settle(self, which: int, commit: bool) -> None:
        job = self.done.pop(which % len(self.done))
        sequence = self.of.get(job)
        if commit:
            self.engine.commit(job)
            if sequence is not None and sequence.ahead is not None:
                sequence.oracle = sequence.ahead
        else:
            self.engine.abort(job)
        self.detach(job)

    # What must hold

    @invariant()
    def books_balance(self) -> None:
        if self.sequences:
            self.engine.check_integrity()
            places = Counter(sequence.state.place for sequence in self.sequences)
            assert self.engine.on_host == places[Place.HOST]
            assert self.engine.host.stored == places[Place.STORE]
            assert self.engine.resident == places[Place.DEVICE]

    def teardown(self) -> None:
        if not self.sequences:
            return
        while self.engine.has_work or self.done:
            if self.engine.has_work:
                ended = sum(self.ends.values())
                self.tick()
                moved = self.engine.last_tick.batch > 0 or sum(self.ends.values()) > ended
                assert moved or self.done, "jobs wait for rows that nobody holds"
            while self.done:
                self.settle(0, True)
            self.books_balance()
        assert self.ends == Counter(self.jobs)
        for sequence in self.sequences:
            self.check_state(sequence)
            self.engine.forget(sequence.state)
        self.engine.check_integrity()
        assert self.engine.slots.free == self.engine.slots.slots
        assert (self.engine.on_host, self.engine.host.stored) == (0, 0)

    # How

    def submit(
        self, state: StateHandle | None, steps: int, trace: bool, rollout: int, patience: float
    ) -> Job:
        spec, self.seed = self.engine.runner.network.spec, self.seed + 1
        job = Job(make_inputs(spec, steps, self.seed), state, trace=trace)
        if rollout:
            text = spec.architecture.task == "text"
            job.rollout = Generation(rollout, 0.0, 0, None) if text else Forecast(spec, rollout)
        job.deadline = self.clock.now + patience
        job.gone = lambda: job in self.gone
        self.jobs.append(job)
        self.engine.submit(job)
        return job

    def detach(self, job: Job) -> None:
        sequence = self.of.get(job)
        if sequence is not None:
            sequence.job = sequence.ahead = None
            self.check_state(sequence)

    def fetch(self, state: StateHandle) -> None:
        """As the manager does before a job."""
        if state.place is Place.STORE:
            self.engine.host.adopt([state], self.stored.pop(state)[None])

    def check_state(self, sequence: Sequence) -> None:
        stored = sequence.state.place is Place.STORE
        actual = self.stored[sequence.state] if stored else self.engine.read(sequence.state)
        np.testing.assert_allclose(actual, sequence.oracle.state, atol=TOLERANCE, rtol=0)

    def check_result(self, job: Job) -> None:
        sequence = self.of.get(job)
        oracle = (self.start if sequence is None else sequence.oracle).copy()
        expected = oracle.run(job.inputs)
        np.testing.assert_allclose(normalised(self.engine, job.result), expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(self.engine.read_new(job), oracle.state, atol=TOLERANCE, rtol=0)
        if isinstance(job.rollout, Forecast):
            values = normalised(self.engine, job.rollout.result)
            np.testing.assert_allclose(values, oracle.forecast(len(values)), atol=TOLERANCE, rtol=0)
        elif isinstance(job.rollout, Generation):
            self.check_likeliest(oracle, job.rollout.tokens)
        if job.trace:
            h = job.trace_result[-1, :, 5]
            np.testing.assert_allclose(h, oracle.reference.h, atol=TOLERANCE, rtol=0)
        if sequence is not None:
            sequence.ahead = oracle

    def check_likeliest(self, oracle: Oracle, tokens: list[int]) -> None:
        """Each is the likeliest, or within the tolerance of it."""
        twin = oracle.copy()
        for token in tokens:
            assert twin.head[0][token] > twin.head[0].max() - TOLERANCE
            twin.run(np.array([token]))


TestEngine = Machine.TestCase
TestEngine.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
