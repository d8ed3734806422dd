"""The engine: thousands of sessions advance together, a tick at a time. Three verbs: schedule, run, update.

Copy on write: a job reads its session's row and writes another. Commit swaps the two, abort drops the new
one; so whatever happens on the way, a session is before its request or after it, never between.

    session row ──read──▶ run ──write──▶ job's row ──commit──▶ becomes the session's row; the old one is free
                                              └──── abort ───▶ is free; the session never moved
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.network import Network
from service.engine.arena import Arena
from service.engine.cpu_runner import CpuRunner
from service.engine.jobs import Job, Phase, Place, StateHandle
from service.engine.runner import Batch, Outcome, Runner
from service.engine.scheduler import Scheduler
from service.engine.slots import SlotTable


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
        tick_steps: int = 512,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if slots < 3:
            raise ValueError(f"slots must be at least 3, not {slots}")
        arch = network.spec.architecture
        self.arena = Arena(arch.num_layers, slots, arch.hidden_size, device)
        self.runner = (
            CpuRunner(network, self.arena, max_batch) if device.type == "cpu" else Runner(network, self.arena)
        )
        self.slots = SlotTable(slots)
        self.scheduler: Scheduler[Job] = Scheduler(max_batch, quantum, tick_steps)
        self.clock = clock
        self.last_tick = TickFacts(0, 0, 0.0)
        self.evicted = 0  # states spilled to the host, ever
        self.restored = 0  # states brought back, ever
        self.on_host = 0  # states in host memory now
        self._now = 0.0  # when this tick began
        self._share = quantum  # most steps of one job in this tick
        self._full = False  # a job of this tick found no room
        self._idle: OrderedDict[StateHandle, None] = OrderedDict()  # resident, no job; oldest use first
        self._open: set[Job] = set()  # jobs that hold rows: started, and not committed or aborted
        self._ended: list[Job] = []  # ended while they waited; reported with the next tick

    # What is asked of it

    def submit(self, job: Job) -> None:
        """Queues a job. A state has one job at a time: raises RuntimeError if it has one already."""
        if job.state is not None:
            if job.state.job is not None:
                raise RuntimeError("the state has a job already")
            job.state.job = job
        job.submitted = self.clock()
        self.scheduler.add(job)

    @property
    def has_work(self) -> bool:
        return len(self.scheduler) > 0

    @property
    def running(self) -> int:
        """Jobs that were started and are not committed or aborted."""
        return len(self._open)

    def commit(self, job: Job) -> None:
        """The new state becomes the session's. For a job without a state: its rows are free."""
        job.move(Phase.COMMITTED)
        state = job.state
        if state is not None:
            if state.place is Place.DEVICE:
                self.slots.release(state.slot)
            self.on_host -= state.place is Place.HOST
            state.place, state.slot, state.host = Place.DEVICE, job.row, None
            job.row = -1
            self._idle[state] = None
        self._let_go(job)

    def abort(self, job: Job) -> None:
        """The new state is dropped; the session is where it was."""
        job.move(Phase.ABORTED)
        self._let_go(job)

    def read(self, state: StateHandle) -> NDArray[np.float32]:
        """A copy of a state's h and c, [2, layers, hidden]. A running job's new state is not in it."""
        if state.place is Place.DEVICE:
            return self.arena.fetch([state.slot])[0]
        if state.host is not None:
            return state.host.copy()
        return np.zeros((2, self.arena.h.shape[0], self.arena.h.shape[2]), np.float32)

    def read_new(self, job: Job) -> NDArray[np.float32]:
        """A copy of the state a DONE job has moved to, [2, layers, hidden]."""
        return self.arena.fetch([job.row])[0]

    @property
    def resident(self) -> int:
        """Sessions whose state is on the device."""
        moving = (job.state for job in self._open if job.state is not None)
        return len(self._idle) + sum(state.place is Place.DEVICE for state in moving)

    def adopt(self, host: NDArray[np.float32]) -> StateHandle:
        """A state from h and c [2, layers, hidden]; it stays on the host until it is stepped."""
        expected = (2, self.arena.h.shape[0], self.arena.h.shape[2])
        if host.shape != expected or host.dtype != np.float32:
            raise ValueError(f"a state is float32 {list(expected)}, not {host.dtype} {list(host.shape)}")
        self.on_host += 1
        return StateHandle(Place.HOST, host=host.copy())

    def forget(self, state: StateHandle) -> None:
        """Frees what a state holds. Raises RuntimeError while it has a job."""
        if state.job is not None:
            raise RuntimeError("the state has a job; end it first")
        if state.place is Place.DEVICE:
            self.slots.release(state.slot)
            del self._idle[state]
        self.on_host -= state.place is Place.HOST
        state.place, state.slot, state.host = Place.FRESH, -1, None

    # The three verbs

    def tick(self) -> list[Job]:
        """One turn. Returns the jobs that ended with it: DONE (commit or abort each), FAILED or DROPPED."""
        self._now, self._full = self.clock(), False
        jobs = self.schedule()
        steps = sum(min(job.remaining, self._share) for job in jobs)
        if jobs:
            for traced, group in _groups(jobs):
                try:
                    outcome = self.runner.run(self._batch(group, traced))
                except Exception as error:  # noqa: BLE001  whatever the runner raised, every job must end
                    for job in group:
                        self._fail(job, error)
                else:
                    self.update(group, outcome)
        self.last_tick = TickFacts(len(jobs), steps, self.clock() - self._now)
        ended, self._ended = self._ended, []
        return ended

    def schedule(self) -> list[Job]:
        """Picks the jobs of this tick, each with the rows it needs, longest chunk first."""
        jobs = self.scheduler.pick(self._admit)
        share = self._share = self.scheduler.share(len(jobs))
        jobs.sort(key=lambda job: -min(job.remaining, share))
        return jobs

    def update(self, jobs: list[Job], outcome: Outcome) -> None:
        """Takes in what was computed: jobs go on, go over to their rollout, or end."""
        for b, job in enumerate(jobs):
            try:
                unfinished = self._take_in(job, b, outcome)
            except Exception as error:  # noqa: BLE001  a rollout's error is its own job's, not its neighbours'
                self._fail(job, error)
                continue
            if unfinished:
                self.scheduler.add(job)
            else:
                job.move(Phase.DONE)
                self._ended.append(job)

    # How

    def _admit(self, job: Job) -> bool | None:
        """Whether a job runs now: True, with its rows; False if there is no room; None if it ended."""
        if job.phase is Phase.RUNNING:
            return True
        if self._now > job.deadline or (job.gone is not None and job.gone()):
            job.move(Phase.DROPPED)
            if job.state is not None:
                job.state.job = None
            self._ended.append(job)
            return None
        try:
            return self._begin(job)
        except Exception as error:  # noqa: BLE001  a spill or a load that failed; every job must end
            self._fail(job, error)
            return None

    def _begin(self, job: Job) -> bool:
        """Gives a job its rows, filled if the state comes from the host; False if there is no room."""
        if self._full or not self._make_room(1 if job.rollout is None else 2, job.state):
            self._full = True  # nobody younger is let in before this one
            return False
        job.started = self._now
        job.row = self.slots.acquire()  # type: ignore[assignment]  # there is room
        if job.rollout is not None:
            job.copy_row = self.slots.acquire()  # type: ignore[assignment]
        job.move(Phase.RUNNING)
        self._open.add(job)
        if job.state is not None:
            self._idle.pop(job.state, None)  # its row is the way back: it must not be spilled now
            if job.state.host is not None:
                self.arena.load(job.row, job.state.host)
                self.restored += 1
        return True

    def _make_room(self, rows: int, keep: StateHandle | None) -> bool:
        """Spills the states longest idle, several at once, until `rows` slots are free."""
        missing = rows - self.slots.free
        if missing <= 0:
            return True
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
        for state, host in zip(states, self.arena.fetch([s.slot for s in states]), strict=True):
            del self._idle[state]
            self.slots.release(state.slot)
            state.place, state.slot, state.host = Place.HOST, -1, host
        self.evicted += len(states)
        self.on_host += len(states)

    def _batch(self, jobs: list[Job], traced: bool) -> Batch:
        share = self._share
        batch = Batch([], [], [], traced=traced)
        for b, job in enumerate(jobs):
            source, target = self._rows(job)
            batch.source.append(source)
            batch.target.append(target)
            batch.inputs.append(job.current[job.position : job.position + share])
            if job.rollout is not None and job.remaining <= share:
                batch.heads.append(b)
        return batch

    def _rows(self, job: Job) -> tuple[int, int]:
        """The rows a job's next chunk reads and writes."""
        if job.rolling:
            return (job.copy_row if job.copied else job.row), job.copy_row
        if job.position:
            return job.row, job.row
        if job.state is None or job.state.place is Place.FRESH:
            return self.arena.padding, job.row
        return (job.state.slot if job.state.place is Place.DEVICE else job.row), job.row

    def _take_in(self, job: Job, b: int, outcome: Outcome) -> bool:
        """Takes in what was computed at position b; True if there is more to run."""
        job.position += len(outcome.outputs[b])
        if not job.rolling:
            # a copy: a view would keep the whole tick's array alive in a replay window
            job.outputs.append(outcome.outputs[b].copy())
            if outcome.trace is not None:
                job.traces.append(outcome.trace)
        else:
            job.copied = True
        return job.remaining > 0 or (b in outcome.heads and self._roll(job, outcome.heads[b]))

    def _roll(self, job: Job, head: NDArray[np.float32]) -> bool:
        """Hands the head to the rollout; True if it wants to go on."""
        assert job.rollout is not None  # noqa: S101  only such jobs are in outcome.heads
        feed = job.rollout.feed(head)
        if feed is None:
            return False
        job.rolling, job.feed, job.position = True, feed, 0
        return True

    def _fail(self, job: Job, error: Exception) -> None:
        """Ends a job that can't be run, or go on; its session is where it was."""
        job.error = EngineError(f"{type(error).__name__}: {error}")
        job.move(Phase.FAILED)
        self._let_go(job)
        self._ended.append(job)

    def _let_go(self, job: Job) -> None:
        for row in (job.row, job.copy_row):
            if row >= 0:
                self.slots.release(row)
        job.row = job.copy_row = -1
        self._open.discard(job)
        if job.state is not None:
            job.state.job = None
            if job.state.place is Place.DEVICE:
                self._idle[job.state] = None

    def check_integrity(self) -> None:
        """Raises RuntimeError unless every taken slot has exactly one holder and idle states have no job."""
        held = [state.slot for state in self._idle]
        for job in self._open:
            held += [row for row in (job.row, job.copy_row) if row >= 0]
            if job.state is not None and job.state.place is Place.DEVICE:
                held.append(job.state.slot)
        if len(held) != len(set(held)):
            raise RuntimeError("a slot has two holders")
        self.slots.check_integrity(set(held))
        for state in self._idle:
            if state.place is not Place.DEVICE or (state.job is not None and state.job in self._open):
                raise RuntimeError("an idle state is not resident, or has a started job")


def _groups(jobs: list[Job]) -> list[tuple[bool, list[Job]]]:
    """One batch for all, and one for each job whose gates are wanted."""
    plain = [job for job in jobs if not job.trace or job.rolling]
    groups = [(True, [job]) for job in jobs if job.trace and not job.rolling]
    return [(False, plain), *groups] if plain else groups
