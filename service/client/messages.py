"""What is sent and what comes back: bodies of steps, and replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

JSON = "application/json"
Rows = Any  #: T×I numbers, or I of one step: lists, or anything with `tolist` such as an array of numpy
Generate = Mapping[str, Any]  #: length, temperature, top_k, seed


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to steps `step` .. `next_step - 1`; what was not asked for is None.

    outputs: T×O, the prediction of the step after each. forecast: horizon×O. quantiles: rows of the forecast
    by level, such as "0.9", as far as the model sees at once. gates: T×layers×hidden by name.
    state: layers×hidden, h and c. replayed: the steps had been executed by an attempt whose reply was lost.
    extra: fields that this client does not know. attempts: how often the request was sent.
    """

    session_id: str
    step: int
    next_step: int
    outputs: list[list[float]] | None = None
    forecast: list[list[float]] | None = None
    quantiles: dict[str, list[list[float]]] | None = None
    generated: str | None = None
    gates: dict[str, list[list[list[float]]]] | None = None
    state: dict[str, list[list[float]]] | None = None
    replayed: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    attempts: int = 1

    def sent(self, attempts: int) -> Reply:
        """The same, of a message that was sent so many times."""
        return self if attempts == self.attempts else replace(self, attempts=attempts)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The reply to a whole sequence without a session."""

    outputs: list[list[float]]
    forecast: list[list[float]] | None = None
    quantiles: dict[str, list[list[float]]] | None = None
    generated: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Message:
    """A numbered request, as it is sent each time. steps: how many it has."""

    step: int
    steps: int
    text: str

    @property
    def end(self) -> int:
        return self.step + self.steps


def sequence(
    inputs: Rows | None, text: str | None, horizon: int | None, generate: Generate | None
) -> tuple[dict[str, Any], int]:
    """The part of a body that a prediction and a step have in common, and the number of its steps."""
    if (inputs is None) == (text is None):
        raise ValueError("a request has inputs, or a text, and not both")
    body: dict[str, Any] = {}
    if text is not None:
        body["text"], steps = text, len(text)
    else:
        body["inputs"] = rows = _rows(inputs)
        steps = len(rows)
    if horizon is not None:
        body["horizon"] = horizon
    if generate is not None:
        body["generate"] = dict(generate)
    return body, steps


def message(
    step: int,
    inputs: Rows | None,
    text: str | None,
    horizon: int | None,
    returns: Sequence[str] | None,
    generate: Generate | None,
    session_id: str | None = None,
) -> Message:
    """A numbered request. Written out at once: what the caller does to its arrays later does not matter."""
    body, steps = sequence(inputs, text, horizon, generate)
    head: dict[str, Any] = {} if session_id is None else {"session_id": session_id}
    head["step"] = step
    if returns is not None:
        body["return"] = list(returns)
    return Message(step, steps, dumps({**head, **body}))


def dumps(value: Any) -> str:
    """Compact JSON. A number that is not finite goes through: the service names its place."""
    return json.dumps(value, separators=(",", ":"), default=_listed)


def read_reply(value: Mapping[str, Any], session_id: str, sent: Message, attempts: int) -> Reply:
    """The reply to what was sent. Raises ValueError if it is not that."""
    reply = any_reply(value, attempts)
    if (reply.session_id, reply.step, reply.next_step) != (session_id, sent.step, sent.end):
        raise ValueError(
            f"a reply to steps {reply.step} to {reply.next_step - 1} of {reply.session_id}, not to"
            f" {sent.step} to {sent.end - 1} of {session_id}"
        )
    return reply


def any_reply(value: Mapping[str, Any], attempts: int) -> Reply:
    """Any step's reply. Raises ValueError."""
    step, next_step = value.get("step"), value.get("next_step")
    if not isinstance(value.get("session_id"), str) or not isinstance(step, int):
        raise ValueError("not a reply to a step")
    if not isinstance(next_step, int) or next_step <= step:
        raise ValueError("not a reply to a step")
    known, extra = _split(value, _REPLY)
    return Reply(**known, extra=extra, attempts=attempts)


def read_prediction(value: Mapping[str, Any], attempts: int) -> Prediction:
    """The reply to a prediction. Raises ValueError."""
    if not isinstance(value.get("outputs"), list):
        raise ValueError("not a prediction")
    known, extra = _split(value, _PREDICTION)
    return Prediction(**known, extra=extra, attempts=attempts)


_REPLY = {each.name for each in fields(Reply)} - {"extra", "attempts"}
_PREDICTION = {each.name for each in fields(Prediction)} - {"extra", "attempts"}


def _split(value: Mapping[str, Any], names: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    known = {name: each for name, each in value.items() if name in names}
    return known, {name: each for name, each in value.items() if name not in names}


def _rows(inputs: Rows) -> list[Any]:
    rows = inputs.tolist() if hasattr(inputs, "tolist") else list(inputs)
    one = bool(rows) and not hasattr(rows[0], "__len__")  # a single step's numbers, without a row around
    return [rows] if one else rows


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is not a number")
