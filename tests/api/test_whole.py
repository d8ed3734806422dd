"""A response is one write: its head, its body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.messages import Response
from service.asgi import Receive, Scope, Send

WRITES: list[bytes] = []


class _Counted:
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        WRITES.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Protocol(HttpToolsProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Counted(transport))  # type: ignore[arg-type]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    status = int(scope["path"][1:])
    await Response(status, b"" if status == 204 else b"body " * 3).send(send, head=scope["method"] == "HEAD")


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    # As the service has it
    settings: Any = {"lifespan": "off", "log_config": None, "loop": "none", "access_log": False}
    config = uvicorn.Config(app, port=0, http=_Protocol, **settings)
    server = uvicorn.Server(config)
    server.config.load()
    WRITES.clear()
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


async def exchange(port: int, text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    reply = b""
    while reply.count(b"HTTP/1.1 ") < text.count(b"HTTP/1.1") or len(reply) < sum(map(len, WRITES)):
        data = await asyncio.wait_for(reader.read(4096), 10)
        if not data:
            break
        reply += data
    writer.close()
    return reply


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("GET", 404), ("GET", 204), ("HEAD", 200)])
async def test_head_and_body_are_one_write(method: str, status: int) -> None:
    async with serving() as port:
        reply = await exchange(port, f"{method} /{status} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        assert len(WRITES) == 1
        assert reply == WRITES[0]
        assert reply.startswith(f"HTTP/1.1 {status} ".encode())
        has_body = method == "GET" and status != 204
        assert reply.endswith(b"body body body " if has_body else b"\r\n\r\n")


async def test_requests_sent_ahead_are_answered_in_order_with_a_write_each() -> None:
    async with serving() as port:
        many = b"".join(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % status for status in (200, 404, 409))
        reply = await exchange(port, many)
        assert [part[:12] for part in WRITES] == [b"HTTP/1.1 200", b"HTTP/1.1 404", b"HTTP/1.1 409"]
        assert reply == b"".join(WRITES)


async def test_a_connection_that_ends_after_the_reply_gets_all_of_it() -> None:
    async with serving() as port:
        reply = await exchange(port, b"GET /200 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert len(WRITES) == 1
        assert reply.endswith(b"body body body ")


async def test_another_server_gets_both_messages() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Response(200, b"{}").send(send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
