"""What is being answered: an HTTP request or a message of a stream, its id, and where its time goes.

It is in a context variable, so that whatever runs for a request finds it, down to a line in the log, and
nobody has to hand it on. Standard library alone: everything from the API down to the stores may import it.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar

REQUEST_ID, TRACEPARENT = b"x-request-id", b"traceparent"
#: By which replicas know each other
PEER = b"x-cellstate-peer"
#: What is taken for an id: visible characters that mean nothing to a shell, a log or a URL; at the end there
#: may be the number of a stream's message, which a replica that passes it on has put there.
_ID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}(?:\.[0-9]{1,15})?")
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SAMPLED = 1
#: Spans of one request, at most: a bulk request that restores a thousand sessions is told in so many.
MOST_PARTS = 128

Attributes = Mapping[str, str | int | float | bool]


class Part:
    """A piece of a request's time. start, end: on time.perf_counter. count: of the requests of a bulk body
    that it was of. span_id: if a span of another process hangs below it."""

    __slots__ = ("attributes", "count", "end", "name", "span_id", "start")

    def __init__(
        self, name: str, start: float, end: float, attributes: Attributes | None = None, span_id: int = 0
    ) -> None:
        self.name, self.start, self.end = name, start, end
        self.attributes, self.span_id, self.count = attributes or {}, span_id, 1


class Trace:
    """A request that is traced, in numbers; `service.tracing` makes spans of them when it is answered.
    span_id: of the request's own span. parent_id: of whoever asked, 0 if nobody said."""

    __slots__ = ("_parts", "dropped", "parent_id", "span_id", "trace_id")

    def __init__(self, trace_id: int, parent_id: int) -> None:
        self.trace_id, self.parent_id, self.span_id = trace_id, parent_id, new_span_id()
        self._parts: dict[tuple[str, float], Part] = {}
        self.dropped = 0

    def add(
        self, name: str, start: float, end: float, attributes: Attributes | None = None, span_id: int = 0
    ) -> None:
        """Parts of one name that end together are one, from the first start on: the requests of a bulk body
        that were in one tick."""
        known = self._parts.get((name, end))
        if known is not None:
            known.start, known.count = min(known.start, start), known.count + 1
        elif len(self._parts) < MOST_PARTS:
            self._parts[name, end] = Part(name, start, end, attributes, span_id)
        else:
            self.dropped += 1

    @property
    def parts(self) -> list[Part]:
        return sorted(self._parts.values(), key=lambda part: (part.start, part.end))

    def traceparent(self, span_id: int) -> bytes:
        """For a request that is made below this span."""
        return b"00-%032x-%016x-01" % (self.trace_id, span_id)


class Asked:
    """One request or message. Its id is the client's, else it is made when somebody wants it."""

    __slots__ = ("_id", "_number", "_stream", "headers", "trace")

    def __init__(
        self, headers: Iterable[tuple[bytes, bytes]] = (), stream: Asked | None = None, number: int = 0
    ) -> None:
        self.headers: dict[bytes, bytes] = dict(headers)
        self.trace: Trace | None = None
        self._id, self._stream, self._number = "", stream, number

    @property
    def id(self) -> str:
        if not self._id:
            if self._stream is not None:
                self._id = f"{self._stream.id}.{self._number}"
            else:
                self._id = self._given() or os.urandom(8).hex()
        return self._id

    @property
    def named(self) -> bool:
        """Whether anybody knows it by its id: the client gave one, or a log has it."""
        return bool(self._id) or REQUEST_ID in self.headers

    def _given(self) -> str:
        given = self.headers.get(REQUEST_ID, b"")
        return given.decode() if _ID.fullmatch(given) else ""

    def message(self) -> Asked:
        """The next message of this stream: its id is the stream's and its number, from 1 on."""
        self._number += 1
        return Asked(stream=self, number=self._number)


ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


def current_trace() -> Trace | None:
    """Of the request that is being answered here, if it is traced."""
    asked = ASKED.get()
    return None if asked is None else asked.trace


def request_id() -> str:
    """Of the request that is being answered here; empty if none is."""
    asked = ASKED.get()
    return "" if asked is None else asked.id


def onward(span_id: int = 0) -> list[tuple[bytes, bytes]]:
    """Headers of a request that is made for the one that is being answered here, by which others know it.
    span_id: of its span here; without one it hangs below the request itself."""
    asked = ASKED.get()
    if asked is None:
        return []
    headers = [(REQUEST_ID, asked.id.encode())]
    if asked.trace is not None:
        headers.append((TRACEPARENT, asked.trace.traceparent(span_id or asked.trace.span_id)))
    elif TRACEPARENT in asked.headers:  # not sampled, or this process traces nothing: others may
        headers.append((TRACEPARENT, asked.headers[TRACEPARENT]))
    return headers


def new_span_id() -> int:
    return random.getrandbits(64) or 1


def read_traceparent(header: bytes | None) -> tuple[int, int, bool] | None:
    """Trace id, parent's span id and whether that was sampled, of a W3C traceparent; None if it is none."""
    found = None if header is None else _TRACEPARENT.fullmatch(header.strip())
    if found is None or found[1] == b"ff" or (found[1] == b"00" and len(header or b"") > 55):
        return None
    trace_id, parent_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not parent_id:
        return None
    return trace_id, parent_id, bool(int(found[4], 16) & _SAMPLED)
