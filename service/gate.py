"""The gate of a replica's own port: what is too much is refused before it costs anything.

Past its capacity a server must not spend its time on what it will not do. To parse a request, start its task
and render its answer takes a good part of what a step takes; so while as many requests are here as may be,
one more is answered from its bytes, with a response made before. Nothing of it is read but its length.

Counted are requests, as their sum over the rate at which they are answered is what each waits, whatever
holds them up. A stream is not one: its client waits for its answer before the service reads on.

Who comes again at once is refused again, and a refusal still costs a third of a step: two system calls. So
when refusals are many they are held back for a moment. Nothing waits but their clients.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.api.problems import PROBLEM_TYPE, problem_json
from service.asgi import ASGI
from service.errors import NoCapacity, Unavailable

#: Seconds between two looks at the connections
SWEEP_S = 5.0
#: Refusals in HOLD_S seconds that are answered at once; more are answered all together when it is over
AT_ONCE = 64
HOLD_S = 1.0
_TOO_MANY = NoCapacity("as many requests are here as may be; nothing was executed", retry_after_s=1)
_TOO_SLOW = b'{"type":"/docs#timeout","title":"The request is too slow","status":408,'
_TOO_SLOW += b'"detail":"the request did not arrive in time","code":"timeout"}'
_NO_ROOM = Unavailable("as many connections are open as may be", retry_after_s=1)


class Gate:
    """What one listener lets in. requests: at once, beside those of streams. connections: open, streams
    included. timeout_s: that a request may take to arrive. refused: how many were not let in, by reason.
    arrived: told of what was let in, as it is read."""

    def __init__(
        self,
        requests: int,
        connections: int,
        timeout_s: float,
        refused: Counter[str] | None = None,
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        self.requests, self.connections, self.timeout_s = requests, connections, timeout_s
        self.arrived = arrived
        self.streams = 0  # open now
        self.refused: Counter[str] = Counter() if refused is None else refused
        self._held: list[GateProtocol] = []
        self._now = 0  # refusals since the last release
        self._release: asyncio.TimerHandle | None = None
        self._made_for: object = None
        self._made = b""

    def hold(self, protocol: GateProtocol) -> bool:
        """Whether a refusal is to be held back; its protocol is told when it may be written."""
        if self._release is None:
            self._release = protocol.loop.call_later(HOLD_S, self.let_go)
        self._now += 1
        if self._now <= AT_ONCE:
            return False
        self._held.append(protocol)
        return True

    def let_go(self) -> None:
        """Answers all that is held back."""
        if self._release is not None:
            self._release.cancel()
        held, self._held, self._now, self._release = self._held, [], 0, None
        for protocol in held:
            protocol.release()

    def too_many(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """What a request too much is answered, with the server's headers: another list when they change."""
        if headers is not self._made_for:
            self._made_for, self._made = headers, response(429, problem_json(_TOO_MANY), headers, retry=True)
        return self._made


