"""The gate of a replica's own port, with real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect

from service import gate
from service.asgi import Receive, Scope, Send
from service.gate import GateProtocol
from service.listener import Listener, bind
from service.settings import Settings

POST = b"POST /v1/models/m/sessions/a/steps HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
GET = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


class Holding:
    """An application that answers a POST when it is told to, and all else at once."""

    def __init__(self) -> None:
        self.here = 0
        self.changed = asyncio.Condition()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        if scope["method"] == "POST":
            message = await receive()
            while message.get("more_body"):
                message = await receive()
            async with self.changed:
                self.here += 1
                self.changed.notify_all()
            await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def holds(self, requests: int) -> None:
        """Until so many have come."""
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: self.here >= requests), 10)


class Client:
    """One connection, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next response."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        line, *fields = head.decode().strip().split("\r\n")
        headers = dict(field.lower().split(": ", 1) for field in fields)
        return int(line.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))


class Place:
    """A listener around a `Holding`, and clients of it."""

    def __init__(self, **settings: float) -> None:
        self.app, self.refused = Holding(), Counter[str]()
        socket = bind("127.0.0.1", [0])
        self.port = socket.getsockname()[1]
        self.listener = Listener(self.app, socket, Settings(**settings), self.refused)  # type: ignore[arg-type]
        self.clients: list[Client] = []

    async def client(self) -> Client:
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.clients[-1]

    async def fill(self, requests: int) -> list[Client]:
        """Clients with a request each that is not answered yet."""
        clients = [await self.client() for _ in range(requests)]
        for client in clients:
            client.send(POST)
        await self.app.holds(requests)
        return clients

    @property
    def connections(self) -> list[GateProtocol]:
        return [c for c in self.listener._server.server_state.connections if isinstance(c, GateProtocol)]


@asynccontextmanager
async def place(**settings: float) -> AsyncIterator[Place]:
    here = Place(**settings)
    here.listener.open()
    try:
        yield here
    finally:
        here.app.go_on.set()
        for client in here.clients:
            client.writer.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()
        await here.listener.close()


async def test_a_request_too_much_is_told_so_at_once_and_taken_later() -> None:
    async with place(max_requests=2) as here:
        first, second = await here.fill(2)
        third = await here.client()
        for _ in range(2):
            third.send(POST)
            status, headers, body = await third.answer()
            assert (status, headers["retry-after"]) == (429, "1")
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["code"] == "no_capacity"
            assert "date" in headers
        assert here.refused == {"requests": 2}
        assert here.app.here == 2
        here.app.go_on.set()
        assert [(await c.answer())[0] for c in (first, second)] == [200, 200]
        for client in (third, first):  # the same connections go on
            client.send(POST)
            assert (await client.answer())[0] == 200


async def test_many_refusals_are_held_back_and_each_is_answered_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "AT_ONCE", 1)
    monkeypatch.setattr(gate, "HOLD_S", 0.3)
    async with place(max_requests=2) as here:
        running = await here.fill(2)
        clients = [await here.client() for _ in range(4)]
        for client in clients:
            client.send(POST)
            await client.writer.drain()
        first = {asyncio.ensure_future(client.answer()): client for client in clients}
        done, held = await asyncio.wait(first, timeout=0.1)
        assert len(done) == 1
        assert len(held) == 3
        early = first[next(iter(held))]
        early.send(GET)  # does not wait for its refusal
        assert [(await answer)[0] for answer in first] == [429] * 4
        assert (await early.answer())[0] == 200
        here.app.go_on.set()
        assert [(await client.answer())[0] for client in running] == [200, 200]
        assert here.refused == {"requests": 4}


async def test_a_refusal_that_is_held_back_is_written_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "AT_ONCE", 0)
    monkeypatch.setattr(gate, "HOLD_S", 60.0)
    async with place(max_requests=2) as here:
        await here.fill(2)
        client = await here.client()
        client.send(POST)
        while not here.refused:  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.01)
        here.app.go_on.set()
        closing = asyncio.ensure_future(here.listener.close())
        assert (await client.answer())[0] == 429
        await closing


