"""The tasks by name."""

from __future__ import annotations

from model.errors import TaskError
from model.tasks.copying import Copying
from model.tasks.lags import NoiseFree, Noisy
from model.tasks.order import ThreeSymbols, TwoSymbols
from model.tasks.reber import EmbeddedReber
from model.tasks.sums import Adding, Multiplication
from model.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        EmbeddedReber,
        NoiseFree,
        Noisy,
        Adding,
        Multiplication,
        TwoSymbols,
        ThreeSymbols,
        Copying,
    )
}


def kind_of(name: str) -> type[Task]:
    """A task's class. Raises TaskError."""
    if name not in TASKS:
        raise TaskError(f"no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


def make(name: str, length: int, seed: int = 0) -> Task:
    """A task at one length; seed: of the strings of the Reber grammar. Raises TaskError."""
    kind = kind_of(name)
    return kind(length, seed) if kind is EmbeddedReber else kind(length)
