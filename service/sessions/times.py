"""Where the time of traced requests went, from the times that engine and commit take anyway.

Called for a tick, or a commit, as a whole and only if anything is traced at all.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.asked import Trace
from service.engine.engine import TickFacts
from service.engine.jobs import Job


def add_tick(traces: Iterable[tuple[Trace | None, Job]], tick: TickFacts, ended: float) -> None:
    """Jobs that ended with this tick: how long each waited, and the ticks it was in."""
    about = {"batch": tick.batch, "steps": tick.steps}
    for trace, job in traces:
        if trace is not None:
            trace.add("queue", job.submitted, job.started)
            trace.add("tick", job.started, ended, about)


def add_commit(
    traces: Iterable[Trace | None], started: float, ended: float, store: str, size: int, failed: bool
) -> None:
    """Steps that were committed together. size: bytes of all their records; 0 if nobody counts."""
    about: dict[str, str | int | bool] = {"store": store}
    if size:
        about["bytes"] = size
    if failed:
        about["failed"] = True
    for trace in traces:
        if trace is not None:
            trace.add("commit", started, ended, about)
