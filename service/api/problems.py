"""From the exception tree to the wire: one table, RFC 9457 problem+json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from service.asked import ASKED
from service.errors import (
    BadRequest,
    CellstateError,
    DeadlineExceeded,
    Elsewhere,
    EngineFailure,
    Forbidden,
    Gone,
    InvalidValue,
    MethodNotAllowed,
    Moving,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    SessionDamaged,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    StepConflict,
    Stopping,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    VersionConflict,
)
from service.sessions.names import client_id

PROBLEM_TYPE = "application/problem+json"
MAX_PLACE = 200  # characters of a place that are repeated: an unknown field's name is the client's


@dataclass(slots=True, frozen=True)
class Kind:
    """status: of HTTP. code: for programs. close: the code a stream is closed with after telling the error,
    or None where it stays open."""

    status: int
    code: str
    title: str
    close: int | None = None


TABLE: dict[type[CellstateError], Kind] = {
    CellstateError: Kind(503, "unavailable", "The service can't do this now", 1011),
    BadRequest: Kind(400, "bad_request", "The request can't be read"),
    InvalidValue: Kind(422, "invalid_value", "A value is not acceptable"),
    TooLarge: Kind(413, "too_large", "The request is too large"),
    TooSlow: Kind(408, "timeout", "The request is too slow"),
    UnsupportedMediaType: Kind(415, "unsupported_media_type", "The body is of another type"),
    NotFound: Kind(404, "not_found", "There is no such thing here", 4404),
    MethodNotAllowed: Kind(405, "method_not_allowed", "The path does not take this method"),
    SessionNotFound: Kind(404, "session_not_found", "There is no such session"),
    SessionExists: Kind(409, "session_exists", "The session id is taken"),
    StepConflict: Kind(409, "step_conflict", "The step does not follow"),
    VersionConflict: Kind(409, "version_conflict", "The session is of another version of the model"),
    Gone: Kind(410, "session_gone", "The session is no more", 4410),
    SessionExpired: Kind(410, "session_expired", "The session has expired", 4410),
    SessionLost: Kind(410, "session_lost", "The session is lost", 4410),
    Unauthorized: Kind(401, "unauthorized", "A key is needed", 1008),
    Forbidden: Kind(403, "forbidden", "The key is not for this", 1008),
    QuotaExceeded: Kind(429, "quota_exceeded", "The key's limit is reached"),
    NoCapacity: Kind(429, "no_capacity", "There is no room now"),
    Unavailable: Kind(503, "unavailable", "The service can't do this now"),
    Stopping: Kind(503, "unavailable", "The service can't do this now", 1012),
    Moving: Kind(503, "moving", "The session is moving"),
    SessionDamaged: Kind(503, "session_damaged", "The session can't be restored"),
    Elsewhere: Kind(503, "moving", "The session is moving"),
    DeadlineExceeded: Kind(504, "deadline_exceeded", "The deadline passed"),
    EngineFailure: Kind(503, "engine_failure", "The engine could not run the request"),
}

BY_CODE = {kind.code: kind for kind in TABLE.values()}


def problem(error: CellstateError) -> dict[str, Any]:
    """The problem object of an error, with the id of the request that is being answered."""
    kind = TABLE[type(error)]
    return {
        "type": f"/docs#{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": error.detail,
        "code": kind.code,
        **error.facts,
        **({"request_id": asked.id} if (asked := ASKED.get()) is not None else {}),
    }


def without(prefix: str, error: CellstateError) -> CellstateError:
    """The error as the client of a namespace is told it: sessions by their ids."""
    if prefix:
        error.detail = error.detail.replace(prefix, "")
        if "session_id" in error.facts:
            error.facts["session_id"] = client_id(str(error.facts["session_id"]))
    return error


def problem_json(error: CellstateError) -> bytes:
    return json.dumps(problem(error)).encode()


def code_in(status: int, body: bytes) -> str:
    """The code that another replica's answer tells; empty if that is no problem."""
    if status < HTTPStatus.BAD_REQUEST:
        return ""
    try:
        code = json.loads(body)["code"]
    except (ValueError, TypeError, KeyError):
        code = ""
    return code if code in BY_CODE else TABLE[CellstateError].code


def from_validation(error: ValidationError) -> BadRequest:
    """The first thing that is wrong with a body, with its place as a path such as inputs[0][3]."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return BadRequest(f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    field = path(first["loc"])[:MAX_PLACE]
    more = error.error_count() - 1
    also = f" (and {more} more)" if more else ""
    if not field:
        return InvalidValue("the body must be an object", field=field)
    return InvalidValue(f"{field}: {first['msg']}{also}", field=field)


def path(loc: tuple[int | str, ...]) -> str:
    """('inputs', 0, 3) as inputs[0][3]."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
