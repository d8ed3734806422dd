"""A proxy before a real service that does to its clients what networks and proxies do.

Each request, and each stream's connection, takes the next fault of `plan`; with none left it goes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.api.serving import Served


class Fault(enum.Enum):
    """What becomes of one HTTP request."""

    CUT_BEFORE = enum.auto()  # the connection ends, and nothing was delivered
    CUT_AFTER = enum.auto()  # delivered; the connection ends without a reply
    CUT_WITHIN = enum.auto()  # delivered; the connection ends within the body of the reply
    SHORT = enum.auto()  # delivered; half the reply's body as if it were whole
    DELAYED = enum.auto()  # delivered; the reply comes late
    TWICE = enum.auto()  # delivered twice; the second reply is passed on
    SILENT_BEFORE = enum.auto()  # nothing is delivered, nothing comes, and the connection stays
    SILENT_AFTER = enum.auto()  # delivered; nothing comes, and the connection stays
    BAD_GATEWAY = enum.auto()  # 502 with a page of HTML; nothing was delivered
    BAD_GATEWAY_AFTER = enum.auto()  # the same, but it was delivered
    NO_SERVICE = enum.auto()  # 503 with Retry-After
    GATEWAY_TIMEOUT = enum.auto()  # 504 without a body; it was delivered
    A_PAGE = enum.auto()  # 200 with a page of HTML; nothing was delivered


class Break(enum.Enum):
    """How a stream's connection ends."""

    CUT = enum.auto()  # before the frame
    CUT_AFTER = enum.auto()  # behind the frame
    CUT_WITHIN = enum.auto()  # within the frame
    SILENT = enum.auto()  # from this frame on, nothing is passed on in this direction
    TWICE = enum.auto()  # the frame comes twice; it goes on
    CLOSE_1001 = 1001
    CLOSE_1011 = 1011
    CLOSE_1012 = 1012
    CLOSE_1013 = 1013
    REFUSED = enum.auto()  # 502 in place of the handshake


@dataclass(frozen=True)
class StreamFault:
    """A break at the `frame`-th frame, from 0, of the client or of the service."""

    kind: Break
    frame: int = 0
    of_client: bool = False


DELAY_S = 0.02
PAGE = b"<html><body>Bad gateway</body></html>"


def _whole(status: str, body: bytes = b"", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


MADE_UP = {
    Fault.BAD_GATEWAY: _whole("502 Bad Gateway", PAGE, "content-type: text/html\r\n"),
    Fault.BAD_GATEWAY_AFTER: _whole("502 Bad Gateway", PAGE, "content-type: text/html\r\n"),
    Fault.NO_SERVICE: _whole("503 Service Unavailable", headers="retry-after: 0\r\n"),
    Fault.GATEWAY_TIMEOUT: _whole("504 Gateway Timeout"),
    Fault.A_PAGE: _whole("200 OK", PAGE, "content-type: text/html\r\n"),
}


class Faulty:
    """The proxy, in a thread of its own. requests: first lines of what came."""

    def __init__(self, service: Served) -> None:
        self._service = service
        self.plan: deque[Fault | StreamFault | None] = deque()
        self.requests: list[str] = []
        self.port = 0
        self.down = False  # takes connections, and ends them at once
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._up = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._over.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not self.down and await self._request(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            await _end(writer)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request. Whether the connection goes on."""
        raw = await _message(reader)
        self.requests.append(raw.split(b"\r\n", 1)[0].decode())
        fault = self.plan.popleft() if self.plan else None
        if b"\r\nupgrade: websocket" in raw.lower():
            await self._stream(raw, fault if isinstance(fault, StreamFault) else None, reader, writer)
            return False
        if fault is Fault.CUT_BEFORE:
            return False
        if fault is Fault.SILENT_BEFORE:
            await reader.read(1)  # until the client gives up
            return False
        if fault in (Fault.BAD_GATEWAY, Fault.NO_SERVICE, Fault.A_PAGE):
            writer.write(MADE_UP[fault])
            return True
        answer = await self._deliver(raw)
        if fault is Fault.TWICE:
            answer = await self._deliver(raw)
        head, _, body = answer.partition(b"\r\n\r\n")
        match fault:
            case Fault.CUT_AFTER:
                return False
            case Fault.CUT_WITHIN:
                writer.write(answer[: len(answer) - (len(body) + 1) // 2 or -2])
                return False
            case Fault.SHORT if body:
                half = body[: len(body) // 2]
                writer.write(head.replace(b": %d\r" % len(body), b": %d\r" % len(half)) + b"\r\n\r\n" + half)
            case Fault.SILENT_AFTER:
                await reader.read(1)
                return False
            case Fault.BAD_GATEWAY_AFTER | Fault.GATEWAY_TIMEOUT:
                writer.write(MADE_UP[fault])
            case _:
                if fault is Fault.DELAYED:
                    await asyncio.sleep(DELAY_S)
                writer.write(answer)
        await writer.drain()
        return True

    async def _deliver(self, raw: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._service.host, self._service.port)
        try:
            writer.write(raw)
            return await _message(reader)
        finally:
            await _end(writer)

    async def _stream(
        self,
        raw: bytes,
        fault: StreamFault | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if fault is not None and fault.kind is Break.REFUSED:
            writer.write(MADE_UP[Fault.BAD_GATEWAY])
            return
        there, to_service = await asyncio.open_connection(self._service.host, self._service.port)
        try:
            to_service.write(raw)
            writer.write(await there.readuntil(b"\r\n\r\n"))
            ways = [
                asyncio.create_task(_relay(reader, to_service, fault if fault and fault.of_client else None)),
                asyncio.create_task(_relay(there, writer, fault if fault and not fault.of_client else None)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            await _end(to_service)


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: StreamFault | None
) -> None:
    """Passes frames on in one direction, until a break ends it."""
    number = 0
    while True:
        frame = await _frame(reader)
        hit = fault is not None and number == fault.frame
        number += 1
        if not hit or fault is None:
            writer.write(frame)
            continue
        match fault.kind:
            case Break.CUT:
                return
            case Break.CUT_AFTER:
                writer.write(frame)
                return
            case Break.CUT_WITHIN:
                writer.write(frame[: len(frame) // 2])
                return
            case Break.SILENT:
                await reader.read(-1)
                return
            case Break.TWICE:
                writer.write(frame + frame)
            case kind:
                body = struct.pack("!H", kind.value) + json.dumps({"next_step": 0}).encode()
                if fault.of_client:  # frames of clients are masked; with zeros it is the same bytes
                    writer.write(bytes([0x88, 0x80 | len(body), 0, 0, 0, 0]) + body)
                else:
                    writer.write(bytes([0x88, len(body)]) + body)
                await reader.read(-1)
                return


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """One frame of a WebSocket, as it is."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    more = b""
    if length >= 126:
        more = await reader.readexactly(2 if length == 126 else 8)
        length = int.from_bytes(more, "big")
    mask = 4 if head[1] & 0x80 else 0
    return head + more + await reader.readexactly(mask + length)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One request or response, whose body is as long as it says."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextmanager
def faulty(service: Served) -> Iterator[Faulty]:
    """The proxy before a service."""
    proxy = Faulty(service)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
