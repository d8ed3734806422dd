"""Calls of Lua scripts on one Redis or Valkey server: connections, time limits, and what an error means.

redis-py makes the connections (URL, TLS, password) and hiredis packs and parses; redis-py's own client is
left out, because it sends a command again after a failure, and a commit must never be sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    InvalidResponse,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as ServerTimeout

from service.sessions.stores.protocol import StoreAway, StoreError, StoreFault

Arg = str | bytes | int | float
IDLE_CONNECTIONS = 8

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


class Wire:
    """Connections to one server. A connection carries one call at a time; after a time-out or a cancellation
    it is closed, so that a late reply is never taken for another call's."""

    def __init__(self, url: str, timeout_s: float, calls: int = 16) -> None:
        """timeout_s: of any call. calls: how many that are not urgent may be under way at a time."""
        self.name = shown(url)
        self._timeout_s = timeout_s
        # Only makes connections; which of them are idle is kept here
        self._pool = ConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=timeout_s
        )
        self._idle: list[AbstractConnection] = []
        self._ordinary = asyncio.Semaphore(calls)

    async def run(self, script: Script, key: str, *args: Arg, urgent: bool = False) -> Any:
        """One script in one round trip. urgent: waits for no other call (commits and leases)."""
        try:
            return await self.call("EVALSHA", script.sha, 1, key, *args, urgent=urgent)
        except NoScriptError:  # the server was restarted or flushed its scripts; nothing was run
            return await self.call("EVAL", script.text, 1, key, *args, urgent=urgent)

    async def call(self, *command: Arg, urgent: bool = False) -> Any:
        """One command. Raises StoreAway, StoreFault, or NoScriptError."""
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub forgets the ellipsis
        try:
            async with asyncio.timeout(self._timeout_s):
                if urgent:
                    return await self._exchange(packed)
                async with self._ordinary:
                    return await self._exchange(packed)
        except TimeoutError:
            raise StoreAway(f"{self.name} did not answer within {self._timeout_s:g} s") from None
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise self._meaning(error) from error

    async def _exchange(self, packed: bytes) -> Any:
        connection = self._take()
        try:
            if not connection.is_connected:
                await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(packed, check_health=False)
            reply = await connection.read_response()
        except BusyLoadingError:
            await connection.disconnect(nowait=True)
            raise
        except ResponseError:
            self._idle.append(connection)  # the server has answered: the connection is in step
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            await connection.disconnect(nowait=True)
        return reply

    def _take(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            reader = connection._reader
            if reader is not None and not reader.at_eof() and reader.exception() is None:
                return connection
            connection._close()  # type: ignore[no-untyped-call]  # the server closed it while it was idle
        made: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return made

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
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect()
