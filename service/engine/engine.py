"""The engine: thousands of sessions advance together, a tick at a time. Three verbs: schedule, run, update.

Copy on write: a job reads its session's row and writes another. Commit swaps the two, abort drops the new
one; so whatever happens on the way, a session is before its request or after it, never between.

    session row ──read──▶ run ──write──▶ job's row ──commit──▶ becomes the session's row; the old one is free
                                              └──── abort ───▶ is free; the session never moved

Longer than most files here: a job's whole life, from its row to its commit, is in one place.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.network import Network
from service.engine.arena import Arena
from service.engine.backlog import Backlog
from service.engine.host_pool import HostPool
from service.engine.jobs import (
    ABORTED,
    COMMITTED,
    DEVICE,
    DONE,
    DROPPED,
    FAILED,
    FRESH,
    HOST,
    RUNNING,
    STORE,
    WAITING,
    Job,
    StateHandle,
)
from service.engine.runner import Batch, Outcome
from service.engine.runners import make_runner
from service.engine.scheduler import LONG, SHORT, TRACED, Kind, Scheduler
from service.engine.slots import SlotTable

#: Most states spilled ahead of need in one go, so that a request that comes meanwhile waits less than 1 ms
SPILL_BATCH = 256


class EngineError(Exception):
    """The runner raised; the sessions of the tick are where they were."""


@dataclass(slots=True, frozen=True)
class TickFacts:
    """One tick, for whoever publishes it."""

    batch: int
    steps: int
    seconds: float


class Engine:
    """The sessions' states, and the jobs that move them. Not thread-safe: one thread owns it.

    slots: rows of the arena, for resident sessions and for the new states of running jobs. At least 3: a
    session's, its job's, and the copy a rollout moves.
    """

    def __init__(
        self,
        network: Network,
        *,
        slots: int,
        max_batch: int,
        quantum: int,
        tick_steps: int = 2048,
        tick_ms: float = 0.6,
        device: torch.device,
        precision: str = "fp32",
        threads: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if slots < 3:
            raise ValueError(f"slots must be at least 3, not {slots}")
        arch = network.spec.architecture
        self.arena = Arena(arch.num_layers, slots, arch.hidden_size, device)
        self.runner = make_runner(
            network, self.arena, max_batch=max_batch, precision=precision, threads=threads
        )
        self.slots = SlotTable(slots)
        self.host = HostPool(arch.num_layers, arch.hidden_size, pinned=device.type == "cuda")
        # Below so many free slots, rows are freed while there is nothing else to do
        self.low_water = min(max(64, slots // 32), slots // 4)
        self.scheduler: Scheduler[Job] = Scheduler(max_batch, quantum, tick_steps, tick_ms / 1e3)
        # Work that takes several steps, and (True) that with gates, which takes many times longer
        self._backlogs = {False: Backlog(), True: Backlog()}
        self.clock = clock
        self.last_tick = TickFacts(0, 0, 0.0)
        self.evicted = 0  # states spilled to the host, ever
        self.spilled_ahead = 0  # of these: while there was nothing else to do
        self.restored = 0  # states brought back, ever
        self._now = 0.0  # when this tick began
        self._share = quantum  # most steps of one job in this tick
        self._full = False  # a job of this tick found no room
        # Resident, no job; oldest use first. An OrderedDict finds the oldest of a million sooner (0.02 ms,
        # not 0.07), and takes longer for each step
        self._idle: dict[StateHandle, None] = {}
        self._returning: list[Job] = []  # admitted in this tick, their states still on the host
        self._open: set[Job] = set()  # jobs that hold rows: started, and not committed or aborted
        self._ended: list[Job] = []  # ended while they waited; reported with the next tick

    # What is asked of it

    def submit(self, job: Job) -> None:
        """Queues a job. Raises RuntimeError if its state has a job already, or is in the store."""
        state = job.state
        if state is not None:
            if state.place is STORE:
                raise RuntimeError("the state is in the store; it must be fetched first")
            if state.job is not None:
                raise RuntimeError("the state has a job already")
            state.job = job
        job.submitted = self.clock()
        if len(job.inputs) == 1 and not job.trace and job.rollout is None:
            self.scheduler.add_short(job)
            return
        job.owed = len(job.inputs) + (0 if job.rollout is None else job.rollout.steps)
        self._backlogs[job.trace].steps += job.owed
        self.scheduler.add(job, TRACED if job.trace else SHORT if len(job.inputs) == 1 else LONG)

    def wait(self, steps: int, trace: bool = False) -> float:
        """Seconds that a request of so many steps would wait now for those before it."""
        waiting = self.scheduler.waiting(TRACED if trace else LONG)
        return self._backlogs[trace].wait(steps, waiting)

    def duration(self, steps: int, trace: bool = False) -> float:
        """Seconds that so many steps take, as far as is known; 0 if nothing is."""
        return self._backlogs[trace].seconds(steps)

    @property
    def has_work(self) -> bool:
        return len(self.scheduler) > 0

    @property
    def running(self) -> int:
        """Jobs that were started and are not committed or aborted."""
        return len(self._open)

    def commit(self, job: Job) -> None:
        """The new state becomes the session's. For a job without a state: its rows are free."""
        if job.phase is not DONE:
            job.move(COMMITTED)  # raises
        job.phase = COMMITTED
        state = job.state
        if state is not None:
            if state.place is DEVICE:
                self.slots.release(state.slot)
            elif state.place is HOST:
                self.host.release(state)
            state.place, state.slot, state.job = DEVICE, job.row, None
            job.row = -1
            self._idle[state] = None
            if job.rollout is None:
                self._open.discard(job)
                return
        self._let_go(job)

    def abort(self, job: Job) -> None:
        """The new state is dropped; the session is where it was."""
        job.move(ABORTED)
        self._let_go(job)

    def read(self, state: StateHandle) -> NDArray[np.float32]:
        """A copy of a state's h and c, [2, layers, hidden]. A running job's new state is not in it. Raises
        RuntimeError if it is in the store."""
        if state.place is DEVICE:
            return np.asarray(self.arena.fetch([state.slot])[0])
        if state.place is HOST:
            return self.host.read(state)
        if state.place is STORE:
            raise RuntimeError("the state is in the store; it must be fetched first")
        return np.zeros((2, self.arena.h.shape[0], self.arena.h.shape[2]), np.float32)

    def read_new(self, job: Job) -> NDArray[np.float32]:
        """A copy of the state a DONE job has moved to, [2, layers, hidden]."""
        return np.asarray(self.arena.fetch([job.row])[0])

    @property
    def on_host(self) -> int:
        """Sessions whose state is in host memory."""
        return self.host.used

    @property
    def resident(self) -> int:
        """Sessions whose state is on the device."""
        moving = (job.state for job in self._open if job.state is not None)
        return len(self._idle) + sum(state.place is DEVICE for state in moving)

    def adopt(self, host: NDArray[np.float32], name: str = "") -> StateHandle:
        """A state from h and c [2, layers, hidden]; it stays on the host until it is stepped."""
        expected = (2, self.arena.h.shape[0], self.arena.h.shape[2])
        if host.shape != expected or host.dtype != np.float32:
            raise ValueError(f"a state is float32 {list(expected)}, not {host.dtype} {list(host.shape)}")
        state = StateHandle(name=name)
        self.host.adopt([state], host[None])
        return state

    def forget(self, state: StateHandle) -> None:
        """Frees what a state holds. Raises RuntimeError while it has a job."""
        if state.job is not None:
            raise RuntimeError("the state has a job; end it first")
        if state.place is DEVICE:
            self.slots.release(state.slot)
            del self._idle[state]
            state.place, state.slot = FRESH, -1
        elif state.place is not FRESH:
            self.host.release(state)

    # The three verbs

    def tick(self) -> list[Job]:
        """One turn. Returns the jobs that ended with it: DONE (commit or abort each), FAILED or DROPPED."""
        self._now, self._full = self.clock(), False
        jobs, steps, longest = self.schedule(), 0, 0
        if jobs:
            for traced, group in [(False, jobs)] if self.scheduler.kind is SHORT else _groups(jobs):
                batch = self._batch(group, traced)
                steps += sum(map(len, batch.inputs))
                longest = max(longest, len(batch.inputs[0]))
                try:
                    outcome = self.runner.run(batch)
                except Exception as error:  # noqa: BLE001  whatever the runner raised, every job must end
                    for job in group:
                        self._fail(job, error)
                else:
                    self.update(group, outcome)
        now = self.clock()
        self.last_tick = TickFacts(len(jobs), steps, now - self._now)
        self.scheduler.learn(steps, longest, self.last_tick.seconds)
        if self.scheduler.kind is not SHORT:
            self._backlogs[self.scheduler.kind is TRACED].learn(steps, self.last_tick.seconds, now)
        ended, self._ended = self._ended, []
        return ended

    def schedule(self) -> list[Job]:
        """Picks the jobs of this tick, each with the rows it needs, longest chunk first."""
        jobs = self.scheduler.pick(self._admit, self._now)
        if self._returning:
            jobs = self._bring_back(jobs)
        share = self._share = self.scheduler.share(len(jobs))
        if self.scheduler.kind is not SHORT and any(job.remaining < share for job in jobs):
            jobs.sort(key=lambda job: -min(job.remaining, share))
        return jobs

    def update(self, jobs: list[Job], outcome: Outcome) -> None:
        """Takes in what was computed: jobs go on, go over to their rollout, or end."""
        outputs, short = outcome.outputs, self.scheduler.kind is SHORT and not outcome.heads
        if short and isinstance(outputs, np.ndarray):  # most ticks, and nothing can fail
            for b, job in enumerate(jobs):
                if job.phase is not RUNNING:
                    job.move(DONE)  # raises
                job.phase, job.position, job.outputs, job.place = DONE, 1, outputs, b
            self._ended += jobs
            return
        for b, job in enumerate(jobs):
            try:
                unfinished = self._take_in(job, b, outcome)
            except Exception as error:  # noqa: BLE001  a rollout's error is its own job's, not its neighbours'
                self._fail(job, error)
                continue
            if unfinished:
                self.scheduler.add(job, _kind(job))
            else:
                job.move(DONE)
                self._disown(job, job.owed)
                self._ended.append(job)

    # How

    def _admit(self, job: Job) -> bool | None:
        """Whether a job runs now: True, with its rows, to be filled if the state comes from the host;
        False if there is no room; None if it ended."""
        phase = job.phase
        if phase is RUNNING:
            return True
        if self._now > job.deadline or ((gone := job.gone) is not None and gone()):
            job.move(DROPPED)
            self._disown(job, job.owed)
            if job.state is not None:
                job.state.job = None
            self._ended.append(job)
            return None
        slots, state = self.slots, job.state
        rows = 1 if job.rollout is None else 2
        if self._full or len(slots.unused) < rows:
            try:
                if self._full or not self._make_room(rows, state):
                    self._full = True  # nobody younger is let in before this one
                    return False
            except Exception as error:  # noqa: BLE001  a spill that failed; every job must end
                self._fail(job, error)
                return None
        if phase is not WAITING:
            job.move(RUNNING)  # raises
        job.phase, job.started, job.row = RUNNING, self._now, slots.acquire()
        if rows == 2:
            job.copy_row = slots.acquire()
        self._open.add(job)
        if state is not None:
            if state.place is DEVICE:
                del self._idle[state]  # its row is the way back: it must not be spilled now
            elif state.place is HOST:
                self._returning.append(job)  # to be filled, with the others of this tick
        return True

    def _bring_back(self, jobs: list[Job]) -> list[Job]:
        """Fills the rows of this tick's jobs whose states are on the host, all at once. If that fails, they
        do; returns the jobs that can run."""
        returning, self._returning = self._returning, []
        try:
            states = [job.state for job in returning if job.state is not None]
            self.host.load(states, self.arena, [job.row for job in returning])
        except Exception as error:  # noqa: BLE001  whatever it was, every job must end
            for job in returning:
                self._fail(job, error)
            return [job for job in jobs if job.phase is RUNNING]
        self.restored += len(returning)
        return jobs

    def _make_room(self, rows: int, keep: StateHandle | None) -> bool:
        """Spills the states longest idle, several at once, until `rows` slots are free."""
        missing = rows - self.slots.free
        wanted = max(missing, self.slots.slots // 32)
        spilled: list[StateHandle] = []
        for state in self._idle:
            if len(spilled) == wanted:
                break
            if state is not keep:
                spilled.append(state)
        if len(spilled) < missing:
            return False
        self.spill(spilled)
        return True

    def spill(self, states: list[StateHandle]) -> None:
        """Moves resident, idle states to host memory and frees their slots."""
        slots = [state.slot for state in states]
        self.host.put(states, self.arena)
        for state, slot in zip(states, slots, strict=True):
            del self._idle[state]
            self.slots.release(slot)
        self.evicted += len(states)

    @property
    def short(self) -> bool:
        """Whether free slots are few, and some could be freed."""
        return self.slots.free < self.low_water and len(self._idle) > 0

    def spill_ahead(self) -> None:
        """Frees slots of the states longest idle, at most SPILL_BATCH at once."""
        states = list(itertools.islice(self._idle, min(self.low_water, SPILL_BATCH)))
        self.spill(states)
        self.spilled_ahead += len(states)

    def _batch(self, jobs: list[Job], traced: bool) -> Batch:
        share = self._share
        heads = [b for b, job in enumerate(jobs) if job.rollout is not None and job.remaining <= share]
        if self.scheduler.kind is SHORT and not heads:
            source = [
                self.arena.padding if (state := job.state) is None or state.place is FRESH
                else state.slot if state.place is DEVICE else job.row
                for job in jobs
            ]  # fmt: skip
            return Batch(source, [job.row for job in jobs], [job.inputs for job in jobs])
        rows = [self._rows(job) for job in jobs]
        inputs = [job.current[job.position : job.position + share] for job in jobs]
        return Batch([source for source, _ in rows], [target for _, target in rows], inputs, heads, traced)

    def _rows(self, job: Job) -> tuple[int, int]:
        """The rows a job's next chunk reads and writes."""
        if job.rolling:
            return (job.copy_row if job.copied else job.row), job.copy_row
        if job.position:
            return job.row, job.row
        if job.state is None or job.state.place is FRESH:
            return self.arena.padding, job.row
        return (job.state.slot if job.state.place is DEVICE else job.row), job.row

    def _take_in(self, job: Job, b: int, outcome: Outcome) -> bool:
        """Takes in what was computed at position b; True if there is more to run."""
        outputs, begin = outcome.outputs[b], job.position
        job.position += len(outputs)
        self._disown(job, len(outputs))
        if job.rolling:
            job.copied = True
        elif len(outputs) == len(job.inputs):
            job.outputs = outputs
        else:
            if job.outputs is None:
                job.outputs = np.empty((len(job.inputs), *outputs.shape[1:]), outputs.dtype)
            job.outputs[begin : job.position] = outputs
        if outcome.trace is not None and not job.rolling:
            job.traces = job.traces or []
            job.traces.append(outcome.trace)
        return job.remaining > 0 or (b in outcome.heads and self._roll(job, b, outcome))

    def _roll(self, job: Job, b: int, outcome: Outcome) -> bool:
        """Hands the head to the rollout; True if it wants to go on."""
        assert job.rollout is not None  # noqa: S101  only such jobs are in outcome.heads
        feed = job.rollout.feed(outcome.heads[b], outcome.quantiles.get(b))
        if feed is None:
            return False
        job.rolling, job.feed, job.position = True, feed, 0
        return True

    def _fail(self, job: Job, error: Exception) -> None:
        """Ends a job that can't be run, or go on; its session is where it was."""
        job.error = EngineError(f"{type(error).__name__}: {error}")
        job.move(FAILED)
        self._disown(job, job.owed)
        self._let_go(job)
        self._ended.append(job)

    def _disown(self, job: Job, steps: int) -> None:
        """So many steps of a job need not be run any more."""
        steps = min(steps, job.owed)
        job.owed -= steps
        self._backlogs[job.trace].steps -= steps

    def _let_go(self, job: Job) -> None:
        if job.row >= 0:
            self.slots.release(job.row)
            job.row = -1
        if job.copy_row >= 0:
            self.slots.release(job.copy_row)
            job.copy_row = -1
        self._open.discard(job)
        if job.state is not None:
            job.state.job = None
            if job.state.place is DEVICE:
                self._idle[job.state] = None

    def check_integrity(self) -> None:
        """Raises RuntimeError unless every taken slot has exactly one holder and idle states have no job."""
        held = [state.slot for state in self._idle]
        for job in self._open:
            held += [row for row in (job.row, job.copy_row) if row >= 0]
            if job.state is not None and job.state.place is DEVICE:
                held.append(job.state.slot)
        if len(held) != len(set(held)):
            raise RuntimeError("a slot has two holders")
        self.slots.check_integrity(set(held))
        self.host.check_integrity()
        for state in self._idle:
            if state.place is not DEVICE or (state.job is not None and state.job in self._open):
                raise RuntimeError("an idle state is not resident, or has a started job")
        owed = sum(backlog.steps for backlog in self._backlogs.values())
        if owed < 0 or (owed and not self.has_work):
            raise RuntimeError(f"{owed} steps are waited for that nobody will run")


def _kind(job: Job) -> Kind:
    """The end of a chunk is not a short request, though it may be a single step."""
    if job.trace and not job.rolling:
        return TRACED
    return SHORT if job.position == 0 and job.remaining == 1 else LONG


def _groups(jobs: list[Job]) -> list[tuple[bool, list[Job]]]:
    """One batch for all, and one for each job whose gates are wanted."""
    plain = [job for job in jobs if not job.trace or job.rolling]
    groups = [(True, [job]) for job in jobs if job.trace and not job.rolling]
    return [(False, plain), *groups] if plain else groups
