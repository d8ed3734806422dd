"""What a call of the client can raise, as one tree.

ClientError
├── InvalidRequest         the service can't take the request as it is; the same one fails again
│   ├── InvalidValue         a value of the wrong shape, type or range; `field` is its place
│   └── TooLarge             more bytes or steps than `limit`
├── Refused                the key is missing, or not good for this
├── NotFound               no such path or model
│   └── SessionNotFound      no such session, and the step is not 0
├── SessionExists          the id is taken by a live session
├── StepConflict           the session is at `expected_step`: somebody else moved it
├── SessionGone            the session was here and is no more
│   ├── SessionExpired       its time to live ran out
│   └── SessionLost          it was kept in memory only, and that memory is gone
├── Unexpected             an answer that no such service gives
└── DeadlineExceeded       the call's time ran out on faults; `last` says which was the last

A fault that may pass is never raised: it is retried until the deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Root. code: of the service's problem, for programs. status: of HTTP, None if there was no answer.
    problem: the whole problem object. attempts: how often the request was sent. uncertain: an attempt before
    the last may have been executed, its reply being lost. request_id: by which the service's log knows it."""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "",
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.code, self.status = detail, code, status
        self.problem: dict[str, Any] = dict(problem or {})
        self.attempts = 0
        self.uncertain = False
        self.request_id = ""


class InvalidRequest(ClientError):
    """The service can't take the request as it is; the same one fails again."""


class InvalidValue(InvalidRequest):
    """A value is of the wrong shape, type or range."""

    @property
    def field(self) -> str:
        """The place of the value, such as inputs[0][3]."""
        return str(self.problem.get("field") or "")


class TooLarge(InvalidRequest):
    """The request has more bytes or steps than a limit allows."""

    @property
    def limit(self) -> int | None:
        return _whole(self.problem.get("limit"))


class Refused(ClientError):
    """The key is missing, or not good for this."""


class NotFound(ClientError):
    """There is no such path, or no such model."""


class SessionNotFound(NotFound):
    """There is no such session, and the request did not begin at step 0."""


class SessionExists(ClientError):
    """A live session has this id."""


class StepConflict(ClientError):
    """The session is not where this client left it: somebody else stepped it or put a state into it. Or a
    step that had no reply was repeated with other inputs. Nothing was stepped."""

    @property
    def expected_step(self) -> int | None:
        """The session's next step."""
        return _whole(self.problem.get("expected_step"))


class SessionGone(ClientError):
    """The session was here and is no more."""


class SessionExpired(SessionGone):
    """The session was idle for longer than its time to live."""


class SessionLost(SessionGone):
    """The session was kept in the memory of a process that ended."""


class Unexpected(ClientError):
    """An answer that no such service gives."""


class DeadlineExceeded(ClientError):
    """The call's time ran out. last: the last fault, in words. Whether the request was executed is not
    known if `uncertain`; the same step with the same inputs may be sent again in any case."""

    def __init__(self, timeout_s: float, last: Fault, attempts: int) -> None:
        times = "once" if attempts == 1 else f"{attempts} times"
        super().__init__(
            f"no reply within {timeout_s:g} s, tried {times}; the last fault: {last.detail}",
            code=last.code or "deadline_exceeded",
            status=last.status,
            problem=last.problem,
        )
        self.last = last.detail
        self.attempts = attempts


class Fault(Exception):
    """What may pass: it is retried and not seen outside. executed: the request may have been. wait_s: what
    the service asks to wait. timed_out: there was no answer in the time of one attempt."""

    def __init__(
        self,
        detail: str,
        *,
        executed: bool,
        wait_s: float | None = None,
        timed_out: bool = False,
        code: str = "",
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.executed, self.wait_s, self.timed_out = detail, executed, wait_s, timed_out
        self.code, self.status, self.problem = code, status, dict(problem or {})


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
