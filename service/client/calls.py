"""The calls over HTTP, as generators: what is sent, what is made of the answers, what is tried again."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from service.client.addresses import Addresses, Route
from service.client.effects import Call, Exchange, Response, Sleep, exchange
from service.client.errors import ClientError, Fault, SessionExists, SessionGone, SessionNotFound
from service.client.judging import judge, read_object
from service.client.messages import (
    JSON,
    Generate,
    Prediction,
    Reply,
    Rows,
    dumps,
    message,
    read_prediction,
    read_reply,
    sequence,
)
from service.client.retries import Retries, Tries

T = TypeVar("T")
Facts = dict[str, Any]
SNAPSHOT = "application/vnd.safetensors"


class Caller:
    """Sends requests until each has its answer. What all calls of one client share."""

    def __init__(
        self,
        door: str,
        retries: Retries,
        *,
        direct: bool,
        rest_s: float,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        """traceparent: asked once for each call and each stream."""
        self.retries, self._traceparent = retries, traceparent
        self.addresses = Addresses(door, direct=direct, rest_s=rest_s, clock=retries.clock)

    def call(
        self,
        method: str,
        path: str,
        read: Callable[[Response], T],
        body: bytes = b"",
        *,
        media: str = JSON,
        route: Route | None = None,
        tries: Tries | None = None,
    ) -> Call[T]:
        """One request, as often as it takes. read: makes the result of a response of success; a ValueError
        of it is a fault. Raises what is in `errors`."""
        tries = tries or self.retries.begin()
        route, headers = route or Route(self.addresses), self.headers(tries.request_id)
        while True:
            timeout_s = tries.attempt()
            url = route.pick() + path
            heard = yield from exchange(Exchange(method, url, body, media, timeout_s, headers))
            verdict = self._judge(heard, read, route)
            if isinstance(verdict, _Read):
                value: T = verdict.value
                return value
            if not route.at_door and strange(verdict):
                # Gone, stopping, or another process by now has its port: what counts is what the door says
                route.failed()
                tries.note(as_fault(verdict))
                continue
            if isinstance(verdict, ClientError):
                raise tries.sign(verdict)
            tries.note(verdict)
            yield Sleep(tries.delay())

    def headers(self, request_id: str) -> dict[str, str]:
        """By which the service's log and its traces know a call: the same for all of its attempts."""
        traceparent = None if self._traceparent is None else self._traceparent()
        return {"x-request-id": request_id, **({"traceparent": traceparent} if traceparent else {})}

    def _judge(
        self, heard: Response | Fault, read: Callable[[Response], Any], route: Route
    ) -> _Read | Fault | ClientError:
        if isinstance(heard, Fault):
            return heard
        route.learn(heard.headers)
        verdict = judge(heard)
        if verdict is not None:
            return verdict
        try:
            return _Read(read(heard))
        except (ValueError, RecursionError) as error:
            return Fault(f"the reply can't be read: {error}", executed=True, status=heard.status)


class _Read:
    """What was read of a response of success."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def strange(verdict: Fault | ClientError) -> bool:
    """Whether a direct address that answers this is not to be believed, or not to be waited for."""
    if isinstance(verdict, Fault):
        return verdict.status != 429  # the owner is full: it still is the owner
    return verdict.status in (401, 403, 404, 405) or not verdict.code


def as_fault(verdict: Fault | ClientError) -> Fault:
    if isinstance(verdict, Fault):
        return verdict
    return Fault(verdict.detail, executed=False, code=verdict.code, status=verdict.status)


class ModelCalls:
    """The calls to one model."""

    def __init__(self, caller: Caller, name: str) -> None:
        self.caller, self.name = caller, name
        self.path = f"/v1/models/{quote(name, safe='')}"

    def facts(self) -> Call[Facts]:
        return self.caller.call("GET", self.path, _object)

    def predict(
        self, inputs: Rows | None, text: str | None, horizon: int | None, generate: Generate | None
    ) -> Call[Prediction]:
        body, _ = sequence(inputs, text, horizon, generate)
        tries = self.caller.retries.begin()

        def read(response: Response) -> Prediction:
            return read_prediction(read_object(response.body), tries.attempts)

        return self.caller.call("POST", self.path + "/predict", read, dumps(body).encode(), tries=tries)

    def open(self, session_id: str | None, ttl_s: float | None, durability: str | None) -> Call[SessionCalls]:
        """Opens a session. The id is the client's in any case, so that this can be tried again."""
        asked = _without_none(session_id=session_id or _new_id(), ttl_s=ttl_s, durability=durability)
        facts = yield from self._made(
            self.path + "/sessions", asked, own=session_id is None, at_step=0, route=None
        )
        return self._session(facts)

    def session(self, session_id: str, next_step: int | None) -> Call[SessionCalls]:
        session = SessionCalls(self, session_id, next_step or 0)
        if next_step is None:
            session.next_step = (yield from session.facts())["next_step"]
        return session

    def fork(self, origin: SessionCalls, session_id: str | None, at_step: int | None) -> Call[SessionCalls]:
        asked = _without_none(session_id=session_id or _new_id(), at_step=at_step)
        wanted = origin.next_step if at_step is None else at_step
        facts = yield from self._made(
            origin.path + "/fork", asked, own=session_id is None, at_step=wanted, route=origin.route
        )
        return self._session(facts)

    def _made(
        self, path: str, asked: dict[str, Any], *, own: bool, at_step: int, route: Route | None
    ) -> Call[Facts]:
        """A new session's facts. own: its id was made here, for this: if there is such a session, an attempt
        made it whose reply was lost. With another id that is taken for so only if such an attempt there was,
        and the session is at the step where it began."""
        tries = self.caller.retries.begin()
        call = self.caller.call
        try:
            return (yield from call("POST", path, _facts, dumps(asked).encode(), route=route, tries=tries))
        except SessionExists as error:
            if not own and not tries.uncertain:
                raise
            taken = f"{self.path}/sessions/{asked['session_id']}"
            try:
                facts = yield from call("GET", taken, _facts, tries=tries)
            except (SessionNotFound, SessionGone):
                raise error from None
            if not own and facts["next_step"] != at_step:
                raise
            return facts

    def _session(self, facts: Facts) -> SessionCalls:
        return SessionCalls(self, facts["session_id"], facts["next_step"], facts.get("direct_url"))


