"""Calls of Lua scripts on one Redis or Valkey server: connections, time limits, and what an error means.

redis-py makes the connections (URL, TLS, password) and hiredis packs and parses; redis-py's own client is
left out, because it sends a command again after a failure, and a commit must never be sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as ServerTimeout

from service.sessions.stores.protocol import StoreAway, StoreError, StoreFault

Arg = str | bytes | int | float

# What the first word of an error means. The server has refused: nothing was done.
_FAULTS = {
    "OOM": "it is full: raise its maxmemory, or let idle sessions expire sooner (ttl_s)",
    "READONLY": "it is a read-only replica: the URL must name the primary",
    "MISCONF": "it can't write to its disk and refuses writes: free its disk and see its log",
    "NOPERM": "the user in the URL may not: give it `+@all ~cellstate:*`, or at least what the message names",
    "WRONGTYPE": "a key of this model was changed by another program, or is damaged",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write asks for",
    "MOVED": "it is a Redis Cluster: the URL must name one server (or a proxy) that holds all keys",
    "CROSSSLOT": "it is a Redis Cluster: the URL must name one server (or a proxy) that holds all keys",
    "NOAUTH": "it asks for a password: redis://user:password@host:port",
    "WRONGPASS": "the user or password in the URL is wrong",
}
# These pass by themselves
_PASSING = frozenset({"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNKILLABLE"})
_CODE = re.compile(r"[A-Z]{2,}$")


def shown(url: str) -> str:
    """A URL without its user and password, for messages."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


class Script:
    """A Lua script, by its SHA-1."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  (Redis names scripts so)


class _Line:
    """One connection on which calls follow each other without waiting: the server answers in order."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.broken = False
        self._connection = connection
        self._lock = asyncio.Lock()  # of who sends: first come, first sent
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._reader: asyncio.Task[None] | None = None

    async def exchange(self, packed: bytes) -> Any:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        async with self._lock:
            if self.broken:
                raise Disconnected("the connection was lost")
            try:
                if self._reader is None:
                    await self._connection.connect()  # type: ignore[no-untyped-call]
                    self._reader = asyncio.create_task(self._read())
                self._waiting.append(reply)
                await self._connection.send_packed_command(packed, check_health=False)
            except BaseException:
                self.drop()  # half a command may have been sent
                await self._connection.disconnect(nowait=True)
                raise
        return await reply

    async def _read(self) -> None:
        error: Exception = Disconnected("the connection was lost")
        try:
            while True:
                try:
                    reply, refusal = await self._connection.read_response(), None
                except ResponseError as refused:
                    reply, refusal = None, refused
                if not self._waiting:
                    raise InvalidResponse("an answer to nothing that was asked")
                caller = self._waiting.popleft()
                if caller.done():  # cancelled: nobody wants this reply
                    continue
                if refusal is None:
                    caller.set_result(reply)
                else:
                    caller.set_exception(refusal)
        except (RedisError, OSError) as lost:
            error = lost
        finally:
            self.broken = True
            for caller in self._waiting:
                if not caller.done():
                    caller.set_exception(error)
            self._waiting.clear()
            await self._connection.disconnect(nowait=True)

    def drop(self) -> None:
        """No reply on it is waited for any longer."""
        self.broken = True
        if self._reader is not None:
            self._reader.cancel()

    async def close(self) -> None:
        self.broken = True
        await self._connection.disconnect()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])


class Wire:
    """Two connections to one server: one for what is urgent (commits, in their order, and leases), one for
    the rest. After a time-out a connection is dropped, and the next call makes another."""

    def __init__(self, url: str, timeout_s: float, calls: int = 64) -> None:
        """timeout_s: of any call. calls: how many that are not urgent may be under way at a time."""
        self.name = shown(url)
        self._timeout_s = timeout_s
        # Only makes connections
        self._pool = ConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=timeout_s
        )
        self._lines: dict[bool, _Line] = {}
        self._closed = False
        self._ordinary = asyncio.Semaphore(calls)

    async def run(self, script: Script, key: str, *args: Arg, urgent: bool = False) -> Any:
        """One script in one round trip."""
        try:
            return await self.call("EVALSHA", script.sha, 1, key, *args, urgent=urgent)
        except NoScriptError:  # the server was restarted or flushed its scripts; nothing was run
            return await self.call("EVAL", script.text, 1, key, *args, urgent=urgent)

    async def call(self, *command: Arg, urgent: bool = False) -> Any:
        """One command. Raises StoreAway, StoreFault, or NoScriptError."""
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub forgets the ellipsis
        line: _Line | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                if urgent:
                    line = self._line(urgent)
                    return await line.exchange(packed)
                async with self._ordinary:
                    line = self._line(urgent)
                    return await line.exchange(packed)
        except TimeoutError:
            if line is not None:
                line.drop()
            raise StoreAway(f"{self.name} did not answer within {self._timeout_s:g} s") from None
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise self._meaning(error) from error

    def _line(self, urgent: bool) -> _Line:
        if self._closed:
            raise Disconnected("the store is closed")
        line = self._lines.get(urgent)
        if line is None or line.broken:
            line = _Line(self._pool.make_connection())  # type: ignore[no-untyped-call]
            self._lines[urgent] = line
        return line

    def _meaning(self, error: Exception) -> StoreError:
        code = getattr(error, "status_code", None) or ""
        text = str(error)
        first = text.split(" ", 1)[0]
        if not code and _CODE.match(first):
            code = first
        if isinstance(error, (AuthenticationError, AuthorizationError)):
            return StoreFault(f"{self.name}: {_FAULTS.get(code, _FAULTS['WRONGPASS'])} ({text})")
        if isinstance(error, (Disconnected, ServerTimeout, InvalidResponse, OSError)) or code in _PASSING:
            return StoreAway(f"{self.name}: {text}")
        return StoreFault(f"{self.name}: {_FAULTS.get(code, 'it refuses')} ({text})")

    async def close(self) -> None:
        self._closed = True
        for line in self._lines.values():
            await line.close()
