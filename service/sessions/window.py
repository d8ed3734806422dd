"""The replay window: the newest steps of a session, with their inputs and replies, so that a retry is
answered and never stepped."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from service.errors import StepConflict
from service.sessions.inputs import Steps
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

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._records: deque[Committed] = deque()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Committed) -> None:
        """Takes in a request that follows the newest one, and drops what no retry can reach any more."""
        records = self._records
        records.append(record)
        oldest = record.reply.next_step - self.limit
        while len(records) > 1 and records[0].reply.next_step <= oldest:
            records.popleft()

    def answer(self, step: int, steps: Steps, options: Options, next_step: int) -> Reply:
        """The stored reply to the request of `steps` at `step`, which is before `next_step`.

        A request that was committed in other pieces is put together from them if it asks for outputs alone.
        Raises StepConflict if it isn't wholly in the window, or not what was committed.
        """
        end = step + len(steps)
        records = self._records
        if end > next_step:
            raise StepConflict(
                f"steps {step} to {end - 1} are partly committed: the next step is {next_step}",
                expected_step=next_step,
            )
        newest = records[-1].reply if records else None
        if newest is not None and newest.step == step and newest.next_step == end:
            return self._whole(records[-1], steps, options, next_step)
        if step < next_step - self.limit or not records or step < records[0].reply.step:
            raise StepConflict(
                f"step {step} is older than the newest {self.limit} steps, which a retry is answered from;"
                f" the next step is {next_step}",
                expected_step=next_step,
            )
        parts = [r for r in records if r.reply.step < end and r.reply.next_step > step]
        if len(parts) == 1 and parts[0].reply.step == step and parts[0].reply.next_step == end:
            return self._whole(parts[0], steps, options, next_step)
        return self._composed(parts, step, steps, options, next_step)

    def _whole(self, record: Committed, steps: Steps, options: Options, next_step: int) -> Reply:
        if record.raw != steps.raw:
            raise _other("inputs", record.reply.step, next_step)
        if record.reply.options != options:
            raise _other("options", record.reply.step, next_step)
        return record.reply.again()

    def _composed(
        self, parts: list[Committed], step: int, steps: Steps, options: Options, next_step: int
    ) -> Reply:
        if options != PLAIN:
            raise _other("options", step, next_step)
        first, end = parts[0].reply.step, step + len(steps)
        width = len(steps.raw) // len(steps)
        raw = b"".join(r.raw for r in parts)
        if raw[(step - first) * width : (end - first) * width] != steps.raw:
            raise _other("inputs", step, next_step)
        outputs = np.concatenate([r.reply.outputs for r in parts])[step - first : end - first]
        return Reply(parts[0].reply.session_id, step, end, outputs, replayed=True)


def _other(what: str, step: int, next_step: int) -> StepConflict:
    return StepConflict(
        f"step {step} was committed with other {what}; the next step is {next_step}", expected_step=next_step
    )
