"""What every scenario's sender has: sessions, connections, the checks of a reply, and what was counted."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.generator.arrivals import Arrival
from loadtests.generator.clock import clock
from loadtests.generator.lanes import Answer, Lanes
from loadtests.generator.recorder import NO_REPLY, WRONG, Recorder
from loadtests.scenarios import inputs
from loadtests.scenarios.sessions import Pool, Session

STEPS = "/v1/models/{model}/sessions/{session_id}/steps"
SESSIONS = "/v1/models/{model}/sessions"
SESSION = "/v1/models/{model}/sessions/{session_id}"
BULK = "/v1/models/{model}/steps"
PREDICT = "/v1/models/{model}/predict"
#: Sessions that one bulk request opens
OPENED_AT_ONCE = 500
#: Sessions of the first sender whose last outputs are compared with the reference
SAMPLED = 4
#: After these the service has executed nothing: the session goes on
REFUSED = frozenset({"no_capacity", "deadline_exceeded", "invalid_value", "too_large", "bad_request"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sender needs to know. part, parts: it is one of so many processes. sessions: of all together.

    steps: of a request. bulk: sessions that one request steps. life: requests of a session that is opened and
    ended again, `pause_s` apart. clean: ends its sessions at the end.
    """

    traffic: str
    url: str
    model: str
    inputs: int
    prefix: str
    key: str = ""
    seed: int = 0
    sessions: int = 256
    steps: int = 1
    bulk: int = 256
    life: int = 8
    pause_s: float = 0.02
    clean: bool = False
    part: int = 0
    parts: int = 1

    @property
    def mine(self) -> int:
        """Of the sessions, those of this part."""
        return len(range(self.part, self.sessions, self.parts))


class Traffic:
    """One sender's part of a scenario. `prepare`, then `perform` for each arrival, then `finish`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"{plan.seed}/{plan.part}/traffic")
        self.lanes = Lanes(plan.url, plan.key)
        self.pool = Pool(plan.prefix, plan.part, plan.parts, self.rng)
        self.recorder = Recorder(clock())
        self._path = f"/v1/models/{plan.model}"
        self._bulk_address = self.lanes.address(f"{self._path}/steps")
        self._idle = 0

    async def prepare(self) -> None:
        """Opens the sessions."""
        mine = [self.pool.new(self.plan.part == 0 and n < SAMPLED) for n in range(self.plan.mine)]
        await self._open_all(mine)
        for session in mine:
            self.pool.give_back(session)

    async def perform(self, arrival: Arrival, intended: float) -> None:
        raise NotImplementedError

    async def finish(self) -> None:
        """Ends what it opened, if the plan says so."""
        if self.plan.clean:
            ids = [s.id for s in self.pool.all.values() if s.opened]
            ids += [self._idle_id(n) for n in range(self._idle)]
            left = iter(ids)

            async def some() -> None:
                for each in left:
                    address = self.lanes.address(f"{self._path}/sessions/{each}")
                    answer = await self.send(SESSION, "DELETE", address)
                    self.recorder.tally["unknown closed" if answer.code else "closed"] += 1

            await asyncio.gather(*(some() for _ in range(16)))
        await self.lanes.close()

    async def open_idle(self, count: int) -> None:
        """Opens so many more, each with one step, that nobody uses."""
        ids = [self._idle_id(n) for n in range(self._idle, self._idle + count)]
        self._idle += count
        for first in range(0, count, OPENED_AT_ONCE):
            some = [Session(n, ids[n]) for n in range(first, min(count, first + OPENED_AT_ONCE))]
            await self._open_all(some)

    def samples(self) -> list[tuple[int, int, list[float]]]:
        """Number of a session, its last step, and the outputs after it."""
        return [(s.number, *s.last) for s in self.pool.all.values() if s.last is not None]

    async def _open_all(self, sessions: Sequence[Session]) -> None:
        for first in range(0, len(sessions), OPENED_AT_ONCE):
            await self.bulk(sessions[first : first + OPENED_AT_ONCE], "opening", clock())
        failed = self.recorder.errors()
        if failed:
            raise RuntimeError(f"the sessions could not be opened: {dict(failed)}")

    async def send(self, route: str, method: str, address: Any, body: bytes = b"") -> Answer:
        """One request, counted."""
        answer = await self.lanes.send(method, address, body)
        if answer.status:
            self.recorder.tally[f"http {route} {answer.status}"] += 1
        else:
            self.recorder.tally[f"unknown {route}"] += 1
        return answer

    async def step(self, session: Session, steps: int, kind: str, intended: float, extra: str = "") -> bool:
        """The session's next steps; recorded. extra: more fields. Whether the session can go on."""
        rows = inputs.text(self.plan.inputs, session.number, session.next_step, steps)
        body = f'{{"step":{session.next_step},"inputs":{rows}{extra}}}'.encode()
        if session.address is None:
            session.address = self.lanes.address(f"{self._path}/sessions/{session.id}/steps")
        answer = await self.send(STEPS, "POST", session.address, body)
        code = answer.code or self.take(session, steps, json.loads(answer.body))
        self.recorder.ended(kind, intended, answer.sent, answer.ended, steps, code)
        return self.goes_on(code, steps)

    async def bulk(self, sessions: Sequence[Session], kind: str, intended: float) -> list[Session]:
        """One step of each; recorded as one request, its errors as each. Those that can go on."""
        width = self.plan.inputs
        items = [
            f'{{"session_id":"{s.id}","step":{s.next_step}'
            f',"inputs":{inputs.text(width, s.number, s.next_step, 1)}}}'
            for s in sessions
        ]
        body = ('{"requests":[' + ",".join(items) + "]}").encode()
        answer = await self.send(BULK, "POST", self._bulk_address, body)
        if answer.code:
            self.recorder.ended(kind, intended, answer.sent, answer.ended, len(sessions), answer.code)
            return list(sessions) if self.goes_on(answer.code, len(sessions)) else []
        results = json.loads(answer.body)["results"]
        codes = [self.take(s, 1, result) for s, result in zip(sessions, results, strict=True)]
        failed = [code for code in codes if code]
        for code in failed:
            self.recorder.ended(kind, intended, answer.sent, answer.ended, 1, code)
        if not failed:
            self.recorder.ended(kind, intended, answer.sent, answer.ended, len(sessions))
        return [s for s, code in zip(sessions, codes, strict=True) if self.goes_on(code, 1)]

    def take(self, session: Session, steps: int, reply: dict[str, Any]) -> str:
        """Moves the session by a reply that is right; the code of one that is not."""
        if "error" in reply:
            return str(reply["error"].get("code", "error"))
        after = session.next_step + steps
        outputs = reply.get("outputs", ())
        if reply.get("next_step") != after or len(outputs) != steps or reply.get("replayed"):
            return WRONG
        self.recorder.tally["steps"] += steps
        self.recorder.tally["opened"] += not session.opened
        session.opened, session.next_step = True, after
        if session.sampled:
            session.last = (after - 1, outputs[-1])
        return ""

    def goes_on(self, code: str, steps: int) -> bool:
        """Whether it is known where the session is."""
        if not code:
            return True
        if code in REFUSED:
            return True
        if code in NO_REPLY or code not in ("step_conflict", "session_not_found"):
            self.recorder.tally["unknown"] += steps
        return False

    def go_on_with(self, session: Session, known: bool) -> None:
        """Gives the session back, or a new one in its place."""
        if not known:
            self.pool.forget(session)
            session = self.pool.new()
        self.pool.give_back(session)

    def _idle_id(self, number: int) -> str:
        return f"{self.plan.prefix}idle-{self.plan.part}-{number}"
