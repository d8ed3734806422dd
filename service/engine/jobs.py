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
    HOST = "host"  # in host memory, spilled or imported


@dataclass(slots=True, eq=False)
class StateHandle:
    """The state of one session, wherever it is. The engine alone changes it.

    `host` [2, layers, hidden] float32 (h, c) while the place is HOST.
    """

    place: Place = Place.FRESH
    slot: int = -1
    host: NDArray[np.float32] | None = None
    job: Job | None = None  # the job that is moving it, from its start to its commit or abort


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


# Tuples of members: `in` compares them by identity, where a set would call Enum's hash in Python
_LEGAL: dict[str, tuple[Phase, ...]] = {
    "waiting": (Phase.RUNNING, Phase.DROPPED, Phase.FAILED),
    "running": (Phase.DONE, Phase.FAILED),
    "done": (Phase.COMMITTED, Phase.ABORTED),
}


class Rollout(Protocol):
    """Goes on after a job's inputs, on a copy of the state, from the model's own predictions."""

    def feed(self, head: NDArray[np.float32]) -> Prepared | None:
        """Takes the head [leads, outputs] after the newest step; returns the steps to run next, or None
        when nothing more is wanted."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """One request: run `inputs` on `state` (None: from zeros, for this job alone), then the rollout."""

    inputs: Prepared
    state: StateHandle | None = None
    rollout: Rollout | None = None
    trace: bool = False  # record the gates of every step
    deadline: float = float("inf")  # on the engine's clock; not started after it
    submitted: float = 0.0  # on the engine's clock
    started: float = 0.0
    gone: Callable[[], bool] | None = None  # asked once, before the start: does nobody want it any more?

    phase: Phase = Phase.WAITING
    position: int = 0  # steps of the current inputs that were run
    rolling: bool = False  # the inputs are done; `feed` is the rollout's
    feed: Prepared | None = None
    copied: bool = False  # a chunk of the rollout was run: the copy holds its state
    row: int = -1  # the slot with the new state
    copy_row: int = -1  # the slot the rollout moves
    outputs: list[NDArray[np.floating]] = field(default_factory=list)  # [t, O] a chunk
    traces: list[NDArray[np.float32]] = field(default_factory=list)  # [t, layers, 6, hidden] a chunk
    error: Exception | None = None

    def move(self, phase: Phase) -> None:
        """To another phase; an illegal move is a bug of the engine and raises."""
        legal = _LEGAL.get(self.phase._value_, ())
        if phase not in legal:
            wanted = ", ".join(p.value for p in legal) or "no move at all"
            raise RuntimeError(f"a job that is {self.phase.value} expected {wanted}; {phase.value} came")
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
        return self.outputs[0] if len(self.outputs) == 1 else np.concatenate(self.outputs)

    @property
    def trace_result(self) -> NDArray[np.float32]:
        """i, f, g, o, c, h of the request's steps, [T, layers, 6, hidden]."""
        return np.concatenate(self.traces)
