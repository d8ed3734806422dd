"""The replay window: the newest steps of a session, with their inputs and replies, so that a retry is
answered and never stepped.

A million sessions of 256 kept steps each are a quarter of a billion records. So a plain one, which nearly all
are, is one bytes object: its numbers as they were, and 16 bytes to say which.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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


#: Of a packed record: first step, steps, and numbers in a row of outputs times two, plus 1 if they are
#: float64. Behind it the outputs, then the raw inputs.
_HEADER = struct.Struct("=qII")
_pack, _unpack, _SIZE = _HEADER.pack, _HEADER.unpack_from, _HEADER.size
Kept = bytes | Committed


class ReplayWindow:
    """The newest `limit` steps; a request that is longer is kept while it is the newest one."""

    __slots__ = ("_records", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._records: list[Kept] | None = None  # oldest first; an empty list would take as much as a window

    def __len__(self) -> int:
        return len(self._records or ())

    def add(self, record: Committed) -> None:
        """Takes in a request that follows the newest one, and drops what no retry can reach any more."""
        records = self._records
        if records is None:
            self._records = [_kept(record)]
            return
        records.append(_kept(record))
        oldest = record.reply.next_step - self.limit
        while oldest > 0 and len(records) > 1 and _span(records[0])[1] <= oldest:
            del records[0]

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
        if records and _span(records[-1]) == (step, end):  # even if it is longer than the window
            return _whole(records[-1], session_id, steps, options, next_step)
        if step < next_step - self.limit or not records or step < _span(records[0])[0]:
            raise StepConflict(
                f"step {step} is older than the newest {self.limit} steps, which a retry is answered from;"
                f" the next step is {next_step}",
                expected_step=next_step,
            )
        first = bisect_right(records, step, key=_first_step) - 1
        parts = records[first : bisect_right(records, end - 1, key=_first_step)]
        if len(parts) == 1 and _span(parts[0]) == (step, end):
            return _whole(parts[0], session_id, steps, options, next_step)
        return _composed(parts, session_id, step, steps, options, next_step)


def _kept(record: Committed) -> Kept:
    """A plain request as bytes, any other as it is."""
    reply = record.reply
    outputs = reply.outputs
    kind = outputs.dtype.char
    if (reply.options is not PLAIN and reply.options != PLAIN) or kind not in "fd":
        # a copy of its own: a view would keep the outputs of the whole tick
        return Committed(record.raw, replace(reply, outputs=outputs.copy()))
    count, width = outputs.shape
    return _pack(reply.step, count, 2 * width + (kind == "d")) + outputs.tobytes() + record.raw


def _first_step(record: Kept) -> int:
    return record.reply.step if isinstance(record, Committed) else _unpack(record)[0]


def _span(record: Kept) -> tuple[int, int]:
    """The first step of a request, and the one behind its last."""
    if isinstance(record, Committed):
        return record.reply.step, record.reply.next_step
    step, count, _ = _unpack(record)
    return step, step + count


def _contents(record: Kept) -> tuple[bytes, NDArray[np.floating]]:
    """A request's raw inputs, and its outputs [T, O]."""
    if isinstance(record, Committed):
        return record.raw, record.reply.outputs
    _, count, kind = _unpack(record)
    width, double = divmod(kind, 2)
    outputs: NDArray[np.floating] = np.frombuffer(
        record, np.float64 if double else np.float32, count * width, _SIZE
    )
    return record[_SIZE + outputs.nbytes :], outputs.reshape(count, width)


def _whole(record: Kept, session_id: str, steps: Steps, options: Options, next_step: int) -> Reply:
    step, end = _span(record)
    raw, outputs = _contents(record)
    if raw != steps.raw:
        raise _other("inputs", step, next_step)
    if (record.reply.options if isinstance(record, Committed) else PLAIN) != options:
        raise _other("options", step, next_step)
    if isinstance(record, Committed):
        return record.reply.again()
    return Reply(session_id, step, end, outputs, replayed=True)


def _composed(
    parts: list[Kept], session_id: str, step: int, steps: Steps, options: Options, next_step: int
) -> Reply:
    if options != PLAIN:
        raise _other("options", step, next_step)
    first, end = _first_step(parts[0]), step + len(steps)
    width = len(steps.raw) // len(steps)
    contents = [_contents(record) for record in parts]
    raw = b"".join(raw for raw, _ in contents)
    if raw[(step - first) * width : (end - first) * width] != steps.raw:
        raise _other("inputs", step, next_step)
    outputs = np.concatenate([outputs for _, outputs in contents])[step - first : end - first]
    return Reply(session_id, step, end, outputs, replayed=True)


def _other(what: str, step: int, next_step: int) -> StepConflict:
    return StepConflict(
        f"step {step} was committed with other {what}; the next step is {next_step}", expected_step=next_step
    )