class SessionCalls:
    """The calls to one session. next_step: the one whose reply is not here yet."""

    def __init__(self, model: ModelCalls, session_id: str, next_step: int, direct: object = "") -> None:
        self.model, self.id, self.next_step = model, session_id, next_step
        self.route = Route(model.caller.addresses, direct)
        self.path = f"{model.path}/sessions/{quote(session_id, safe='')}"
        self.ahead = 0  # messages of a stream that have no reply yet

    def step(
        self,
        inputs: Rows | None,
        text: str | None,
        horizon: int | None,
        returns: Sequence[str] | None,
        generate: Generate | None,
    ) -> Call[Reply]:
        if self.ahead:
            raise RuntimeError(f"a stream of session {self.id} waits for {self.ahead} replies")
        sent = message(self.next_step, inputs, text, horizon, returns, generate)
        tries = self.model.caller.retries.begin()

        def read(response: Response) -> Reply:
            return read_reply(read_object(response.body), self.id, sent, tries.attempts)

        reply = yield from self._call("POST", "/steps", read, sent.text.encode(), tries=tries)
        self.next_step = reply.next_step
        return reply

    def facts(self) -> Call[Facts]:
        facts = yield from self._call("GET", "", _facts)
        self._learn(facts)
        return facts

    def state(self) -> Call[bytes]:
        return self._call("GET", "/state", lambda response: response.body)

    def put_state(self, snapshot: bytes) -> Call[Facts]:
        facts = yield from self._call("PUT", "/state", _facts, snapshot, media=SNAPSHOT)
        return self._moved(facts)

    def rewind(self, step: int) -> Call[Facts]:
        """Rewinding to a step where the session is already changes nothing, so this can be tried again."""
        facts = yield from self._call("POST", "/rewind", _facts, dumps({"to_step": step}).encode())
        return self._moved(facts)

    def close(self) -> Call[None]:
        tries = self.model.caller.retries.begin()
        try:
            yield from self._call("DELETE", "", lambda response: None, tries=tries)
        except (SessionNotFound, SessionGone):
            if not tries.uncertain:
                raise

    def _call(
        self,
        method: str,
        path: str,
        read: Callable[[Response], T],
        body: bytes = b"",
        *,
        media: str = JSON,
        tries: Tries | None = None,
    ) -> Call[T]:
        call = self.model.caller.call
        return call(method, self.path + path, read, body, media=media, route=self.route, tries=tries)

    def _moved(self, facts: Facts) -> Facts:
        self.next_step = facts["next_step"]
        self._learn(facts)
        return facts

    def _learn(self, facts: Facts) -> None:
        self.route.direct = self.model.caller.addresses.usable(facts.get("direct_url"))


def _new_id() -> str:
    return "c-" + secrets.token_hex(12)


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _object(response: Response) -> Facts:
    return read_object(response.body)


def _facts(response: Response) -> Facts:
    facts: Mapping[str, Any] = read_object(response.body)
    if not isinstance(facts.get("session_id"), str) or not isinstance(facts.get("next_step"), int):
        raise ValueError("not a session's facts")
    return dict(facts)
