"""What an answer means: a value, a fault that may pass, or an error that stays."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

from service.client.effects import Closed, Response
from service.client.errors import (
    ClientError,
    Fault,
    InvalidRequest,
    InvalidValue,
    NotFound,
    Refused,
    SessionExists,
    SessionExpired,
    SessionGone,
    SessionLost,
    SessionNotFound,
    StepConflict,
    TooLarge,
    Unexpected,
)

BY_CODE: dict[str, type[ClientError]] = {
    "bad_request": InvalidRequest,
    "unsupported_media_type": InvalidRequest,
    "method_not_allowed": InvalidRequest,
    "invalid_value": InvalidValue,
    "too_large": TooLarge,
    "not_found": NotFound,
    "session_not_found": SessionNotFound,
    "session_exists": SessionExists,
    "step_conflict": StepConflict,
    "session_gone": SessionGone,
    "session_expired": SessionExpired,
    "session_lost": SessionLost,
}
BY_STATUS: dict[int, type[ClientError]] = {
    400: InvalidRequest,
    401: Refused,
    403: Refused,
    404: NotFound,
    405: InvalidRequest,
    410: SessionGone,
    413: TooLarge,
    415: InvalidRequest,
    422: InvalidValue,
}
#: The service's own words that nothing was executed. What a proxy says of the same status is no such promise.
NOT_EXECUTED = {"no_capacity", "unavailable", "engine_failure"}
PASSING = {408, 429}  # beside all of 5xx but these
LASTING = {501, 505}
#: Close codes of what may pass: going away, no close frame, failure, restart, try again, and damaged frames
CLOSES = {1000, 1001, 1002, 1005, 1006, 1007, 1011, 1012, 1013, 1014, 1015}
TOO_BIG = 1009
PROBLEM = "application/problem+json"


def judge(response: Response) -> Fault | ClientError | None:
    """None: the response is of success, and its body is to be read."""
    if 200 <= response.status < 300:
        return None
    try:
        problem = read_object(response.body)
    except (ValueError, RecursionError) as error:  # a proxy's page, or nothing
        if response.headers.get("content-type", "").startswith(PROBLEM):  # it was to be one, and was cut
            return Fault(f"the answer can't be read: {error}", executed=True, status=response.status)
        problem = {}
    return judge_problem(response.status, problem, _retry_after(response))


def judge_problem(
    status: int, problem: dict[str, Any], retry_after_s: float | None = None
) -> Fault | ClientError:
    """What a problem object means, or an answer of this status that has none."""
    code = problem.get("code")
    code = code if isinstance(code, str) else ""
    detail = str(problem.get("detail") or f"the answer was status {status}, without a reason")
    told = problem.get("retry_after_s")
    wait_s = retry_after_s if retry_after_s is not None else _seconds(told)
    if status in PASSING or (status >= 500 and status not in LASTING):
        nothing = status == 429 or (status == 503 and code in NOT_EXECUTED)
        return Fault(detail, executed=not nothing, wait_s=wait_s, code=code, status=status, problem=problem)
    kind = BY_CODE.get(code) or BY_STATUS.get(status, Unexpected)
    return kind(detail, code=code, status=status, problem=problem)


def judge_close(closed: Closed) -> Fault | ClientError:
    """What the end of a stream means."""
    said = f": {closed.reason}" if closed.reason else ""
    detail = f"the stream was closed with {closed.code}{said}"
    if closed.code in CLOSES:
        return Fault(detail, executed=True)
    kind = {TOO_BIG: TooLarge, 1008: Refused, 4401: Refused, 4403: Refused, 4404: NotFound, 4410: SessionGone}
    return kind.get(closed.code, Unexpected)(detail, code=f"close_{closed.code}")


def read_object(body: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _retry_after(response: Response) -> float | None:
    """Retry-After: seconds, or a date."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _seconds(value: object) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return max(0.0, float(value)) if plain and isinstance(value, int | float) else None
