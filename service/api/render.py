"""Replies as JSON. Numbers are written with nine digits, which is a float32 exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.turns import Turns
from service.sessions.names import client_id
from service.sessions.replies import PLAIN, Reply

GATES = ("i", "f", "g", "o", "c", "h")


#: Characters that are written in one go; they take about 0.05 ms
PIECE = 2 * 1024
#: Characters of a reply from which its last step takes as long as a piece
LARGE = 16 * 1024
#: Numbers of a part
NUMBERS = 256


class Renderer:
    """Writes the replies of one model. `width`: numbers in a row of outputs."""

    def __init__(self, width: int) -> None:
        self._row = "[" + ",".join(["%.9g"] * width) + "]"  # one call formats a row
        small = f'{{"session_id":"%s","step":%d,"next_step":%d,"outputs":[{self._row}],"replayed":%s}}'
        self._small = small.encode()
        self._rows = max(1, NUMBERS // width)

    def reply(self, reply: Reply) -> bytes:
        """A step reply; see the schema."""
        return self.small(reply) if is_small(reply) else "".join(self.reply_parts(reply)).encode()

    def small(self, reply: Reply) -> bytes:
        """The same of one that `is_small`, as most of all are, in one piece."""
        return self._small % (
            client_id(reply.session_id).encode(),
            reply.step,
            reply.next_step,
            *reply.outputs.tolist()[0],
            b"true" if reply.replayed else b"false",
        )

    def reply_parts(self, reply: Reply) -> Iterator[str]:
        """The same in small parts. The pattern of session ids leaves nothing in them to escape."""
        yield f'{{"session_id":"{client_id(reply.session_id)}"'
        yield f',"step":{reply.step},"next_step":{reply.next_step}'
        yield from self._fields(reply)
        yield f',"replayed":{"true" if reply.replayed else "false"}}}'

    def prediction_parts(self, reply: Reply) -> Iterator[str]:
        """A predict reply: the same without a session."""
        fields = self._fields(reply)
        yield "{" + next(fields, ",")[1:]
        yield from fields
        yield "}"

    def _fields(self, reply: Reply) -> Iterator[str]:
        if reply.options.outputs:
            yield ',"outputs":'
            yield from self.rows(reply.outputs)
        if reply.forecast is not None:
            yield ',"forecast":'
            yield from self.rows(reply.forecast)
        if reply.quantiles is not None:
            for n, (level, values) in enumerate(reply.quantiles.items()):
                yield f',"{level}":' if n else f',"quantiles":{{"{level}":'
                yield from self.rows(values)
            yield "}"
        if reply.generated is not None:
            yield f',"generated":{quoted(reply.generated)}'
        if reply.gates is not None:
            for n, name in enumerate(GATES):
                yield f',"{name}":' if n else f',"gates":{{"{name}":'
                yield from array(reply.gates[:, :, n])
            yield "}"
        if reply.state is not None:
            yield ',"state":{"h":'
            yield from array(reply.state[0])
            yield ',"c":'
            yield from array(reply.state[1])
            yield "}"

    def rows(self, values: NDArray[np.floating]) -> Iterator[str]:
        """[N, width] as a list of rows."""
        row, some = self._row, self._rows
        if len(values) <= some:
            yield "[" + ",".join([row % tuple(numbers) for numbers in values.tolist()]) + "]"
            return
        for first in range(0, len(values), some):
            numbers = values[first : first + some].tolist()
            yield ("," if first else "[") + ",".join([row % tuple(each) for each in numbers])
        yield "]"


def is_small(reply: Reply) -> bool:
    """Whether it is of one step, and holds nothing else."""
    return reply.options is PLAIN and len(reply.outputs) == 1


def array(values: NDArray[np.floating]) -> Iterator[str]:
    """An array of any depth."""
    if values.ndim == 1:
        yield "[" + ",".join(["%.9g"] * len(values)) % tuple(values.tolist()) + "]"
        return
    for n, part in enumerate(values):
        yield "," if n else "["
        yield from array(part)
    yield "]"


async def joined(parts: Iterator[str], turns: Turns) -> bytes:
    """All parts; others have their turn between some and the next."""
    written: list[str] = []
    since = total = 0
    for part in parts:
        if since > PIECE:
            await turns.next()
            since = 0
        written.append(part)
        since += len(part)
        total += len(part)
    if total > LARGE:
        await turns.next()  # for what the whole takes, to its socket
    return "".join(written).encode()


def quoted(text: str) -> str:
    """A JSON string."""
    return dumps(text)


def dumps(value: Any) -> str:
    """Compact JSON for what is not on the hot path; a number that is not finite is a bug and raises."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
