"""Steps over WebSockets, one of each session."""

from __future__ import annotations

import asyncio
import json

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from loadtests.generator.arrivals import Arrival
from loadtests.generator.clock import clock
from loadtests.generator.lanes import TIMEOUT_S
from loadtests.scenarios import inputs
from loadtests.scenarios.sessions import Session
from loadtests.scenarios.traffic import Traffic

#: Sockets that are opened at the same time
TOGETHER = 16


class Streams(Traffic):
    """A message is one step, or as many as the plan or the recorded arrival has."""

    async def prepare(self) -> None:
        await super().prepare()
        waiting = iter(list(self.pool.all.values()))

        async def some() -> None:
            for session in waiting:
                session.socket = await self._connect(session)

        await asyncio.gather(*(some() for _ in range(TOGETHER)))

    async def perform(self, arrival: Arrival, intended: float) -> None:
        session, known, steps = await self.pool.take(), False, arrival.steps or self.plan.steps
        try:
            known = await self._message(session, steps, intended)
        finally:
            if not known and session.socket is not None:
                session.socket.transport.abort()
                session.socket = None
            self.go_on_with(session, known)

    async def finish(self) -> None:
        await asyncio.gather(*(s.socket.close() for s in self.pool.all.values() if s.socket is not None))
        await super().finish()

    async def _message(self, session: Session, steps: int, intended: float) -> bool:
        rows = inputs.text(self.plan.inputs, session.number, session.next_step, steps)
        message = f'{{"step":{session.next_step},"inputs":{rows}}}'
        sent = clock()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if session.socket is None:  # a new one, for one that is gone
                    session.socket = await self._connect(session)
                await session.socket.send(message)
                code = self.take(session, steps, json.loads(await session.socket.recv()))
        except TimeoutError:
            code = "timeout"
        except (OSError, EOFError, WebSocketException):
            code = "connection"
        self.recorder.ended("message", intended, sent, clock(), steps, code)
        return self.goes_on(code, steps)

    async def _connect(self, session: Session) -> ClientConnection:
        url = self.plan.url.replace("http", "ws", 1) + f"{self._path}/sessions/{session.id}/stream"
        headers = {"authorization": f"Bearer {self.plan.key}"} if self.plan.key else None
        return await connect(url, compression=None, proxy=None, additional_headers=headers)
