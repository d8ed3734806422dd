"""Mixed requests to a running service of several replicas, and how many of each there were.

What it counts is what a metric must say: no more and no less.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import connect

STEPS = "/v1/models/{model}/sessions/{session_id}/steps"
STREAM = "/v1/models/{model}/sessions/{session_id}/stream"
SESSIONS = "/v1/models/{model}/sessions"
SESSION = "/v1/models/{model}/sessions/{session_id}"
BULK = "/v1/models/{model}/steps"
PREDICT = "/v1/models/{model}/predict"
#: Codes of what is right again by itself
PASSING = ("moving", "unavailable")
ROW = [0.5, -0.5]
ROUTES = (STEPS, STREAM, SESSIONS, SESSION, BULK, PREDICT, "none")


class Traffic:
    """Of one model of two inputs. doors: addresses that lead to it."""

    def __init__(self, model: str, doors: Sequence[str]) -> None:
        self.model, self.doors = model, list(doors)
        self.answers: Counter[tuple[str, int]] = Counter()  # by route and status
        self.items: Counter[int] = Counter()  # of bulk requests, by status
        self.codes: Counter[str] = Counter()  # of problems told
        self.steps = 0  # committed
        self.again = 0  # answered from the replay window
        self.predicted = 0
        self.streams = 0
        self._turn = itertools.cycle(range(len(self.doors)))
        self._http = httpx.AsyncClient(timeout=60, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    def door(self) -> str:
        """Each in its turn."""
        return self.doors[next(self._turn)]

    async def ask(self, route: str, method: str, path: str, body: Any = None, door: str = "") -> Any:
        """The JSON of the answer, which is counted."""
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        url = f"{door or self.door()}/v1/models/{self.model}{path}"
        reply = await self._http.request(method, url, content=content, headers=headers)
        self.answers[route, reply.status_code] += 1
        found = reply.json() if reply.content else {}
        if reply.status_code >= 400:
            self.codes[found["code"]] += 1
        return found

    async def step(self, session: str, step: int, count: int = 1, door: str = "") -> Any:
        body = {"step": step, "inputs": [ROW] * count}
        reply = await self.ask(STEPS, "POST", f"/sessions/{session}/steps", body, door)
        self._took(reply)
        return reply

    def _took(self, reply: Any) -> None:
        if "next_step" in reply:
            count = reply["next_step"] - reply["step"]
            self.again += count * reply["replayed"]
            self.steps += count * (not reply["replayed"])

    async def singles(self, name: str, sessions: int, steps: int) -> None:
        """Sessions that are stepped through one door after the other: they move, or are passed on."""

        async def one(session: str) -> None:
            for step in range(steps):
                await self.settled(session, step)
            await self.step(session, steps - 1)  # a retry
            await self.step(session, steps + 7)  # a gap

        await asyncio.gather(*(one(f"{name}-{n}") for n in range(sessions)))

    async def settled(self, session: str, step: int) -> Any:
        """A step, again as long as the session moves; every answer is counted."""
        while True:
            reply = await self.step(session, step)
            if "next_step" in reply:
                return reply
            assert reply["code"] in PASSING, reply
            await asyncio.sleep(0.05)

    async def bulk(self, name: str, bodies: int, items: int) -> None:
        """Bodies through different doors, so that most items are for sessions of other replicas; one item
        has a gap, one no session, one is not valid."""
        for n in range(bodies):
            requests: list[Any] = [
                {"session_id": f"{name}-{k}", "step": n, "inputs": [ROW]} for k in range(items)
            ]
            requests.append({"session_id": f"{name}-0", "step": 1000, "inputs": [ROW]})
            requests.append({"session_id": f"{name}-absent", "step": 5, "inputs": [ROW]})
            requests.append({"session_id": f"{name}-0", "step": 1, "inputs": "no"})
            reply = await self.ask(BULK, "POST", "/steps", {"requests": requests})
            for result in reply["results"]:
                error = result.get("error")
                self.items[200 if error is None else error["status"]] += 1
                if error is not None:
                    self.codes[error["code"]] += 1
                self._took(result)
            done = [result for result in reply["results"][:items] if "error" not in result]
            assert len(done) == items, reply

    async def stream(self, session: str, messages: int) -> None:
        """Steps, then a message that is no JSON and one with a gap, then steps through another door."""
        for first in (0, messages):
            url = f"{self.door()}/v1/models/{self.model}/sessions/{session}/stream".replace("http", "ws", 1)
            async with connect(url, proxy=None) as socket_:
                self.streams += 1
                for step in range(first, first + messages):
                    await self._say(socket_, json.dumps({"step": step, "inputs": [ROW]}))
                await self._say(socket_, "{")
                await self._say(socket_, json.dumps({"step": 1000, "inputs": [ROW]}))

    async def _say(self, stream: Any, text: str) -> None:
        await stream.send(text)
        reply = json.loads(await stream.recv())
        error = reply.get("error")
        self.answers[STREAM, 200 if error is None else error["status"]] += 1
        if error is not None:
            self.codes[error["code"]] += 1
        self._took(reply)

    async def others(self, name: str, times: int) -> None:
        """What ends in an error, and what is not stepped."""
        for n in range(times):
            session = f"{name}-{n}"
            await self.ask(SESSIONS, "POST", "/sessions", {"session_id": session})
            await self.ask(SESSIONS, "POST", "/sessions", {"session_id": session})  # it is open already
            await self.ask(SESSION, "GET", f"/sessions/{session}")
            await self.ask(STEPS, "POST", f"/sessions/{name}-absent/steps", {"step": 3, "inputs": [ROW]})
            await self.ask(STEPS, "POST", f"/sessions/{session}/steps", b"{")
            await self.ask(STEPS, "POST", f"/sessions/{session}/steps", {"step": 0, "inputs": [[1.0]]})
            await self.ask(STEPS, "DELETE", f"/sessions/{session}/steps")
            await self.ask("none", "GET", "/nothing/here")
            reply = await self.ask(PREDICT, "POST", "/predict", {"inputs": [ROW] * 5, "horizon": 2})
            self.predicted += len(reply["outputs"])
            self.hang_up(session)
            await self.ended(session)

    async def ended(self, session: str) -> None:
        """A session's end, asked for again as long as the session moves; every answer is counted."""
        while True:
            reply = await self.ask(SESSION, "DELETE", f"/sessions/{session}")
            if reply.get("code") not in PASSING:
                return
            await asyncio.sleep(0.05)

    def hang_up(self, session: str) -> None:
        """At a replica's own port: a client that leaves before its body is whole."""
        where = urlsplit(self.doors[-1])
        head = f"POST /v1/models/{self.model}/sessions/{session}/steps HTTP/1.1\r\nhost: {where.netloc}\r\n"
        with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
            connection.sendall(head.encode() + b"content-length: 100\r\n\r\n{")
        self.answers[STEPS, 499] += 1
