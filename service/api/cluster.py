"""The root application's view over all replicas: models, metrics, health, the API's description.

It asks the replicas on their own ports, all at once; a replica that does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx

from model.versions import order
from service.api.guard import ASKER
from service.api.problems import PROBLEM_TYPE, TABLE, problem_json
from service.api.targets import OWN, Target, host, scheme, targets_json
from service.asgi import Receive, Scope, Send
from service.asked import ASKED, Asked
from service.errors import CellstateError, MethodNotAllowed, NotFound, Unavailable
from service.sessions.counters import RequestCounters

JSON = "application/json"
HTML = "text/html; charset=utf-8"
#: The name of this process where replicas have theirs
DOOR = "door"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica of one model, and where it listens itself."""

    model: str
    replica: str
    url: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole HTTP response."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] | None = None
    code: str = ""  # of the problem that it tells


def refusal(error: CellstateError, headers: Mapping[str, str] | None = None) -> Reply:
    """The reply an error is."""
    retry = {"retry-after": str(error.facts["retry_after_s"])} if "retry_after_s" in error.facts else {}
    kind, all_ = TABLE[type(error)], {**retry, **(headers or {})}
    return Reply(kind.status, PROBLEM_TYPE, problem_json(error), all_, kind.code)


class Cluster:
    """ASGI callable.

    `replicas` lists those that live. `merge` makes one exposition of many, by replica. `describe` makes of
    the models' facts the OpenAPI document and the page that shows it; it may take its time, in a thread.
    `door`: the front door of this machine, which must lead to the models before they count as ready. `own`:
    the exposition of this process alone, made of `requests`, `ready` and `living`. `verify`: whom the
    replicas' certificates must be of.
    """

    def __init__(
        self,
        models: Sequence[str],
        replicas: Callable[[], Awaitable[Sequence[Replica]]],
        merge: Callable[[Mapping[str, str]], bytes],
        describe: Callable[[list[Facts]], tuple[bytes, bytes]],
        client: httpx.AsyncClient | None = None,
        timeout_s: float = 5.0,
        door: str = "",
        verify: ssl.SSLContext | bool = True,
        own: Callable[[], bytes] = bytes,
    ) -> None:
        self._door = door
        self._own = own
        self.requests = RequestCounters()
        self.ready = False  # when it was last looked
        self.living: dict[str, int] = dict.fromkeys(models, 0)  # replicas by model, likewise
        self._models = tuple(models)
        self._replicas = replicas
        self._merge = merge
        self._describe = describe
        self._described: tuple[list[object], tuple[bytes, bytes]] | None = None
        # The environment's proxies are for the world outside, never for the replicas.
        self._client = client or httpx.AsyncClient(timeout=timeout_s, trust_env=False, verify=verify)
        # Our own door is asked by the address of this machine, which its certificate need not name; what it
        # says is whether it is there, and it is sent nothing
        self._probe = client or httpx.AsyncClient(timeout=timeout_s, trust_env=False, verify=False)  # noqa: S501
        self._timeout_s = timeout_s
        self._routes: dict[str, Callable[[Scope], Awaitable[Reply]]] = {
            "/v1/models": self._list_models,
            "/metrics": self._metrics,
            "/metrics/targets": self._targets,
            OWN: self._metrics_own,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/openapi.json": self._openapi,
            "/docs": self._docs,
        }

    @property
    def paths(self) -> frozenset[str]:
        """Those that it answers."""
        return frozenset(self._routes)

    async def close(self) -> None:
        """Ends the connections to the replicas."""
        await self._client.aclose()
        await self._probe.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            self._count("none", HTTPStatus.NOT_FOUND, TABLE[NotFound].code, 0.0)
            await receive()
            await send({"type": "websocket.close", "code": 4404, "reason": "no such path"})
            return
        if scope["type"] != "http":
            return
        started, asked = time.perf_counter(), Asked(scope["headers"])
        ASKED.set(asked)
        reply = await self._answer(scope)
        route = scope["path"] if scope["path"] in self._routes else "none"
        self._count(route, reply.status, reply.code, time.perf_counter() - started)
        headers = {"content-type": reply.content_type, "content-length": str(len(reply.body))}
        headers |= reply.headers or {}
        if asked.named:
            headers["x-request-id"] = asked.id
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    def _count(self, route: str, status: int, code: str, seconds: float) -> None:
        self.requests.observe("", route, status, seconds)
        if code:
            self.requests.errors["", code] += 1

    async def _answer(self, scope: Scope) -> Reply:
        method, path = scope["method"], scope["path"]
        route = self._routes.get(path)
        if route is None:
            return self._unknown(path)
        if method not in ("GET", "HEAD"):
            return refusal(MethodNotAllowed(f"{path} takes GET, not {method}"), {"allow": "GET, HEAD"})
        try:
            return await route(scope)
        except CellstateError as error:
            return refusal(error)

    def _unknown(self, path: str) -> Reply:
        if path.startswith("/v1/models/"):
            model = path.removeprefix("/v1/models/").partition("/")[0]
            if model in self._models:  # then the front door has no replica of it, or the wrong one
                why = f"the front door leads to no replica of {model!r} now; nothing was executed"
                return refusal(Unavailable(why, retry_after_s=1))
            known = (
                f"; served here: {', '.join(self._models) or 'none'}" if ASKER.get().identity.trusted else ""
            )
            return refusal(NotFound(f"no model {model!r}{known}"))
        return refusal(NotFound(f"no such path: {path}"))

    async def _list_models(self, scope: Scope) -> Reply:
        return Reply(200, JSON, json.dumps({"models": await self._facts()}).encode())

    async def _facts(self) -> list[Facts]:
        """Every model's facts, by name. Raises Unavailable when a model has no replica that answers."""
        answers = await self._ask_all("/v1/models")
        entries: dict[str, Facts] = {}
        for answer in answers.values():
            for entry in answer.json()["models"]:
                known = entries.setdefault(entry["name"], entry)
                if known is not entry:
                    entries[entry["name"]] = _merged(known, entry)
        may_use = ASKER.get().identity.may_use
        missing = [name for name in self._models if name not in entries and may_use(name)]
        if missing:
            raise Unavailable(f"no replica of {', '.join(missing)} answers", retry_after_s=1)
        return [entries[name] for name in sorted(entries)]

    async def _openapi(self, scope: Scope) -> Reply:
        return Reply(200, JSON, (await self._description())[0])

    async def _docs(self, scope: Scope) -> Reply:
        return Reply(200, HTML, (await self._description())[1])

    async def _description(self) -> tuple[bytes, bytes]:
        models = await self._facts() if ASKER.get().identity.trusted else []
        identity: list[object] = [(m["name"], m.get("version"), m.get("digest")) for m in models]
        if self._described is None or self._described[0] != identity:
            self._described = identity, await asyncio.to_thread(self._describe, models)
        return self._described[1]

    async def _metrics(self, scope: Scope) -> Reply:
        answers, _ = await asyncio.gather(self._ask_all("/metrics"), self._look())
        texts = {name: answer.text for name, answer in sorted(answers.items())}
        return Reply(200, EXPOSITION, self._merge({DOOR: self._own().decode(), **texts}))

    async def _metrics_own(self, scope: Scope) -> Reply:
        await self._look()
        return Reply(200, EXPOSITION, self._own())

    async def _look(self) -> None:
        """Brings up to date what the exposition of this process says of the others."""
        living = Counter(replica.model for replica in await self._replicas())
        self.living = {**dict.fromkeys(self._models, 0), **living}
        try:
            await self._check_ready()
        except Unavailable:
            self.ready = False
        else:
            self.ready = True

    async def _targets(self, scope: Scope) -> Reply:
        replicas = sorted(await self._replicas(), key=lambda replica: (replica.model, replica.replica))
        found = [
            Target(url.netloc, r.replica, (r.model,), scheme=url.scheme)
            for r in replicas
            if (url := urlsplit(r.url)).netloc
        ]
        here = host(scope)
        if here:
            found.append(Target(here, DOOR, path=OWN, scheme=scheme(scope)))
        return Reply(200, JSON, targets_json(found))

    async def _healthz(self, scope: Scope) -> Reply:
        return Reply(200, JSON, b'{"status":"ok"}')

    async def _readyz(self, scope: Scope) -> Reply:
        await self._check_ready()
        return Reply(200, JSON, b'{"status":"ok"}')

    async def _check_ready(self) -> None:
        """Raises Unavailable unless every model can be had through the front door."""
        living = {replica.replica: replica.model for replica in await self._replicas()}
        answers = await self._ask_all("/readyz")
        ready = {living.get(name) for name in answers}
        missing = [name for name in self._models if name not in ready]
        if missing:
            raise Unavailable(f"no replica of {', '.join(missing)} is ready", retry_after_s=1)
        if self._door:
            paths = [f"{self._door}/v1/models/{name}" for name in self._models]
            # Where there are keys, a 401 came from a replica too
            if not all(await asyncio.gather(*(self._reached(path) for path in paths))):
                raise Unavailable("the front door does not lead to every model yet", retry_after_s=1)

    async def _ask_all(self, path: str) -> dict[str, httpx.Response]:
        """The replies of status 200, by replica."""
        replicas = list(await self._replicas())
        answers = await asyncio.gather(*(self._ask(replica.url + path) for replica in replicas))
        pairs = zip(replicas, answers, strict=True)
        return {replica.replica: answer for replica, answer in pairs if answer is not None}

    async def _ask(self, url: str) -> httpx.Response | None:
        response = await self._get(self._client, url, ASKER.get().headers)
        return response if response is not None and response.status_code == HTTPStatus.OK else None

    async def _reached(self, url: str) -> bool:
        response = await self._get(self._probe, url, [])
        return response is not None and response.status_code in (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED)

    async def _get(
        self, client: httpx.AsyncClient, url: str, headers: list[tuple[bytes, bytes]]
    ) -> httpx.Response | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await client.get(url, headers=headers)
        except (httpx.HTTPError, TimeoutError):
            return None


def _merged(one: Facts, other: Facts) -> Facts:
    """What two replicas say of a model; while a new version comes they may serve different ones."""
    newest = max(one, other, key=lambda facts: order(facts.get("version", "")))
    versions: dict[str, Facts] = {}
    for facts in (*one.get("versions", ()), *other.get("versions", ())):
        known = versions.get(facts["digest"])
        if known is not None:
            new_sessions = known["new_sessions"] or facts["new_sessions"]
            facts = {**facts, "sessions": _sum(known["sessions"], facts["sessions"])}
            facts["new_sessions"] = new_sessions
        versions[facts["digest"]] = facts
    ordered = sorted(versions.values(), key=lambda facts: order(facts["version"]), reverse=True)
    sessions = _sum(one.get("sessions", 0), other.get("sessions", 0))
    return {**newest, "sessions": sessions, "versions": ordered}


def _sum(one: Any, other: Any) -> Any:
    """Counts added up: numbers, or objects of numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _sum(one.get(key, 0), other.get(key, 0)) for key in {**one, **other}}
    return one + other