async def test_what_is_no_request_for_work_is_let_in() -> None:
    async with place(max_requests=2) as here:
        await here.fill(2)
        client = await here.client()
        client.send(GET)
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    "pieces",
    [
        (POST[:9], POST[9:]),
        (POST[:-1], POST[-1:]),
        (POST.replace(b"content-length: 2", b"transfer-encoding: chunked")[:-2] + b"2\r\n{}\r\n0\r\n\r\n",),
        (POST.replace(b"host: x", b"connection: close"),),
        (POST.replace(b"/steps", b"/handover"),),
    ],
    ids=["half a head", "half a body", "chunks", "the last one", "between replicas"],
)
async def test_what_is_not_plainly_one_whole_request_goes_its_usual_way(pieces: tuple[bytes, ...]) -> None:
    async with place(max_requests=2) as here:
        await here.fill(2)
        client = await here.client()
        for piece in pieces:
            client.send(piece)
            await client.writer.drain()
            await asyncio.sleep(0.02)  # so that it is read before the next
        await here.app.holds(3)
        here.app.go_on.set()
        assert (await client.answer())[0] == 200


async def test_a_stream_takes_no_requests_place() -> None:
    async with place(max_requests=2) as here:
        url = f"ws://127.0.0.1:{here.port}/stream"
        async with connect(url, proxy=None), connect(url, proxy=None), connect(url, proxy=None):
            assert here.listener.gate.streams == 3
            await here.fill(2)
            client = await here.client()
            client.send(POST)
            assert (await client.answer())[0] == 429
        here.app.go_on.set()
    assert here.listener.gate.streams == 0


async def test_a_connection_too_much_is_told_so_and_closed() -> None:
    async with place(max_connections=2) as here:
        for _ in range(2):
            (await here.client()).send(GET)
        third = await here.client()
        status, headers, body = await third.answer()
        assert (status, headers["connection"], json.loads(body)["retry_after_s"]) == (503, "close", 1)
        assert await third.reader.read() == b""
        assert here.refused == {"connections": 1}


async def test_a_request_that_does_not_come_loses_its_connection() -> None:
    async with place(request_timeout_s=30) as here:
        idle, half, body, waits = [await here.client() for _ in range(4)]
        half.send(POST[:20])
        body.send(POST[:-1])
        waits.send(POST)
        done = await here.client()
        done.send(GET)
        await done.answer()
        await here.app.holds(1)
        await asyncio.sleep(0.1)  # so that all of it is read; nothing tells when
        assert sum(connection._begun for connection in here.connections) == 4
        for now in (1000.0, 1029.0, 1031.0):
            for connection in here.connections:
                connection.end_if_stuck(now)
            if now < 1030.0:
                assert here.refused == {}
        assert await idle.reader.read() == b""
        for slow in (half, body):
            assert (await slow.answer())[0] == 408
            assert await slow.reader.read() == b""
        assert here.refused == {"slow": 2}
        here.app.go_on.set()
        for well in (waits, done):
            if well is done:
                done.send(GET)
            assert (await well.answer())[0] == 200


async def test_a_connection_that_rests_too_long_is_closed_and_one_that_works_is_not() -> None:
    clock = asyncio.get_running_loop().time
    async with place(max_requests=2) as here:
        resting, refused, *busy = [await here.client() for _ in range(4)]
        for client in busy:
            client.send(POST)
        await here.app.holds(2)
        kept_s = here.connections[0].timeout_keep_alive
        begun = clock()
        for client in (resting, refused):
            client.send(GET)
            assert (await client.answer())[0] == 200
        for connection in here.connections:
            connection.end_if_stuck(begun + kept_s - 1)
        for client in (resting, refused):
            client.send(GET)
            assert (await client.answer())[0] == 200
        answered = clock()
        await asyncio.sleep(1.1)
        refused.send(POST)  # what is refused is heard of all the same
        assert (await refused.answer())[0] == 429
        for connection in here.connections:
            connection.end_if_stuck(answered + kept_s + 1)
        assert await resting.reader.read() == b""
        refused.send(POST)
        assert (await refused.answer())[0] == 429
        here.app.go_on.set()
        assert [(await client.answer())[0] for client in busy] == [200, 200]
