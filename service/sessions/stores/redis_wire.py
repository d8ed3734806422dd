"""Calls of Lua scripts on one Redis or Valkey server: which connection, time limits, and what an error means.

redis-py makes the connections (URL, TLS, password) and hiredis packs and parses; redis-py's own client is
left out, because it sends a command again after a failure, and a commit must never be sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoScriptError,
    RedisError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as Unanswered

from service.sessions.stores.protocol import StoreAway, StoreError, StoreFault
from service.sessions.stores.redis_line import Answer, Line

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
        self._lines: dict[bool, Line] = {}
        self._closed = False
        self._ordinary = asyncio.Semaphore(calls)

    async def run(self, script: Script, key: str, *args: Arg, urgent: bool = False) -> Any:
        """One script in one round trip."""
        try:
            return await self.call("EVALSHA", script.sha, 1, key, *args, urgent=urgent)
        except NoScriptError:  # the server was restarted or flushed its scripts; nothing was run
            return await self.call("EVAL", script.text, 1, key, *args, urgent=urgent)

    def send(self, script: Script, key: str, args: Sequence[Arg], answer: Answer) -> None:
        """The same, urgent, and without a task: `answer` gets the reply or a StoreError, once, later."""

        def answered(reply: Any, error: Exception | None) -> None:
            if isinstance(error, NoScriptError):
                whole = hiredis.pack_command(("EVAL", script.text, 1, key, *args))  # type: ignore[arg-type]
                self._ask(True, whole, partial(self._translate, answer))
            elif error is None:
                answer(reply, None)
            else:
                self._translate(answer, None, error)

        packed = hiredis.pack_command(("EVALSHA", script.sha, 1, key, *args))  # type: ignore[arg-type]
        self._ask(True, packed, answered)

    async def call(self, *command: Arg, urgent: bool = False) -> Any:
        """One command. Raises StoreAway, StoreFault, or NoScriptError."""
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub forgets the ellipsis
        if urgent:
            return await self._reply(urgent, packed)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ordinary.acquire()
        except TimeoutError as error:
            raise self._meaning(error) from None
        try:
            return await self._reply(urgent, packed)
        finally:
            self._ordinary.release()

    async def _reply(self, urgent: bool, packed: bytes) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answered(reply: Any, error: Exception | None) -> None:
            if future.done():  # cancelled: nobody wants this reply
                return
            if error is None:
                future.set_result(reply)
            else:
                future.set_exception(error)

        self._ask(urgent, packed, answered)
        try:
            return await future
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise self._meaning(error) from error

    def _translate(self, answer: Answer, reply: Any, error: Exception | None) -> None:
        answer(reply, None if error is None else self._meaning(error))

    def _ask(self, urgent: bool, packed: bytes, answer: Answer) -> None:
        line = self._lines.get(urgent)
        if line is None or line.broken:
            if self._closed:
                closed = Disconnected("the store is closed")
                asyncio.get_running_loop().call_soon(answer, None, closed)
                return
            line = Line(self._pool.make_connection(), self._timeout_s)  # type: ignore[no-untyped-call]
            self._lines[urgent] = line
        line.ask(packed, answer)

    def _meaning(self, error: Exception) -> StoreError:
        code = getattr(error, "status_code", None) or ""
        text = str(error)
        first = text.split(" ", 1)[0]
        if not code and _CODE.match(first):
            code = first
        if isinstance(error, (AuthenticationError, AuthorizationError)):
            return StoreFault(f"{self.name}: {_FAULTS.get(code, _FAULTS['WRONGPASS'])} ({text})")
        if isinstance(error, (Unanswered, TimeoutError)):
            return StoreAway(f"{self.name} did not answer within {self._timeout_s:g} s")
        if isinstance(error, (Disconnected, InvalidResponse, OSError)) or code in _PASSING:
            return StoreAway(f"{self.name}: {text}")
        return StoreFault(f"{self.name}: {_FAULTS.get(code, 'it refuses')} ({text})")

    async def close(self) -> None:
        self._closed = True
        for line in self._lines.values():
            await line.close()
