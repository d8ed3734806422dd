"""Replies as JSON. Numbers are written with nine digits, which is a float32 exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.sessions.replies import Reply

GATES = ("i", "f", "g", "o", "c", "h")


class Renderer:
    """Writes the replies of one model. `width`: numbers in a row of outputs."""

    def __init__(self, width: int) -> None:
        self._row = "[" + ",".join(["%.9g"] * width) + "]"  # one call formats a row

    def reply(self, reply: Reply) -> bytes:
        """A step reply; see the schema. The pattern of session ids leaves nothing in them to escape."""
        head = f'{{"session_id":"{reply.session_id}","step":{reply.step},"next_step":{reply.next_step}'
        return f'{head}{self._payload(reply)},"replayed":{"true" if reply.replayed else "false"}}}'.encode()

    def prediction(self, reply: Reply) -> bytes:
        """A predict reply: the same without a session."""
        return f"{{{self._payload(reply)[1:]}}}".encode()

    def _payload(self, reply: Reply) -> str:
        text = ""
        if reply.options.outputs:
            text += f',"outputs":{self.rows(reply.outputs)}'
        if reply.forecast is not None:
            text += f',"forecast":{self.rows(reply.forecast)}'
        if reply.generated is not None:
            text += f',"generated":{quoted(reply.generated)}'
        if reply.gates is not None:
            gates = ",".join(f'"{name}":{array(reply.gates[:, :, n])}' for n, name in enumerate(GATES))
            text += f',"gates":{{{gates}}}'
        if reply.state is not None:
            text += f',"state":{{"h":{array(reply.state[0])},"c":{array(reply.state[1])}}}'
        return text

    def rows(self, values: NDArray[np.floating]) -> str:
        """[N, width] as a list of rows."""
        row = self._row
        return "[" + ",".join([row % tuple(numbers) for numbers in values.tolist()]) + "]"


def array(values: NDArray[np.floating]) -> str:
    """An array of any depth."""
    if values.ndim == 1:
        return "[" + ",".join(["%.9g"] * len(values)) % tuple(values.tolist()) + "]"
    return "[" + ",".join([array(part) for part in values]) + "]"


def quoted(text: str) -> str:
    """A JSON string."""
    return dumps(text)


def dumps(value: Any) -> str:
    """Compact JSON for what is not on the hot path; a number that is not finite is a bug and raises."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
