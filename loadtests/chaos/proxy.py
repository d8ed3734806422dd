"""A bad network: HTTP from the clients to the doors, cut, held up, doubled and out of order.

A step request that went by is remembered, and sent again later as it was. Nobody waits for that reply, but it
is kept: it, too, must be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

LIMIT = 4 * 2**20
ANSWER_S = 30.0
AWAY = json.dumps(
    {"status": 503, "code": "unavailable", "title": "no door answers", "retry_after_s": 0}
).encode()


@dataclass(frozen=True, slots=True)
class Odds:
    """Of each request: how likely what is."""

    cut_before: float = 0.01  # the request does not arrive
    cut_behind: float = 0.01  # it does, and there is no reply
    cut_within: float = 0.01  # there is half a reply
    late: float = 0.03  # held up, so that others overtake it
    twice: float = 0.05  # sent again some time later


@dataclass(frozen=True, slots=True)
class Stray:
    """The reply to a request that was sent again."""

    request: bytes
    status: int
    body: bytes


class _Cut(Exception):
    """The connection to the client ends here."""


class Proxy:
    """Listens on loopback. doors: addresses that lead to the service; one of them is taken by chance."""

    def __init__(self, doors: Callable[[], Sequence[str]], odds: Odds, rng: random.Random) -> None:
        self._doors, self._odds, self._rng = doors, odds, rng
        self._server: asyncio.Server | None = None
        self._again: set[asyncio.Task[None]] = set()
        self.seen: Counter[str] = Counter()
        self.strays: deque[Stray] = deque(maxlen=100_000)
        self.calm = False

    async def start(self) -> str:
        """Its address."""
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=LIMIT)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        for task in self._again:
            task.cancel()
        await asyncio.gather(*self._again, return_exceptions=True)
        if self._server:
            self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled is a way to end like the others: nobody waits for this task, and asyncio would report it.
        with contextlib.suppress(
            _Cut, OSError, EOFError, asyncio.LimitOverrunError, ValueError, asyncio.CancelledError
        ):
            while True:
                request = await _message(reader)
                self.seen["requests"] += 1
                await self._carry(request, writer)
        writer.close()

    def _happens(self, what: str, odds: float) -> bool:
        happens = not self.calm and self._rng.random() < odds
        self.seen[what] += happens
        return happens

    async def _carry(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        odds = self._odds
        is_step = request.startswith(b"POST ") and request.partition(b" HTTP/")[0].endswith(b"/steps")
        if self._happens("cut before the request", odds.cut_before):
            raise _Cut
        if self._happens("held up", odds.late):
            await asyncio.sleep(self._rng.uniform(0.05, 2.0))
        if is_step and self._happens("sent again", odds.twice):
            task = asyncio.create_task(self._send_again(request, self._rng.expovariate(0.5)))
            self._again.add(task)
            task.add_done_callback(self._again.discard)
        if self._happens("cut behind the request", odds.cut_behind):
            await self._ask(request, wait=False)
            raise _Cut
        reply = await self._ask(request)
        if self._happens("cut within the reply", odds.cut_within):
            writer.write(reply[: len(reply) // 2])
            await writer.drain()
            raise _Cut
        writer.write(reply)
        await writer.drain()

    async def _ask(self, request: bytes, wait: bool = True) -> bytes:
        """The reply of a door. One that can't be reached has not got the request, so another may."""
        for door in self._rng.sample(doors := list(self._doors()), len(doors)):
            address = urlsplit(door)
            try:
                async with asyncio.timeout(1.0):
                    reader, writer = await asyncio.open_connection(
                        address.hostname, address.port, limit=LIMIT
                    )
            except OSError:  # TimeoutError is one
                continue
            try:
                async with asyncio.timeout(ANSWER_S):
                    writer.write(request)
                    await writer.drain()
                    return await _message(reader) if wait else b""
            except (OSError, EOFError, ValueError) as error:
                raise _Cut from error
            finally:
                writer.close()
        self.seen["no door"] += 1
        head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-length: {len(AWAY)}\r\n"
        return head.encode() + b"content-type: application/problem+json\r\n\r\n" + AWAY

    async def _send_again(self, request: bytes, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with contextlib.suppress(_Cut):
            head, _, body = (await self._ask(request)).partition(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status == HTTPStatus.OK:
                self.strays.append(Stray(request.partition(b"\r\n\r\n")[2], status, body))


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A whole request or response, head and body. Raises EOFError when it breaks off."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"transfer-encoding":
            raise ValueError("chunked bodies are not carried")
    return head + await reader.readexactly(length)
