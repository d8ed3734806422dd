"""One connection to a Redis or Valkey server on which calls follow each other without waiting.

redis-py opens it (addresses, TLS, user and password); from then on the socket's bytes come straight here: a
task, a lock and a timer for each call, as redis-py has them, cost more than the call itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as Unanswered

#: Gets the reply, or why there is none.
Answer = Callable[[Any, Exception | None], None]


class Line(asyncio.Protocol):
    """The server answers in the order it was asked. When an answer is late the line is dropped, as none
    behind it can come either; it is `broken` then, and another must be made."""

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        """connection: not opened yet. timeout_s: for any answer, also while the connection is being made."""
        self.broken = False
        self._connection = connection
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._opening: asyncio.Task[None] | None = None
        self._unsent: list[bytes] = []  # asked for while it is being made
        self._waiting: deque[tuple[float, Answer]] = deque()  # until when, and who is told
        self._watch: asyncio.TimerHandle | None = None
        self._parser = _parser(connection)
        self._closed: asyncio.Future[None] | None = None

    def ask(self, packed: bytes, answer: Answer) -> None:
        """Sends a command; `answer` is called once, never before this returns."""
        self._waiting.append((self._loop.time() + self._timeout_s, answer))
        if self._transport is not None:
            self._transport.write(packed)
        else:
            self._unsent.append(packed)
            if self.broken:
                self._loop.call_soon(self._fail, Disconnected("the connection was lost"))
            elif self._opening is None:
                self._opening = self._loop.create_task(self._open())
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._on_watch)

    def drop(self, error: Exception) -> None:
        """No answer on it is waited for any longer; each that was gets the error."""
        self.broken = True
        if self._transport is not None:
            self._transport.abort()
        elif self._opening is not None:
            self._opening.cancel()
        self._fail(error)

    async def close(self) -> None:
        """Ends the connection."""
        self.drop(Disconnected("the store is closed"))
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._closed is not None:
            await self._closed

    async def _open(self) -> None:
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            self.broken = True
            self._fail(error)
            return
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise
        # There is no public way to have the socket of a connection that redis-py made
        writer = self._connection._writer
        assert writer is not None  # noqa: S101
        self._connection._writer = self._connection._reader = None
        self._writer = writer  # which would close the socket if it were collected
        self._transport = transport = cast(asyncio.Transport, writer.transport)
        self._closed = self._loop.create_future()
        transport.set_protocol(self)
        transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                if not self._waiting:
                    raise InvalidResponse("an answer to nothing that was asked")
                _, answer = self._waiting.popleft()
                if isinstance(reply, RedisError):
                    answer(None, reply)
                else:
                    answer(reply, None)
        except RedisError as error:
            self.drop(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.broken = True
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
        self._fail(Disconnected("the connection was lost"))

    def _on_watch(self) -> None:
        # One timer for all: a call that is answered in time, as nearly all are, makes and cancels none
        self._watch = None
        if self._waiting:
            left = self._waiting[0][0] - self._loop.time()
            if left <= 0:
                self.drop(Unanswered("no answer in time"))
            else:
                self._watch = self._loop.call_later(left, self._on_watch)

    def _fail(self, error: Exception) -> None:
        self._unsent.clear()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        waiting, self._waiting = self._waiting, deque()
        for _, answer in waiting:
            answer(None, error)


def _parser(connection: AbstractConnection) -> hiredis.Reader:
    """Errors come as redis-py's exceptions, which know what they mean; `gets` gives False when it needs more
    (RESP 2 has no booleans)."""
    return hiredis.Reader(
        protocolError=InvalidResponse, replyError=connection._parser.parse_error, notEnoughData=False
    )
