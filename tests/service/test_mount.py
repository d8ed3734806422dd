"""Requests that reach a replica of another model: a front door that is behind the times sends them there."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.api.access import EVERYBODY
from service.api.messages import Intake, Request, Response
from service.api.peers import PeerAway, Peers
from service.asgi import Receive, Scope, Send
from service.errors import NotFound
from service.listener import Listener, bind, url
from service.mount import Mount
from service.settings import Settings


async def asked(path: str, kind: str = "http", prefix: str = "/v1/models/ett", **more: Any) -> list[Any]:
    """What is sent back, and the path that the application saw, if it was asked."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])

    async def send(message: Any) -> None:
        seen.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await Mount(app, prefix)({"type": kind, "path": path, "method": "POST", **more}, receive, send)
    return seen


@pytest.mark.parametrize("path", ["/v1/models/ett", "/v1/models/ett/predict", "/predict", ""])
async def test_a_request_for_the_model_has_its_whole_path(path: str) -> None:
    whole = path if path.startswith("/v1") else "/v1/models/ett" + path
    assert await asked(path, root_path="/v1/models/ett") == [whole]


@pytest.mark.parametrize("path", ["/v1/models/other/sessions/a/steps", "/v1/models/ett2/predict"])
async def test_a_request_for_another_model_is_to_be_tried_again(path: str) -> None:
    start, body = await asked(path)
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")
    problem = json.loads(body["body"])
    assert (problem["code"], problem["retry_after_s"]) == ("unavailable", 1)


async def test_so_is_a_stream() -> None:
    path = "/v1/models/other/sessions/a/stream"
    (close,) = await asked(path, "websocket")
    assert close == {"type": "websocket.close", "code": 1013}
    start, _ = await asked(path, "websocket", extensions={"websocket.http.response": {}})
    assert start["status"] == 503


async def test_the_root_is_mounted_nowhere() -> None:
    assert await asked("/v1/models/ett/predict", prefix="") == ["/v1/models/ett/predict"]


async def test_a_peer_whose_address_another_model_has_is_away_and_has_done_nothing() -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await Response.of(NotFound("there is no model here"), 404).send(send)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    socket = bind("127.0.0.1", [0])
    listener, peers = Listener(other, socket, Settings()), Peers("ett", lambda: "secret")
    listener.open()
    try:
        scope = {"path": "/v1/models/ett/sessions/a/steps", "method": "POST"}
        request = Request(scope, receive, Intake(1, 1000, 1000, 1.0), "ett", "a", {})
        request.of(EVERYBODY)
        with pytest.raises(PeerAway, match="another model") as raised:
            await asyncio.wait_for(peers.pass_on(url(socket, "127.0.0.1"), request), 10)
        assert not raised.value.sent
    finally:
        await peers.close()
        await listener.close()
