from __future__ import annotations

import socket

import httpx
import pytest

from service import shortcut
from service.asgi import Message, Receive, Scope, Send
from service.listener import Listener, PortTaken, bind, url
from service.settings import Settings


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def goodbye(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"goodbye"})


async def test_it_answers_from_open_to_close() -> None:
    listening = bind("127.0.0.1", [0])
    address = url(listening, "127.0.0.1")
    listener = Listener(hello, listening, Settings())
    listener.open()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(address)).text == "hello"
        await listener.close()
        with pytest.raises(httpx.ConnectError):
            await client.get(address)


def test_the_first_free_port_is_taken() -> None:
    with bind("127.0.0.1", [0]) as taken, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        with bind("127.0.0.1", [taken.getsockname()[1], free]) as listening:
            assert listening.getsockname()[1] == free


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", [0]) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1: Address already in use"):
            bind("127.0.0.1", [port])
        with pytest.raises(PortTaken, match=f"each port of {port}-{port} on"):
            bind("127.0.0.1", [port, port])


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(PortTaken, match=r"host 'no\.such\.host\.invalid'"):
        bind("no.such.host.invalid", [0])


@pytest.mark.parametrize(("host", "shown"), [("example.org", "example.org"), ("::1", "[::1]")])
def test_a_url_is_for_clients(host: str, shown: str) -> None:
    with bind("127.0.0.1", [0]) as listening:
        assert url(listening, host) == f"http://{shown}:{listening.getsockname()[1]}"


async def test_the_shortcut_leaves_rays_paths_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut._Target, "app", None)
    monkeypatch.setattr(shortcut._Target, "loop", None)
    middleware = shortcut.Shortcut(goodbye)
    assert await _body(middleware, "/v1/models") == b"goodbye"  # nothing is served by this process yet
    shortcut.serve(hello)
    assert await _body(middleware, "/v1/models") == b"hello"
    assert await _body(middleware, "/-/healthz") == b"goodbye"


async def _body(app: shortcut.Shortcut, path: str) -> bytes:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
    body: bytes = sent[-1]["body"]
    return body
