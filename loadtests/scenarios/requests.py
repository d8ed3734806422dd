"""Scenarios over HTTP."""

from __future__ import annotations

import asyncio
import json

from loadtests.generator.arrivals import Arrival
from loadtests.generator.clock import clock
from loadtests.scenarios import inputs
from loadtests.scenarios.sessions import Session
from loadtests.scenarios.traffic import PREDICT, SESSION, SESSIONS, Traffic

#: Of 100 requests of `mixed`, how many are of which kind
MIX = {"step": 70, "chunk": 10, "forecast": 8, "bulk": 5, "facts": 5, "predict": 2}
MIXED_CHUNK, MIXED_BULK, MIXED_HORIZON, MIXED_PREDICT = 64, 32, 24, 48


class Steps(Traffic):
    """One request of one session: one step, or as many as the plan or the recorded arrival has."""

    kind = "step"

    async def perform(self, arrival: Arrival, intended: float) -> None:
        session, known = await self.pool.take(), False
        try:
            known = await self.step(session, arrival.steps or self.plan.steps, self.kind, intended)
        finally:
            self.go_on_with(session, known)


class Chunks(Steps):
    """The same with many steps a request."""

    kind = "chunk"


class Bulk(Traffic):
    """One request that steps many sessions once."""

    async def perform(self, arrival: Arrival, intended: float) -> None:
        await self.step_many(self.plan.bulk, "bulk", intended)

    async def step_many(self, count: int, kind: str, intended: float) -> None:
        sessions = [await self.pool.take() for _ in range(count)]
        known: list[Session] = []
        try:
            known = await self.bulk(sessions, kind, intended)
        finally:
            fine = {session.number for session in known}
            for session in sessions:
                self.go_on_with(session, session.number in fine)


class Mixed(Bulk):
    """Single steps, chunks, forecasts, bulk requests, facts and whole sequences, by chance."""

    async def perform(self, arrival: Arrival, intended: float) -> None:
        (kind,) = self.rng.choices(list(MIX), list(MIX.values()))
        if kind == "bulk":
            await self.step_many(MIXED_BULK, "bulk", intended)
        elif kind == "predict":
            await self._predict(intended)
        else:
            session, known = await self.pool.take(), False
            try:
                known = await self._one(session, kind, arrival.steps, intended)
            finally:
                self.go_on_with(session, known)

    async def _one(self, session: Session, kind: str, steps: int, intended: float) -> bool:
        if kind == "facts":
            address = self.lanes.address(f"{self._path}/sessions/{session.id}")
            answer = await self.send(SESSION, "GET", address)
            code = answer.code
            if not code and json.loads(answer.body)["next_step"] != session.next_step:
                code = "wrong_reply"
            self.recorder.ended(kind, intended, answer.sent, answer.ended, 0, code)
            return True
        extra = f',"horizon":{MIXED_HORIZON}' if kind == "forecast" else ""
        return await self.step(session, MIXED_CHUNK if kind == "chunk" else steps or 1, kind, intended, extra)

    async def _predict(self, intended: float) -> None:
        rows = inputs.text(self.plan.inputs, self.rng.randrange(inputs.ROWS), 0, MIXED_PREDICT)
        body = f'{{"inputs":{rows}}}'.encode()
        answer = await self.send(PREDICT, "POST", self.lanes.address(f"{self._path}/predict"), body)
        code = answer.code
        if not code and len(json.loads(answer.body)["outputs"]) != MIXED_PREDICT:
            code = "wrong_reply"
        self.recorder.ended("predict", intended, answer.sent, answer.ended, 0, code)


class Churn(Traffic):
    """An arrival is a session's whole life: opened, some steps, ended. Each of its requests has its intended
    time, `pause_s` behind the one before; if that one is late, the time runs on."""

    async def prepare(self) -> None:
        """No session stays open."""

    async def perform(self, arrival: Arrival, intended: float) -> None:
        session = self.pool.new()
        try:
            if await self._open(session, intended):
                due = await self._live(session, intended)
                await self._end(session, due)
        finally:
            self.pool.forget(session)

    async def _open(self, session: Session, intended: float) -> bool:
        body = f'{{"session_id":"{session.id}"}}'.encode()
        answer = await self.send(SESSIONS, "POST", self.lanes.address(f"{self._path}/sessions"), body)
        code = answer.code or ("" if json.loads(answer.body)["session_id"] == session.id else "wrong_reply")
        self.recorder.ended("open", intended, answer.sent, answer.ended, 0, code)
        if code:
            self.recorder.tally["unknown opened"] += code not in ("no_capacity",)
            return False
        self.recorder.tally["opened"] += 1
        session.opened = True
        return True

    async def _live(self, session: Session, intended: float) -> float:
        """When its end is due."""
        for _ in range(self.plan.life):
            intended += self.plan.pause_s
            self.recorder.due(intended)
            await asyncio.sleep(max(0.0, intended - clock()))
            await self.step(session, self.plan.steps, "step", intended)
        return intended + self.plan.pause_s

    async def _end(self, session: Session, intended: float) -> None:
        self.recorder.due(intended)
        await asyncio.sleep(max(0.0, intended - clock()))
        address = self.lanes.address(f"{self._path}/sessions/{session.id}")
        answer = await self.send(SESSION, "DELETE", address)
        code = answer.code or ("" if answer.status == 204 else "wrong_reply")
        self.recorder.ended("end", intended, answer.sent, answer.ended, 0, code)
        self.recorder.tally["unknown closed" if code else "closed"] += 1