def response(status: int, body: bytes, headers: list[tuple[bytes, bytes]], *, retry: bool = False) -> bytes:
    """A whole response with a problem in it. retry: to be tried again in a second."""
    phrase = {408: "Request Timeout", 429: "Too Many Requests", 503: "Service Unavailable"}[status]
    lines = [f"HTTP/1.1 {status} {phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [b"content-type: " + PROBLEM_TYPE.encode(), b"content-length: %d" % len(body)]
    if retry:
        lines.append(b"retry-after: 1")
    else:
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", body])


class GateConfig(uvicorn.Config):
    """uvicorn's configuration with the gate, for the protocols below; they get nothing else of ours."""

    def __init__(self, app: ASGI, gate: Gate, **kwargs: Any) -> None:
        super().__init__(app, http=GateProtocol, ws=StreamProtocol, **kwargs)
        self.gate = gate


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, counted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.config.gate.streams += 1  # type: ignore[attr-defined]
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.config.gate.streams -= 1  # type: ignore[attr-defined]
        super().connection_lost(exc)


class _Rest:
    """Stands where uvicorn keeps the timer of a connection that rests. A timer for each response is 0.7 us
    and a place in a heap of all connections; the look at them all that is taken anyway does as well."""

    def cancel(self) -> None:
        """What uvicorn does to the timer when the connection rests no more."""


_REST: Any = _Rest()


class GateProtocol(HttpToolsProtocol):
    """uvicorn's, with a gate before it."""

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.gate: Gate = config.gate  # type: ignore[attr-defined]
        self._most = self.gate.requests
        self._since = self.loop.time()  # of the last answer, or of the connection
        self._stuck: object = None  # what was not whole at the last look, if anything
        self._held = False  # a refusal is held back

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self.connections) < self.gate.connections:
            super().connection_made(transport)  # type: ignore[arg-type]
            return
        super().connection_made(transport)  # type: ignore[arg-type]
        self._end(503, problem_json(_NO_ROOM), "connections")

    def data_received(self, data: bytes) -> None:
        if self._held:  # the next request came before the answer to the last: they are answered in order
            self.release()
        if len(self.tasks) >= self._most and self._refuse(data):
            return
        super().data_received(data)
        self.gate.arrived()

    def _refuse(self, data: bytes) -> bool:
        """Answers 429 if there are too many requests and this is one more, whole and nothing behind it. All
        else goes its usual way."""
        gate = self.gate
        if len(self.tasks) - gate.streams < self._most or not data.startswith(b"POST "):
            return False
        cycle: Any = self.cycle  # None before the first request
        if self._begun and (
            cycle is None or not cycle.response_complete or self.timeout_keep_alive_task is None
        ):
            return False  # a request is not whole, or its answer is not
        head, gap, body = data.partition(b"\r\n\r\n")
        head = head.lower()
        _, _, length = head.partition(b"\r\ncontent-length:")
        digits = length.partition(b"\r\n")[0].strip()
        if not gap or not digits.isdigit() or len(digits) > 9 or int(digits) != len(body):
            return False
        if (
            b"/handover " in head[:400]
            or b"\r\nconnection: close" in head
            or b" http/1.1" not in head
            or self.transport.is_closing()
        ):
            return False
        self._held = True
        if not gate.hold(self):
            self.release()
        gate.refused["requests"] += 1
        return True

    def release(self) -> None:
        """Writes the refusal that is held back, if there is one."""
        if self._held:
            self._held = False
            if not self.transport.is_closing():
                self.transport.write(self.gate.too_many(self.server_state.default_headers))
                self._since = self.loop.time()

    def on_response_complete(self) -> None:
        """What uvicorn's does, without a timer."""
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.timeout_keep_alive_task = _REST
            self._since = self.loop.time()

    def end_if_stuck(self, now: float) -> None:
        """Ends the connection if the same request has been on its way since a look `timeout_s` ago, or if it
        rests for longer than connections are kept."""
        cycle: Any = self.cycle  # None before the first request
        if self.transport.is_closing():
            return
        if cycle is not None and (not cycle.more_body if not cycle.response_complete else self._resting):
            self._stuck = None
            if self._resting and not self._held and now - self._since >= self.timeout_keep_alive:
                self.transport.close()
            return
        unfinished = (id(self.headers), cycle is not None and cycle.response_complete)
        if self._stuck != unfinished:
            self._stuck, self._since = unfinished, now
        elif now - self._since >= self.gate.timeout_s:
            if cycle is None and not self._begun:
                self.transport.close()
            else:
                self._end(408, _TOO_SLOW, "slow")

    @property
    def _resting(self) -> bool:
        return self.timeout_keep_alive_task is not None

    @property
    def _begun(self) -> bool:
        """Whether a byte of a request has come."""
        headers: object = self.headers  # None before the first one, whatever its type says
        return headers is not None

    def _end(self, status: int, body: bytes, reason: str) -> None:
        self.gate.refused[reason] += 1
        self.transport.write(response(status, body, self.server_state.default_headers))
        self.transport.close()
