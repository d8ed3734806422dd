"""A call driven by hand: each effect is answered from a list, and the clock moves by what was slept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from service.client.calls import Caller, ModelCalls
from service.client.effects import Call, Effect, Response, Sleep
from service.client.retries import Retries

T = TypeVar("T")
DOOR, DIRECT = "http://door:8000", "http://replica:9000"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """effects: all that was asked for. slept: the seconds of each sleep."""

    def __init__(self, *, timeout_s: float | None = 60.0, random: float = 1.0, direct: bool = True) -> None:
        self.clock = Clock()
        retries = Retries(
            timeout_s=timeout_s,
            attempt_timeout_s=10,
            first_delay_s=0.5,
            max_delay_s=4,
            clock=self.clock,
            random=lambda: random,
        )
        self.model = ModelCalls(Caller(DOOR, retries, direct=direct, rest_s=5), "waves")
        self.effects: list[Effect] = []

    def run(self, call: Call[T], answers: Iterable[Any] = ()) -> T:
        """Answers in order to all but sleeps; a pair of seconds and an answer takes that long."""
        left = list(answers)
        try:
            effect = next(call)
            while True:
                self.effects.append(effect)
                if isinstance(effect, Sleep):
                    self.clock.now += effect.seconds
                    answer = None
                else:
                    answer = left.pop(0)
                    if isinstance(answer, tuple):
                        self.clock.now += answer[0]
                        answer = answer[1]
                effect = call.send(answer)
        except StopIteration as done:
            assert not left, f"not asked for: {left}"
            value: T = done.value
            return value

    @property
    def slept(self) -> list[float]:
        return [effect.seconds for effect in self.effects if isinstance(effect, Sleep)]

    def of(self, kind: type[T]) -> list[T]:
        """The effects of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]


def said(status: int, value: Any = None, **headers: str) -> Response:
    body = b"" if value is None else json.dumps(value).encode()
    return Response(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


def problem(status: int, code: str, **facts: Any) -> Response:
    value = {"status": status, "code": code, "detail": f"it is {code}", **facts}
    return said(status, value, content_type="application/problem+json")


def reply(step: int = 0, count: int = 1, session_id: str = "s", **more: Any) -> dict[str, Any]:
    about = {"session_id": session_id, "step": step, "next_step": step + count}
    return {**about, "outputs": [[1.0]] * count, "replayed": False, **more}


def facts(next_step: int = 0, session_id: str = "s", direct_url: str = "") -> dict[str, Any]:
    return {"session_id": session_id, "next_step": next_step, "direct_url": direct_url}
