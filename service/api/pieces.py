"""Large bodies in pieces: parsing one whole would hold up everybody else for a millisecond and more.

A JSON list is cut where one element ends and the next begins, without reading what is between. That is a
guess about the text, and what proves it is that every piece is a valid list by itself: a cut inside of a
string would leave an open one. Whatever is not as expected is left to the parser of whole bodies, which also
knows the words for what is wrong; so a guess that fails costs time and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from service.api.messages import parse
from service.api.schemas import MOST_REQUESTS, BulkBody, BulkItem, BulkShell, PlainItem, Rows, Sequence
from service.api.turns import Turns
from service.errors import CellstateError
from service.sessions.inputs import InputReader, Steps, joined

S = TypeVar("S", bound=Sequence)

#: Bytes from which a body is read in pieces, and of a piece. It takes about 0.06 ms.
LARGE = 16 * 1024
PIECE = 3 * 1024

_ROWS = TypeAdapter(Rows, config=ConfigDict(strict=True))
_ITEMS = TypeAdapter(list[BulkItem], config=ConfigDict(strict=True))
_PLAIN_ITEMS = TypeAdapter(Annotated[list[PlainItem], Field(fail_fast=True)])
_GAP = rb"[ \t\r\n]{0,64}"
_OPENING = re.compile(_GAP + rb":" + _GAP + rb"\[")
_BETWEEN_ROWS = re.compile(rb"\]" + _GAP + rb"," + _GAP + rb"\[")
_BETWEEN_OBJECTS = re.compile(rb"\}" + _GAP + rb"," + _GAP + rb"\{")


@dataclass(frozen=True, slots=True)
class Cut:
    """An object in JSON whose one long list was cut."""

    shell: bytes  # the object with the list empty
    parts: list[bytes]  # lists; if each is valid, together they are the one


def cut(text: bytes, key: bytes, between: re.Pattern[bytes]) -> Cut | None:
    """Cuts the list below a key of the outermost object, or None if the text is not of the usual form. The
    shell must still be parsed, and its list be empty: then the key was one."""
    at = text.find(b'"' + key + b'"')
    opening = _OPENING.match(text, at + len(key) + 2) if at > 0 else None
    if opening is None:
        return None
    # An even number of quotes before it, none escaped: the key is a string, and not part of one. One brace:
    # it is the outermost object's.
    head = text[:at]
    if b"\\" in head or head.count(b'"') % 2 or head.count(b"{") != 1:
        return None
    start, end = opening.end(), _end(text, between.pattern[1:2])
    tail = text[end:]
    if end <= start or b"\\" in tail or b'"' + key + b'"' in tail:  # a second list of that name
        return None
    parts = []
    while end - start > PIECE and (found := between.search(text, start + PIECE, end)):
        parts.append(b"[" + text[start : found.start() + 1] + b"]")
        start = found.end() - 1
    parts.append(b"[" + text[start:end] + b"]")
    return Cut(text[: opening.end()] + tail, parts)


def _end(text: bytes, closing: bytes) -> int:
    """Where the last list ends whose last element ends in `closing`; -1 if there is none."""
    end = len(text)
    for _ in range(8):  # behind it are a few short fields
        end = text.rfind(b"]", 0, end)
        if end < 0 or text[max(0, end - 64) : end].rstrip().endswith(closing):
            return end
    return -1


async def read_sequence(
    schema: type[S], text: bytes, reader: InputReader, turns: Turns
) -> tuple[S, Steps | None]:
    """A body, checked; its steps too if it was read in pieces, and its `inputs` are empty then. Raises what
    `parse` does."""
    if len(text) <= LARGE:
        return parse(schema, text), None
    await turns.next()  # to cut it takes as long as a piece
    pieces = cut(text, b"inputs", _BETWEEN_ROWS)
    if pieces is not None:
        try:
            body = schema.model_validate_json(pieces.shell)
            if body.inputs == [] and body.text is None:
                return body, await _steps(pieces.parts, reader, turns)
        except (ValidationError, CellstateError, ValueError, OverflowError, RecursionError):
            pass  # said below, in its right place
        await turns.next()
    return parse(schema, text), None


async def _steps(parts: list[bytes], reader: InputReader, turns: Turns) -> Steps:
    """Raises ValueError or InvalidValue, without the right place."""
    steps: list[Steps] = []
    count = 0
    for part in parts:
        await turns.next()
        steps.append(reader.series(_ROWS.validate_json(part)))
        count += len(steps[-1])
        if count > reader.max_steps:
            raise ValueError
    await turns.next()
    return joined(steps)


async def read_plain(text: bytes, turns: Turns) -> list[PlainItem] | None:
    """The requests of a bulk body if all of them are plain ones; None if not, or if the body is not of the
    usual form: then it is for `read_bulk`."""
    if len(text) > LARGE:
        await turns.next()
    pieces = cut(text, b"requests", _BETWEEN_OBJECTS)
    items: list[PlainItem] = []
    try:
        if pieces is None or BulkShell.model_validate_json(pieces.shell).requests:
            return None
        for part in pieces.parts:
            if len(part) > LARGE:
                return None
            if len(pieces.parts) > 1:
                await turns.next()
            items += _PLAIN_ITEMS.validate_json(part)
    except ValidationError:
        return None
    return items if len(items) <= MOST_REQUESTS else None


async def read_bulk(
    text: bytes, reader: InputReader, turns: Turns
) -> list[tuple[BulkItem, Steps | None]] | None:
    """The requests of a bulk body, as `read_sequence` reads them; None if one of them is not valid."""
    pieces = None
    if len(text) > LARGE:
        await turns.next()
        pieces = cut(text, b"requests", _BETWEEN_OBJECTS)
    items: list[tuple[BulkItem, Steps | None]] = []
    try:
        if pieces is None or BulkShell.model_validate_json(pieces.shell).requests:
            return [(item, None) for item in BulkBody.model_validate_json(text).requests]
        for part in pieces.parts:
            await turns.next()
            if len(part) > LARGE and (item := await _large_item(part[1:-1], reader, turns)):
                items.append(item)
            else:
                items += [(item, None) for item in _ITEMS.validate_json(part)]
    except ValidationError:
        return None
    return items if len(items) <= MOST_REQUESTS else None


async def _large_item(text: bytes, reader: InputReader, turns: Turns) -> tuple[BulkItem, Steps | None] | None:
    """One request; None if the text is more than one, or not valid."""
    try:
        return await read_sequence(BulkItem, text, reader, turns)
    except CellstateError:
        return None
