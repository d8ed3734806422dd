"""The replay window: the newest steps of a session, with their inputs and replies, so that a retry is
answered and never stepped.

A million sessions of 256 kept steps each are a quarter of a billion records. So each is one bytes object, the
same that the journal gets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from service.errors import StepConflict
from service.sessions.inputs import Steps
from service.sessions.record import decode, encode, span
from service.sessions.replies import PLAIN, Options, Reply


@dataclass(slots=True)  # frozen would double the cost of making one
class Committed:
    """One committed request: its raw inputs and its reply."""

    raw: bytes
    reply: Reply

    @property
    def count(self) -> int:
        return self.reply.next_step - self.reply.step


class ReplayWindow:
    """The newest `limit` steps; a request that is longer is kept while it is the newest one."""

    __slots__ = ("_records", "limit")

    def __init__(self, limit: int, records: Iterable[bytes] = ()) -> None:
        """records: of requests that follow each other, as they were kept."""
        self.limit = limit
        self._records: list[bytes] | None = None  # oldest first; an empty list would take as much as a window
        for record in records:
            self.keep(record)

    def __len__(self) -> int:
        return len(self._records or ())

    def add(self, committed: Committed) -> None:
        """Takes in a request that follows the newest one, and drops what no retry can reach any more."""
        self.keep(encode(committed.raw, committed.reply))

    def keep(self, record: bytes) -> None:
        """The same, of a request that is encoded already."""
        records = self._records
        if records is None:
            self._records = [record]
            return
        records.append(record)
        oldest = span(record)[1] - self.limit
        while oldest > 0 and len(records) > 1 and span(records[0])[1] <= oldest:
            del records[0]

    def before(self, step: int) -> list[bytes]:
        """The requests that end at or before a step."""
        return [record for record in self._records or () if span(record)[1] <= step]

    def replies(self, session_id: str, step: int) -> list[Reply] | None:
        """The replies from `step` on, each said to be one that was given before. None if the window does not
        reach back so far, or no request began there."""
        records = [record for record in self._records or () if span(record)[0] >= step]
        if records and span(records[0])[0] != step:
            return None
        return [decode(record, session_id)[1].again() for record in records]

    def answer(self, session_id: str, step: int, steps: Steps, options: Options, next_step: int) -> Reply:
        """The stored reply to the request of `steps` at `step`, which is before `next_step`.

        A request that was committed in other pieces is put together from them if it asks for outputs alone.
        Raises StepConflict if it isn't wholly in the window, or not what was committed.
        """
        end = step + len(steps)
        records = self._records or []
        if end > next_step:
            raise StepConflict(
                f"steps {step} to {end - 1} are partly committed: the next step is {next_step}",
                expected_step=next_step,
            )
        if records and span(records[-1]) == (step, end):  # even if it is longer than the window
            return _whole(records[-1], session_id, steps, options, next_step)
        if step < next_step - self.limit or not records or step < span(records[0])[0]:
            raise StepConflict(
                f"step {step} is older than the newest {self.limit} steps, which a retry is answered from;"
                f" the next step is {next_step}",
                expected_step=next_step,
            )
        first = bisect_right(records, step, key=_first_step) - 1
        parts = records[first : bisect_right(records, end - 1, key=_first_step)]
        if len(parts) == 1 and span(parts[0]) == (step, end):
            return _whole(parts[0], session_id, steps, options, next_step)
        return _composed(parts, session_id, step, steps, options, next_step)


def _first_step(record: bytes) -> int:
    return span(record)[0]


def _whole(record: bytes, session_id: str, steps: Steps, options: Options, next_step: int) -> Reply:
    raw, reply = decode(record, session_id)
    if raw != steps.raw:
        raise _other("inputs", reply.step, next_step)
    if reply.options != options:
        raise _other("options", reply.step, next_step)
    return reply.again()


def _composed(
    parts: list[bytes], session_id: str, step: int, steps: Steps, options: Options, next_step: int
) -> Reply:
    if options != PLAIN:
        raise _other("options", step, next_step)
    first, end = _first_step(parts[0]), step + len(steps)
    width = len(steps.raw) // len(steps)
    contents = [decode(record, session_id) for record in parts]
    raw = b"".join(raw for raw, _ in contents)
    if raw[(step - first) * width : (end - first) * width] != steps.raw:
        raise _other("inputs", step, next_step)
    outputs = np.concatenate([reply.outputs for _, reply in contents])[step - first : end - first]
    return Reply(session_id, step, end, outputs, replayed=True)


def _other(what: str, step: int, next_step: int) -> StepConflict:
    return StepConflict(
        f"step {step} was committed with other {what}; the next step is {next_step}", expected_step=next_step
    )
