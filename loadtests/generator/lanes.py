"""HTTP connections for an open loop: httpx without its pool.

The pool looks at every connection and every waiting request at each turn; with some hundred in flight the
sender would measure that. Here each connection is a transport of its own, and a free one is taken at once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass

import httpx

#: Connections of one process; what is due beyond waits, and its time runs
MOST_CONNECTIONS = 1024
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """code: empty for a success; else the problem's code, or what kept a reply from coming."""

    status: int
    body: bytes
    sent: float
    ended: float
    code: str = ""


class Lanes:
    """Connections to one address, made as they are wanted."""

    def __init__(self, url: str, key: str = "", most: int = MOST_CONNECTIONS) -> None:
        self.url = url
        self._headers = [("host", httpx.URL(url).netloc.decode()), ("content-type", "application/json")]
        self._headers += [("authorization", f"Bearer {key}")] if key else []
        self._tls = ssl.create_default_context()
        self._free: list[httpx.AsyncHTTPTransport] = []
        self._all: list[httpx.AsyncHTTPTransport] = []
        self._waiting: deque[asyncio.Future[httpx.AsyncHTTPTransport]] = deque()
        self._most = most
        self.held = 0

    def address(self, path: str) -> httpx.URL:
        """Made once for each session: httpx takes some time to read one."""
        return httpx.URL(self.url + path)

    async def send(self, method: str, address: httpx.URL, body: bytes = b"") -> Answer:
        """Whatever happens, an answer."""
        clock = asyncio.get_running_loop().time
        lane = await self._take()
        sent = clock()
        try:
            headers = [*self._headers, ("content-length", str(len(body)))]
            request = httpx.Request(method, address, headers=headers, content=body)
            async with asyncio.timeout(TIMEOUT_S):
                response = await lane.handle_async_request(request)
                content = await response.aread()
                await response.aclose()
        except TimeoutError:
            return Answer(0, b"", sent, clock(), "timeout")
        except httpx.TransportError:
            return Answer(0, b"", sent, clock(), "connection")
        finally:
            self._give_back(lane)
        status = response.status_code
        return Answer(status, content, sent, clock(), "" if status < 400 else _code(response, content))

    async def close(self) -> None:
        for lane in self._all:
            await lane.aclose()

    async def _take(self) -> httpx.AsyncHTTPTransport:
        if self._free:
            return self._free.pop()
        if len(self._all) < self._most:
            one = httpx.Limits(max_connections=1, keepalive_expiry=None)
            self._all.append(httpx.AsyncHTTPTransport(verify=self._tls, limits=one, trust_env=False))
            return self._all[-1]
        self.held += 1
        turn: asyncio.Future[httpx.AsyncHTTPTransport] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(turn.result())
            raise

    def _give_back(self, lane: httpx.AsyncHTTPTransport) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(lane)
                return
        self._free.append(lane)


def _code(response: httpx.Response, content: bytes) -> str:
    """Of a problem; HAProxy's own answers have none."""
    if "problem+json" in response.headers.get("content-type", ""):
        try:
            return str(httpx.Response(200, content=content).json()["code"])
        except (ValueError, KeyError, TypeError):
            pass
    return f"http_{response.status_code}"
