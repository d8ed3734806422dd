"""The native routes: each handler reads its body, asks the model's manager, and renders the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from model.versions import order
from service.api.access import NOBODY, Access, Identity, rule_of
from service.api.endpoint import BULK_SLICE, Begun, ModelEndpoint, check_session_id
from service.api.messages import JSON, Request, Response, parse
from service.api.peers import PeerAway
from service.api.problems import BY_CODE, TABLE, Kind, from_validation, problem, without
from service.api.render import dumps
from service.api.schemas import (
    BulkItem,
    ForkBody,
    HandoverBody,
    LooseBulkBody,
    OpenBody,
    RewindBody,
)
from service.api.targets import OWN, Target, host, scheme, targets_json
from service.api.watch import Watch
from service.errors import CellstateError, Elsewhere, InvalidValue, Moving, NotFound, Unavailable
from service.sessions.counters import RequestCounters
from service.sessions.custody import insisting
from service.sessions.inputs import Steps
from service.sessions.replies import Reply, StepCommand

SAFETENSORS = "application/vnd.safetensors"


@dataclass(slots=True, frozen=True)
class Site:
    """What the routes need to know: the models served here, and the pages that are made elsewhere."""

    endpoints: Mapping[str, ModelEndpoint]
    ready: Callable[[], bool]
    metrics: Callable[[], tuple[bytes, str]]  # the exposition and its content type
    replica: Callable[[], str]  # the name of this process
    counters: RequestCounters
    openapi: Callable[[bool], bytes]  # with the models, or without
    docs: Callable[[bool], bytes]
    access: Access = field(default_factory=Access)
    watch: Watch = field(default_factory=Watch)

    def endpoint(self, model: str) -> ModelEndpoint:
        try:
            return self.endpoints[model]
        except KeyError:
            names = ", ".join(sorted(self.endpoints))
            raise NotFound(f"there is no model {model[:80]!r} here; there is {names}") from None


Handler = Callable[[Site, Request], Awaitable[Response]]


async def step(site: Site, request: Request) -> Response:
    endpoint = site.endpoint(request.model)
    command = await endpoint.read_step(_session(request), await request.json_bytes())
    return Response(200, await endpoint.answer(await endpoint.manager.step(command)))


async def predict(site: Site, request: Request) -> Response:
    endpoint = site.endpoint(request.model)
    command = await endpoint.read_predict(await request.json_bytes())
    return Response(200, await endpoint.prediction(await endpoint.manager.predict(command)))


async def open_session(site: Site, request: Request) -> Response:
    endpoint = site.endpoint(request.model)
    body = await request.json(OpenBody, optional=True)
    name = _new_session(endpoint, request, body.session_id)
    session = await endpoint.manager.open_session(name, body.ttl_s, body.durability)
    return _json(201, endpoint.session_facts(session))


async def session_facts(site: Site, request: Request) -> Response:
    endpoint = site.endpoint(request.model)
    session = await endpoint.manager.find(_session(request))
    return _json(200, endpoint.session_facts(session))


async def end_session(site: Site, request: Request) -> Response:
    await site.endpoint(request.model).manager.end(_session(request))
    return Response(204)


async def export_state(site: Site, request: Request) -> Response:
    snapshot = await site.endpoint(request.model).manager.snapshot(_session(request))
    return Response(200, snapshot.dump(), SAFETENSORS)


async def import_state(site: Site, request: Request) -> Response:
    endpoint = site.endpoint(request.model)
    session_id = _session(request)
    snapshot = endpoint.read_snapshot(await request.body())
    opened = await endpoint.manager.restore(session_id, snapshot)
    facts = endpoint.session_facts(await endpoint.manager.find(session_id))
    return _json(201 if opened else 200, facts)


async def fork_session(site: Site, request: Request) -> Response:
    endpoint = site.endpoint(request.model)
    session_id = _session(request)
    body = await request.json(ForkBody, optional=True)
    name = _new_session(endpoint, request, body.session_id)
    session = await endpoint.manager.fork(session_id, name, body.at_step)
    return _json(201, endpoint.session_facts(session))


async def rewind_session(site: Site, request: Request) -> Response:
    endpoint = site.endpoint(request.model)
    session_id = _session(request)
    body = await request.json(RewindBody)
    session = await endpoint.manager.rewind(session_id, body.to_step)
    return _json(200, endpoint.session_facts(session))


async def hand_over(site: Site, request: Request) -> Response:
    """For other replicas alone."""
    endpoint = site.endpoint(request.model)
    if not request.identity.peer:
        raise NotFound(f"there is nothing at {request.scope['path'][:200]!r}; /docs lists what there is")
    body = await request.json(HandoverBody)
    if body.newest is not None and order(body.newest) < order(endpoint.bundle.version):
        return _json(200, False)  # of what this one has, that replica can't go on with all
    return _json(200, await endpoint.manager.hand_over(body.session_id))


async def bulk_step(site: Site, request: Request) -> Response:
    """Each request has its own result or error; one that fails spoils no other."""
    endpoint = site.endpoint(request.model)
    raw = await request.json_bytes()
    identity = request.identity
    plain = await endpoint.read_plain_bulk(identity.prefix, raw)
    commands: Sequence[StepCommand | None]
    if plain is None:
        commands, futures = await _begin_each(endpoint, identity, raw)
    else:
        commands, futures = plain, await _begin(endpoint, identity, plain)
    results: list[bytes] = []
    failed: dict[int, Kind] = {}  # by place
    elsewhere: dict[str, list[int]] = {}  # places of requests for sessions of other replicas, by address
    for place, answer in enumerate(await endpoint.answers(futures)):
        if isinstance(answer, bytes):
            results.append(answer)
            continue
        failed[place] = TABLE[type(answer)]
        if isinstance(answer, Elsewhere):
            elsewhere.setdefault(answer.address, []).append(place)
            results.append(_error(answer))
        else:
            told = without(identity.prefix, answer)
            results.append(_error(told))
            site.watch.refused(told, MODEL + "/steps", request.model)
        if len(failed) % BULK_SLICE == 0:
            await endpoint.turns.next()
    if elsewhere and endpoint.peers is not None and not identity.peer:
        await asyncio.gather(
            *(
                _pass_on(endpoint, identity, address, places, raw, commands, results, failed)
                for address, places in elsewhere.items()
            )
        )
    if not identity.peer:  # else the replica that the client asked counts them
        _count_items(site.counters, request.model, len(results), failed)
    return Response(200, b'{"results":[' + b",".join(results) + b"]}")


async def _begin(endpoint: ModelEndpoint, identity: Identity, commands: Sequence[StepCommand]) -> Begun:
    """Takes up the requests of a bulk body."""
    begun: Begun = []
    step, granted = endpoint.manager.step, _granted(identity, len(commands))
    for number, command in enumerate(commands, 1):
        try:
            if number > granted:
                raise identity.too_many()
            begun.append(step(command, pull=False))
        except CellstateError as error:
            begun.append(error)
        if number % BULK_SLICE == 0:
            await endpoint.turns.next()
    return begun


async def _begin_each(
    endpoint: ModelEndpoint, identity: Identity, raw: bytes
) -> tuple[list[StepCommand | None], Begun]:
    """The same, of which each may ask for something else, or be wrong. Also the commands, as far as they
    could be read. Raises what the whole body is refused for."""
    items: Sequence[tuple[Any, Steps | None]] | None = await endpoint.read_bulk(raw)
    if items is None:  # one by one, so that the good ones are found
        items = [(item, None) for item in parse(LooseBulkBody, raw).requests]
    commands: list[StepCommand | None] = []
    begun: Begun = []
    granted = _granted(identity, len(items))
    for number, (item, steps) in enumerate(items, 1):
        commands.append(None)
        try:
            if number > granted:
                raise identity.too_many()
            body = item if isinstance(item, BulkItem) else _bulk_item(item)
            try:
                command = endpoint.bulk_command(identity.prefix, body, steps)
            except InvalidValue as refused:
                command = await endpoint.bulk_command_anew(identity.prefix, body, refused)
            commands[-1] = command
            begun.append(endpoint.manager.step(command, pull=False))
        except CellstateError as error:
            begun.append(error)
        if number % BULK_SLICE == 0:
            await endpoint.turns.next()
    return commands, begun


def _granted(identity: Identity, items: int) -> int:
    """How many requests of a bulk body the rate of its key allows: the first is the request itself."""
    return 1 + identity.spend_up_to(items - 1)


def _count_items(counters: RequestCounters, model: str, all_: int, failed: Mapping[int, Kind]) -> None:
    counters.bulk_items[model, int(HTTPStatus.OK)] += all_ - len(failed)
    for kind in failed.values():
        counters.bulk_items[model, kind.status] += 1
        counters.errors[model, kind.code] += 1


async def _pass_on(
    endpoint: ModelEndpoint,
    identity: Identity,
    address: str,
    places: list[int],
    raw: bytes,
    commands: Sequence[StepCommand | None],
    results: list[bytes],
    failed: dict[int, Kind],
) -> None:
    """Has another replica answer its requests of a bulk body; if it is away, they are answered here."""
    assert endpoint.peers is not None  # noqa: S101  nothing is elsewhere otherwise
    requests = json.loads(raw)["requests"]
    body = dumps({"requests": [requests[place] for place in places]}).encode()
    try:
        answer = await endpoint.peers.post(address, "/steps", body, identity.namespace)
        found = json.loads(answer.body)["results"] if answer.status == HTTPStatus.OK else None
        sent = False
    except PeerAway as away:
        found, sent = None, away.sent
    if found is not None:
        for place, one in zip(places, found, strict=True):
            results[place] = dumps(one).encode()
            failed.pop(place)
            if "error" in one:
                failed[place] = BY_CODE.get(one["error"]["code"], TABLE[CellstateError])
        return
    futures: list[asyncio.Future[Reply] | CellstateError] = []
    for place in places:
        command = commands[place]
        if command is None:
            continue  # what it must be is only known there: the client is told to come back
        try:
            if sent and command.step is None:
                raise unanswered()
            with insisting():
                futures.append(endpoint.manager.step(command))
        except CellstateError as error:
            futures.append(error)
    for place, future in zip(places, futures, strict=True):
        try:
            if isinstance(future, CellstateError):
                raise future
            results[place] = await endpoint.answer(await future)
            failed.pop(place)
        except CellstateError as error:
            failed[place] = TABLE[type(error)]
            results[place] = _error(without(identity.prefix, error))


def _session(request: Request) -> str:
    """The name of the session in the path. Raises InvalidValue."""
    return request.identity.prefix + check_session_id(request.session_id)


def _new_session(endpoint: ModelEndpoint, request: Request, session_id: str | None) -> str:
    """The name of a session to be opened, under an id of its client or one of ours."""
    return request.identity.prefix + (session_id or endpoint.manager.new_id())


def unanswered() -> Moving:
    """A request that another replica did not answer, and that must not be repeated: it may step twice."""
    return Moving("the replica that owns the session did not answer; it may have executed the request")


def _error(error: CellstateError) -> bytes:
    return dumps({"error": problem(error)}).encode()


def _bulk_item(item: Any) -> BulkItem:
    if not isinstance(item, dict):
        raise InvalidValue("a request must be an object", field="")
    try:
        return BulkItem.model_validate(item)
    except ValidationError as error:
        raise from_validation(error) from None


async def model_facts(site: Site, request: Request) -> Response:
    return _json(200, site.endpoint(request.model).facts(_counted(request)))


async def model_list(site: Site, request: Request) -> Response:
    endpoints = [e for name, e in site.endpoints.items() if request.identity.may_use(name)]
    return _json(200, {"models": [endpoint.facts(_counted(request)) for endpoint in endpoints]})


def _counted(request: Request) -> str:
    """The namespace whose sessions a client is told of; an operator is told of all."""
    key = request.identity.key
    return request.identity.namespace if key is not None and key.role == "client" else ""


async def healthz(site: Site, request: Request) -> Response:
    return _json(200, {"status": "ok"})


async def readyz(site: Site, request: Request) -> Response:
    if not site.ready():
        raise Unavailable("this process is starting or stopping", retry_after_s=1)
    return _json(200, {"status": "ok"})


async def metrics(site: Site, request: Request) -> Response:
    body, content_type = site.metrics()
    return Response(200, body, content_type)


async def metrics_targets(site: Site, request: Request) -> Response:
    address = host(request.scope)
    found = []
    if address:
        models = sorted(site.endpoints)
        found.append(Target(address, site.replica(), models, scheme=scheme(request.scope)))
    return Response(200, targets_json(found))


async def openapi(site: Site, request: Request) -> Response:
    return Response(200, site.openapi(request.identity.trusted))


async def docs(site: Site, request: Request) -> Response:
    return Response(200, site.docs(request.identity.trusted), "text/html; charset=utf-8")


def _json(status: int, value: Any) -> Response:
    return Response(status, dumps(value).encode(), JSON)


MODEL = "/v1/models/{model}"
SESSION = MODEL + "/sessions/{session_id}"

#: Every path and its methods. The stream at SESSION/stream is a WebSocket and not in here.
ROUTES: dict[str, dict[str, Handler]] = {
    SESSION + "/steps": {"POST": step},
    MODEL + "/steps": {"POST": bulk_step},
    MODEL + "/predict": {"POST": predict},
    MODEL + "/sessions": {"POST": open_session},
    SESSION: {"GET": session_facts, "DELETE": end_session},
    SESSION + "/state": {"GET": export_state, "PUT": import_state},
    SESSION + "/fork": {"POST": fork_session},
    SESSION + "/rewind": {"POST": rewind_session},
    MODEL: {"GET": model_facts},
    "/v1/models": {"GET": model_list},
    "/healthz": {"GET": healthz},
    "/readyz": {"GET": readyz},
    "/metrics": {"GET": metrics},
    "/metrics/targets": {"GET": metrics_targets},
    OWN: {"GET": metrics},
    "/openapi.json": {"GET": openapi},
    "/docs": {"GET": docs},
}
STREAM = SESSION + "/stream"
HANDOVER = MODEL + "/handover"  # between replicas; no route of the API


def admit(site: Site, template: str, request: Request) -> None:
    """Finds out whose request it is, and counts it. Raises Unauthorized, Forbidden or QuotaExceeded."""
    endpoint = site.endpoints.get(request.model)
    if endpoint is not None and endpoint.peers is not None:
        passed_on = endpoint.peers.identity(request)
        if passed_on is not None:
            request.of(passed_on)
            return
    if not site.access.on:
        return
    rule = rule_of(template)
    if rule == "open" or (rule == "page" and b"authorization" not in request.headers):
        request.of(NOBODY)
        return
    identity = site.access.identify(request.headers)
    identity.spend()
    if rule != "page":
        identity.check(rule, request.model)
    request.of(identity)


_BY_LEAF = {r.rsplit("/", 1)[1]: r for r in (*ROUTES, STREAM) if r.startswith(SESSION + "/")}
_MODEL_LEAF = {
    r.rsplit("/", 1)[1]: r for r in ROUTES if r.startswith(MODEL + "/") and not r.startswith(SESSION)
}


def match(path: str) -> tuple[str, str, str]:
    """A path's template, model and session id (empty where the path has none). Raises NotFound."""
    parts = path.split("/")
    if parts[1:3] == ["v1", "models"]:
        if len(parts) == 7 and parts[4] == "sessions" and parts[6] in _BY_LEAF:
            return _BY_LEAF[parts[6]], parts[3], parts[5]
        if len(parts) == 6 and parts[4] == "sessions":
            return SESSION, parts[3], parts[5]
        if len(parts) == 5 and parts[4] in _MODEL_LEAF:
            return _MODEL_LEAF[parts[4]], parts[3], ""
        if len(parts) == 5 and parts[4] == "handover":
            return HANDOVER, parts[3], ""
        if len(parts) == 4:
            return MODEL, parts[3], ""
    if path in ROUTES and "{" not in path:
        return path, "", ""
    raise NotFound(f"there is nothing at {path[:200]!r}; /docs lists what there is")
