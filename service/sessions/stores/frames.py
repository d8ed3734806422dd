"""Records as a store's log has them: one behind the other, each with its session, steps and checksum.

crc32 of all that follows | session's row | first step | steps | length | record
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_CRC = struct.Struct("<I")
_ABOUT = struct.Struct("<qqII")
HEADER = _CRC.size + _ABOUT.size


class Frame(NamedTuple):
    """data: header and record."""

    row: int
    step: int
    next_step: int
    data: bytes


def framed(row: int, step: int, next_step: int, record: bytes) -> Frame:
    about = _ABOUT.pack(row, step, next_step - step, len(record))
    crc = _CRC.pack(zlib.crc32(record, zlib.crc32(about)))
    return Frame(row, step, next_step, b"".join((crc, about, record)))


def frames(data: bytes) -> Iterator[Frame]:
    """Every frame that is whole; what lies between, damaged or not a frame, is passed over."""
    at = 0
    while at + HEADER <= len(data):
        frame = _frame_at(data, at)
        if frame is None:
            at += 1  # a damaged length: the next frame may begin anywhere
            continue
        yield frame
        at += len(frame.data)


def joined(many: Iterable[Frame]) -> bytes:
    return b"".join([frame.data for frame in many])


def _frame_at(data: bytes, at: int) -> Frame | None:
    row, step, count, length = _ABOUT.unpack_from(data, at + _CRC.size)
    end = at + HEADER + length
    if end > len(data) or zlib.crc32(data[at + _CRC.size : end]) != _CRC.unpack_from(data, at)[0]:
        return None
    return Frame(row, step, step + count, data[at:end])
