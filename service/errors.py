"""What can go wrong with a request, as one tree. No HTTP here: `api/problems` maps each class to the wire.

CellstateError
├── BadRequest             not JSON, or not a request at all
│   └── InvalidValue         a value of the wrong shape, type or range; names its place
├── TooLarge               more bytes or steps than a limit allows
├── TooSlow                the request did not arrive in time
├── NotFound               no such path or model
│   └── SessionNotFound      no such session, and the step is not 0
├── SessionExists          the id is taken by a live session
├── VersionConflict        the session can't go on with the version of the model that is served
├── StepConflict           the step is ahead, or too old, or its inputs differ from those committed
├── Gone                   the session was here and is no more
│   ├── SessionExpired       its time to live ran out
│   └── SessionLost          it was kept in memory only, and that memory is gone
├── Unauthorized           no key, or none that is known
├── Forbidden              the key is not for this
├── NoCapacity             a limit on sessions or on waiting requests is reached
├── QuotaExceeded          a limit of the key is reached
├── Unavailable            a part this needs is away; the session has not moved
│   ├── Stopping             this process takes nothing more; come back, maybe to another
│   ├── Moving               the session is changing its owner; come back
│   └── SessionDamaged       what is kept of the session is not what was written
├── Elsewhere              another replica owns the session: ask it
├── DeadlineExceeded       the request's own deadline passed before it was started
└── EngineFailure          the engine could not run the request; the session has not moved
"""

from __future__ import annotations


class CellstateError(Exception):
    """Root. `detail` says what happened in one sentence; `facts` are what helps a program react."""

    def __init__(self, detail: str, **facts: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts


class BadRequest(CellstateError):
    """The request can't be read."""


class InvalidValue(BadRequest):
    """A value is of the wrong shape, type or range. Facts: `field`, its place."""


class UnsupportedMediaType(CellstateError):
    """The body is of a type that this path does not read."""


class MethodNotAllowed(CellstateError):
    """The path is known, the method is not for it. Facts: `allow`."""


class TooLarge(CellstateError):
    """More bytes or steps than a limit allows. Facts: `limit`."""


class TooSlow(CellstateError):
    """The request did not arrive in time."""


class NotFound(CellstateError):
    """No such path or model."""


class SessionNotFound(NotFound):
    """No such session, and the request can't open it."""


class SessionExists(CellstateError):
    """The id asked for is taken by a live session."""


class StepConflict(CellstateError):
    """The step can't be executed or answered again. Facts: `expected_step`, the session's next."""


class VersionConflict(CellstateError):
    """The session is of another version of the model and can't go on with this one. Facts: `version`."""


class Gone(CellstateError):
    """The session was here and is no more."""


class SessionExpired(Gone):
    """The session's time to live ran out."""


class SessionLost(Gone):
    """The session was kept in memory only, and that memory is gone."""


class Unauthorized(CellstateError):
    """The request has no key, or one that is not known."""


class Forbidden(CellstateError):
    """The key is known, and not for this model or path."""


class QuotaExceeded(CellstateError):
    """A limit of the key is reached. Facts: `retry_after_s`."""


class NoCapacity(CellstateError):
    """A limit on sessions or waiting requests is reached. Facts: `retry_after_s`."""


class Unavailable(CellstateError):
    """The service can't take this now; nothing has happened. Facts: `retry_after_s`."""


class Stopping(Unavailable):
    """This process takes nothing more. Facts: `retry_after_s`."""


class Moving(Unavailable):
    """The session is changing its owner, or its owner can't be reached yet. Facts: `retry_after_s`."""


class SessionDamaged(Unavailable):
    """What is kept of the session is damaged; it can't be restored."""


class Elsewhere(CellstateError):
    """Another replica owns the session. It does not reach a client: the request is passed on."""

    def __init__(self, address: str) -> None:
        super().__init__("another replica owns the session", retry_after_s=1)
        self.address = address


class DeadlineExceeded(CellstateError):
    """The request's deadline passed before it was started; nothing has happened."""


class EngineFailure(CellstateError):
    """The engine could not run the request; the session is where it was. Facts: `retry_after_s`."""
