"""What the engine is asked to do: a job, its life, and the state it moves."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Prepared = NDArray[np.float32] | NDArray[np.int64]  # [T, I] normalised inputs, or [T] tokens


class Place(enum.Enum):
    """Where the state of a session is."""

    FRESH = "fresh"  # nowhere yet: the zeros every sequence starts from
    DEVICE = "device"  # in a slot of the arena
    HOST = "host"  # in a row of the host pool, spilled or imported
    STORE = "store"  # in the store, under its name; it must be fetched before it can be stepped


@dataclass(slots=True, eq=False)
class StateHandle:
    """The state of one session, wherever it is. The engine and its host pool alone change it.

    `slot`: the row of the arena while the place is DEVICE, of the host pool while it is HOST. `carry`: what
    the session remembers beside h and c, if its model is one that needs it. It stays here whatever the place;
    the engine does not look at it, and those who commit a job set it to another array, never change one.
    """

    place: Place = Place.FRESH
    slot: int = -1
    name: str = ""  # what the store knows it by: the session's id
    job: Job | None = None  # the job that is moving it, from its start to its commit or abort
    carry: NDArray[np.float64] | None = None


class Phase(enum.Enum):
    """The life of a job. Legal moves: WAITING → RUNNING → DONE; WAITING → DROPPED; WAITING or RUNNING →
    FAILED; DONE → COMMITTED or ABORTED."""

    WAITING = "waiting"  # accepted, no step of it was run
    RUNNING = "running"  # some chunk of it was run; it can't be dropped any more
    DONE = "done"  # all of it was run; its new state is beside the old one
    DROPPED = "dropped"  # cancelled, or its deadline passed, before it was started
    FAILED = "failed"  # the runner raised, or its rows could not be made ready; the state is the old one
    COMMITTED = "committed"  # the new state has replaced the old one
    ABORTED = "aborted"  # the new state is gone

    before: tuple[Phase, ...]  # the phases from which a job may come to this one


# By name, once: each look at a member through its class costs a tenth of what a job may
FRESH, DEVICE, HOST, STORE = Place
WAITING, RUNNING, DONE, DROPPED, FAILED, COMMITTED, ABORTED = Phase
WAITING.before = ()
RUNNING.before = DROPPED.before = (WAITING,)
DONE.before = (RUNNING,)
FAILED.before = (WAITING, RUNNING)
COMMITTED.before = ABORTED.before = (DONE,)


class Rollout(Protocol):
    """Goes on after a job's inputs, on a copy of the state, from the model's own predictions."""

    steps: int  # most that will be run for it; the inputs' are not among them

    def feed(
        self, head: NDArray[np.float32], quantiles: NDArray[np.float32] | None = None
    ) -> Prepared | None:
        """Takes the head [leads, outputs] after the newest step, and its quantiles [levels, leads, outputs]
        if the model has any; returns the steps to run next, or None when nothing more is wanted."""
        ...


@dataclass(eq=False)
class Job:
    """One request: run `inputs` on `state` (None: from zeros, for this job alone), then the rollout."""

    inputs: Prepared
    state: StateHandle | None = None
    rollout: Rollout | None = None
    trace: bool = False  # record the gates of every step
    deadline: float = float("inf")  # on the engine's clock; not started after it
    gone: Callable[[], bool] | None = None  # asked once, before the start: does nobody want it any more?

    # The engine's. Without slots and outside of __init__ these stay with the class until they change: a job
    # is made for every request.
    submitted: float = field(default=0.0, init=False)  # on the engine's clock
    started: float = field(default=0.0, init=False)
    phase: Phase = field(default=Phase.WAITING, init=False)
    position: int = field(default=0, init=False)  # steps of the current inputs that were run
    rolling: bool = field(default=False, init=False)  # the inputs are done; `feed` is the rollout's
    feed: Prepared | None = field(default=None, init=False)
    owed: int = field(default=0, init=False)  # steps of it that the engine's backlog counts
    copied: bool = field(
        default=False, init=False
    )  # a chunk of the rollout was run: the copy holds its state
    row: int = field(default=-1, init=False)  # the slot with the new state
    copy_row: int = field(default=-1, init=False)  # the slot the rollout moves
    # Of the request's steps [T, O], filled as they are run. Of a single step: those of its whole tick
    # [B, 1, O], and its place there: a view for every job at once, made while nothing of the job is in the
    # cache, took twice as long.
    outputs: NDArray[np.floating] | None = field(default=None, init=False)
    place: int = field(default=-1, init=False)
    traces: list[NDArray[np.float32]] | None = field(
        default=None, init=False
    )  # [t, layers, 6, hidden] a chunk
    error: Exception | None = field(default=None, init=False)

    def move(self, phase: Phase) -> None:
        """To another phase; an illegal move is a bug of the engine and raises."""
        if self.phase not in phase.before:
            legal = ", ".join(p.value for p in Phase if self.phase in p.before) or "no move at all"
            raise RuntimeError(f"a job that is {self.phase.value} expected {legal}; {phase.value} came")
        self.phase = phase

    @property
    def current(self) -> Prepared:
        """The steps being run now: the request's, or the rollout's."""
        return self.feed if self.feed is not None else self.inputs

    @property
    def remaining(self) -> int:
        return len(self.current) - self.position

    @property
    def result(self) -> NDArray[np.floating]:
        """Outputs of the request's steps [T, O], in their units (log-probabilities for text)."""
        assert self.outputs is not None  # noqa: S101  asked of a job that is DONE
        return self.outputs if self.place < 0 else self.outputs[self.place]

    @property
    def trace_result(self) -> NDArray[np.float32]:
        """i, f, g, o, c, h of the request's steps, [T, layers, 6, hidden]."""
        return np.concatenate(self.traces or [])
