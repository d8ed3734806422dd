"""A committed request as bytes: what the journal keeps, and the replay window answers from.

    crc32 of all that follows | first step, steps, kind | outputs | raw inputs
    crc32 of all that follows | first step, steps, FULL | length of JSON | JSON | arrays, in the JSON's order

The first form is of a plain request; kind is twice the numbers in a row of outputs, plus 1 for float64.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.sessions.replies import PLAIN, Options, Reply, Sampling

_HEADER = struct.Struct("<IqII")
_CHECKED = struct.Struct("<qII")  # the same without the checksum
_LENGTH = struct.Struct("<I")
_CRC, _BODY = 4, _HEADER.size
FULL = 0xFFFFFFFF
QUANTILE = "quantile "  # and a level: name of an array


class CorruptRecord(ValueError):
    """A record is not what was written."""


def encode(raw: bytes, reply: Reply) -> bytes:
    """A committed request."""
    outputs = reply.outputs
    count = reply.next_step - reply.step
    char = outputs.dtype.char
    if (reply.options is PLAIN or reply.options == PLAIN) and char in "fd":
        head = _CHECKED.pack(reply.step, count, 2 * outputs.shape[1] + (char == "d"))
        body = head + outputs.tobytes() + raw
    else:
        arrays = {"outputs": outputs, "forecast": reply.forecast, "gates": reply.gates, "state": reply.state}
        arrays |= {QUANTILE + level: values for level, values in (reply.quantiles or {}).items()}
        kept = {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}
        about = {
            "options": asdict(reply.options),
            "generated": reply.generated,
            "arrays": {name: [a.dtype.str, list(a.shape)] for name, a in kept.items()},
            "raw": len(raw),
        }
        text = json.dumps(about, separators=(",", ":")).encode()
        parts = [_CHECKED.pack(reply.step, count, FULL), _LENGTH.pack(len(text)), text]
        body = b"".join([*parts, *(a.tobytes() for a in kept.values()), raw])
    return _LENGTH.pack(zlib.crc32(body)) + body


def span(record: bytes) -> tuple[int, int]:
    """The first step of a record, and the one behind its last. Not checked otherwise."""
    if len(record) < _BODY:
        raise CorruptRecord(f"a record of {len(record)} bytes is shorter than its header")
    _, step, count, _ = _HEADER.unpack_from(record)
    return step, step + count


def check(record: bytes, session_id: str) -> None:
    """Raises CorruptRecord if it is not what was written."""
    if len(record) < _BODY or zlib.crc32(record[_CRC:]) != _LENGTH.unpack_from(record)[0]:
        raise CorruptRecord(f"a record of session {session_id} is damaged: its checksum does not fit")


def raw_inputs(record: bytes, session_id: str) -> bytes:
    """What is run again, without the reply: a session that is restored has hundreds of them. Raises
    CorruptRecord."""
    check(record, session_id)
    _, _, count, kind = _HEADER.unpack_from(record)
    if kind == FULL:
        return decode(record, session_id)[0]
    width, double = divmod(kind, 2)
    return record[_BODY + count * width * (8 if double else 4) :]


def decode(record: bytes, session_id: str) -> tuple[bytes, Reply]:
    """Raw inputs and reply. Raises CorruptRecord."""
    check(record, session_id)
    _, step, count, kind = _HEADER.unpack_from(record)
    if kind != FULL:
        width, double = divmod(kind, 2)
        dtype = np.dtype("<f8" if double else "<f4")
        end = _BODY + count * width * dtype.itemsize
        outputs: NDArray[Any] = np.frombuffer(record, dtype, count * width, _BODY).reshape(count, width)
        return record[end:], Reply(session_id, step, step + count, outputs)
    (length,) = _LENGTH.unpack_from(record, _BODY)
    at = _BODY + _LENGTH.size
    about = json.loads(record[at : at + length])
    at += length
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype_name, shape) in about["arrays"].items():
        dtype, size = np.dtype(dtype_name), int(np.prod(shape))
        arrays[name] = np.frombuffer(record, dtype, size, at).reshape(shape)
        at += size * dtype.itemsize
    options = about["options"]
    sampling = options.pop("generate")
    reply = Reply(
        session_id=session_id,
        step=step,
        next_step=step + count,
        options=Options(**options, generate=None if sampling is None else Sampling(**sampling)),
        generated=about["generated"],
        outputs=arrays["outputs"],
        forecast=arrays.get("forecast"),
        quantiles={n.removeprefix(QUANTILE): a for n, a in arrays.items() if n.startswith(QUANTILE)} or None,
        gates=arrays.get("gates"),
        state=arrays.get("state"),
    )
    return record[at:], reply
