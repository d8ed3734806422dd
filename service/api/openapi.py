"""The API's description in OpenAPI 3.1, made from the table of routes, the schemas and the error table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service.api.access import rule_of
from service.api.endpoint import ModelEndpoint
from service.api.operations import JSON, KEY_ERRORS, OPERATIONS, TAGS, Operation, example_bodies
from service.api.problems import PROBLEM_TYPE, TABLE, problem
from service.api.routes import ROUTES, STREAM
from service.api.schemas import SESSION_ID_PATTERN, Problem, StepBody
from service.errors import CellstateError, EngineFailure, Unauthorized

INTRODUCTION = (
    "Cellstate serves an LSTM with its memory. An application opens a session and sends the next observations"
    " as they come; the hidden and cell state of every session stays on the server between requests, a retry"
    " never steps a session twice, and a request is all or nothing."
)
SCHEME = "key"
SECURITY = {
    "type": "http",
    "scheme": "bearer",
    "description": "Where the service has keys (the setting `keys`). Each has sessions of its own: to another"
    " key they are as good as unknown. Operators' keys are for metrics; a key may be for some models only.",
}
REF = "#/components/schemas/"
Object = dict[str, Any]
Build = Callable[[Sequence[Object]], bytes]


def kept(build: Build) -> Callable[[Iterable[ModelEndpoint]], bytes]:
    """What is built from a process's models, built once."""
    empty: list[bytes] = []
    built: WeakKeyDictionary[ModelEndpoint, tuple[list[ModelEndpoint], bytes]] = WeakKeyDictionary()

    def of(endpoints: Iterable[ModelEndpoint]) -> bytes:
        served = list(endpoints)
        if not served:
            if not empty:
                empty.append(build([]))
            return empty[0]
        known = built.get(served[0])
        # The rest of the list: a list with the key in it would keep the key alive
        if known is None or known[0] != served[1:]:
            known = built[served[0]] = (served[1:], build([e.facts() for e in served]))
        return known[1]

    return of


def document(models: Sequence[Object]) -> Object:
    """The document for models given as the schema ModelFacts."""
    schemas = _schemas()
    paths: Object = {}
    for path, methods in ROUTES.items():
        item: Object = {}
        if "{" in path:
            item["parameters"] = [
                _parameter(name, models) for name in ("model", "session_id") if name in path
            ]
        for method in methods:
            item[method.lower()] = _operation(OPERATIONS[path, method], rule_of(path), models)
        paths[path] = item
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cellstate",
            "version": _version(),
            "summary": "LSTMs served with their memory.",
            "description": INTRODUCTION,
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {SCHEME: SECURITY}},
        "x-websocket": {
            "path": STREAM,
            "description": TAGS["Stream"],
            "message": {"$ref": REF + StepBody.__name__},
            "reply": {"oneOf": [{"$ref": REF + "StepReply"}, {"$ref": REF + "ItemError"}]},
        },
        "x-errors": {
            kind.code: {"status": kind.status, "title": kind.title, "close": kind.close}
            for kind in sorted(TABLE.values(), key=lambda kind: (kind.status, kind.code))
        },
    }


@kept
def openapi_json(models: Sequence[Object]) -> bytes:
    """The document of a process's endpoints, as JSON."""
    return json.dumps(document(models), ensure_ascii=False).encode()


def _version() -> str:
    try:
        return version("cellstate")
    except PackageNotFoundError:
        return "0"


def _schemas() -> Object:
    wanted: dict[type[BaseModel], JsonSchemaMode] = {Problem: "serialization"}
    for operation in OPERATIONS.values():
        if operation.body is not None:
            wanted[operation.body] = "validation"
        for reply in operation.replies.values():
            if reply.schema is not None:
                wanted[reply.schema] = "serialization"
    _, definitions = models_json_schema(list(wanted.items()), by_alias=True, ref_template=REF + "{model}")
    schemas: Object = definitions["$defs"]
    return schemas


def _parameter(name: str, models: Sequence[Object]) -> Object:
    if name == "model":
        schema: Object = {"type": "string"}
        if models:
            schema["enum"] = [model["name"] for model in models]
        text = "A served model."
    else:
        schema = {"type": "string", "pattern": SESSION_ID_PATTERN, "minLength": 1, "maxLength": 128}
        text = "A session's id, of your own or issued."
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def _operation(operation: Operation, rule: str, models: Sequence[Object]) -> Object:
    described: Object = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.text,
    }
    body = _body(operation, models)
    if body is not None:
        described["requestBody"] = body
    described["responses"] = {**_replies(operation), **_problems((*operation.errors, *KEY_ERRORS[rule]))}
    if rule != "open":
        described["security"] = [{}, {SCHEME: []}]  # none where the service has no keys
    return described


def _body(operation: Operation, models: Sequence[Object]) -> Object | None:
    if operation.body is not None:
        content: Object = {"schema": {"$ref": REF + operation.body.__name__}}
        examples = {
            f"{model['name']}/{what}" if what else model["name"]: {"value": value}
            for model in models
            for what, value in example_bodies(operation.examples, model).items()
        }
        if examples:
            content["examples"] = examples
    elif operation.body_media != (JSON,):
        content = {"schema": {"type": "string", "format": "binary"}}
    else:
        return None
    return {"required": operation.body_required, "content": dict.fromkeys(operation.body_media, content)}


def _replies(operation: Operation) -> Object:
    described: Object = {}
    for status, reply in operation.replies.items():
        response: Object = {"description": reply.what}
        if reply.schema is not None:
            response["content"] = {reply.media: {"schema": {"$ref": REF + reply.schema.__name__}}}
        elif reply.media:
            kind: Object = {"type": "string"}
            if not reply.media.startswith("text/"):
                kind["format"] = "binary"
            response["content"] = {reply.media: {"schema": kind}}
        if operation.links:
            response["links"] = {name: _link(name) for name in operation.links}
        described[str(status)] = response
    return described


def _link(operation_id: str) -> Object:
    return {
        "operationId": operation_id,
        "parameters": {"model": "$request.path.model", "session_id": "$response.body#/session_id"},
    }


def _problems(errors: Sequence[type[CellstateError]]) -> Object:
    """Each error status, with the codes it can have."""
    by_status: dict[int, list[type[CellstateError]]] = {}
    for error in errors:
        by_status.setdefault(TABLE[error].status, []).append(error)
    described: Object = {}
    for status in sorted(by_status):
        kinds = {TABLE[error].code: error for error in by_status[status]}
        response: Object = {
            "description": "; ".join(f"`{code}`: {TABLE[error].title}" for code, error in kinds.items()),
            "content": {
                PROBLEM_TYPE: {
                    "schema": {
                        "allOf": [
                            {"$ref": REF + Problem.__name__},
                            {"properties": {"status": {"const": status}, "code": {"enum": list(kinds)}}},
                        ]
                    },
                    "examples": {code: {"value": _sample(error)} for code, error in kinds.items()},
                }
            },
        }
        if status in (429, 503):
            text = "Seconds to wait before the next try."
            response["headers"] = {"Retry-After": {"description": text, "schema": {"type": "integer"}}}
        if Unauthorized in by_status[status]:
            text = "How to show a key."
            response["headers"] = {"WWW-Authenticate": {"description": text, "schema": {"const": "Bearer"}}}
        described[str(status)] = response
    return described


def _sample(error: type[CellstateError]) -> Object:
    sample = problem(error(f"{TABLE[error].title}."))
    if TABLE[error].status in (429, 503) or error is EngineFailure:
        sample["retry_after_s"] = 1
    return sample
