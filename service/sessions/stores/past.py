"""A session's past in memory: which records and snapshot give the state before a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from service.sessions.stores.protocol import History, Saved, StoreFault


class Kept(NamedTuple):
    """A committed request: from the state before `step` to that before `next_step`."""

    step: int
    next_step: int
    record: bytes


def newest(snapshots: Iterable[Saved], step: int) -> Saved | None:
    """The newest snapshot at or before a step."""
    return max((s for s in snapshots if s.step <= step), key=lambda s: s.step, default=None)


def since(records: Sequence[Kept], snapshot: Saved | None, next_step: int, window: int) -> list[Kept]:
    """The records, of those in order, that an owner needs: all behind the snapshot, and the newest `window`
    steps, as far as they have no gap. Raises StoreFault if they don't lead from the snapshot to next_step."""
    base = 0 if snapshot is None else snapshot.step
    first, expected = min(base, next_step - window), next_step
    found: list[Kept] = []
    for kept in reversed(records):
        if kept.next_step != expected or expected <= first:
            break
        found.append(kept)
        expected = kept.step
    if expected > base:
        raise StoreFault(
            f"the records of steps {base} to {expected} are missing: restore the store from a copy"
        )
    return found[::-1]


def until(
    snapshots: Sequence[int], oldest: int, snapshot: Saved | None, records: Sequence[Kept], step: int
) -> History:
    """What gives the state before `step`. If a gap is before it, what leads up to the gap.

    snapshots: their steps; oldest: the first step of any record, next_step if there is none; snapshot: the
    newest at or before `step`; records: in order.
    """
    first = min([*snapshots, *[0] * (oldest == 0)], default=oldest)
    at, found = 0 if snapshot is None else snapshot.step, []
    for kept in records:
        if at >= step:
            break
        if kept.step <= at < kept.next_step:
            found.append(kept.record)
            at = kept.next_step
    return History(first, snapshot, found)
