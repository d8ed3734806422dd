"""What is told of each request when it is answered: to the log, and to whoever reads traces.

On the way of every request, so: an object and a comparison, unless there is something to tell.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from service.api.problems import TABLE
from service.asked import ASKED, Asked
from service.errors import CellstateError, SessionDamaged, SessionLost
from service.logs import Repeated

if TYPE_CHECKING:
    from service.tracing import Tracer

log = logging.getLogger("cellstate.api")
access = logging.getLogger("cellstate.access")

SERVER_ERROR, TOO_MANY = 500, 429
#: That these say no is their use
PROBES = ("/readyz", "/healthz")
UNTRACED = (*PROBES, "/metrics")
#: What keys refuse: somebody tries what is not theirs, or has the wrong one
NOT_ALLOWED = (401, 403)


class Watch:
    """Of one process. slow_s: a request that took longer is logged. each: a line for every request."""

    def __init__(self, slow_s: float = float("inf"), *, each: bool = False) -> None:
        self.tracer: Tracer | None = None
        self._slow_s, self._each = slow_s, each
        self._repeated = Repeated(log)

    def begin(self, headers: Iterable[tuple[bytes, bytes]]) -> Asked:
        """A request has come; from here on it is the one that is answered in this context."""
        asked = Asked(headers)
        ASKED.set(asked)
        if self.tracer is not None:
            asked.trace = self.tracer.begin(asked.headers)
        return asked

    def message(self, stream: Asked) -> Asked:
        """A message of a stream has come; likewise. Its client says whether it is sampled once, for all."""
        asked = stream.message()
        ASKED.set(asked)
        if self.tracer is not None:
            asked.trace = self.tracer.begin(stream.headers)
        return asked

    def end(
        self, asked: Asked, method: str, route: str, model: str, session: str, status: int, started: float
    ) -> None:
        """It was answered. route: the path's template, and "" for none. started: on time.perf_counter."""
        ended = time.perf_counter()
        if ended - started > self._slow_s:
            self._slow(method, route, model, session, status, ended - started)
        if self._each:
            self._tell(method, route, model, session, status, ended - started)
        if asked.trace is not None and self.tracer is not None and route not in UNTRACED:
            about: dict[str, Any] = {"http.request.method": method, "http.route": route}
            about |= {"http.response.status_code": status, "cellstate.model": model}
            if session:
                about["cellstate.session_id"] = session
            if asked.named:
                about["cellstate.request_id"] = asked.id
            self.tracer.end(asked.trace, f"{method} {route or '?'}", started, ended, status, about)

    def refused(self, error: CellstateError, route: str, model: str, session: str = "") -> None:
        """A request, a message or an item of a bulk body is answered with an error. What is the client's
        fault is its own concern, and may repeat what it sent: without its words, at debug."""
        kind = TABLE[type(error)]
        level = _level(error, kind.status, route)
        if level == logging.DEBUG and not log.isEnabledFor(level):
            return
        fields: dict[str, Any] = {"code": kind.code, "status": kind.status, "route": route, "model": model}
        if session:
            fields["session"] = session[:128]
        if level == logging.DEBUG:  # each: whoever asks for them looks for one
            log.debug("refused: %s", kind.title, extra={"event": "refused", **fields})
            return
        fields["detail"] = error.detail
        key = model, route, kind.code
        self._repeated.tell(key, level, f"refused: {kind.title}", event="refused", **fields)

    def _slow(self, method: str, route: str, model: str, session: str, status: int, seconds: float) -> None:
        self._repeated.tell(
            (model, route, "slow"),
            logging.WARNING,
            "a request was slow",
            event="slow",
            **_about(method, route, model, session, status, seconds),
        )

    def _tell(self, method: str, route: str, model: str, session: str, status: int, seconds: float) -> None:
        access.info(
            "answered",
            extra={"event": "access", **_about(method, route, model, session, status, seconds)},
        )


def _about(
    method: str, route: str, model: str, session: str, status: int, seconds: float
) -> Mapping[str, Any]:
    about = {"method": method, "route": route, "model": model, "session": session}
    return {
        **{name: value for name, value in about.items() if value},
        "status": status,
        "ms": round(seconds * 1000, 3),
    }


def _level(error: CellstateError, status: int, route: str) -> int:
    """What an operator must know: that data is lost or damaged, and that requests are turned away."""
    if isinstance(error, SessionDamaged):
        return logging.ERROR
    if isinstance(error, SessionLost):
        return logging.WARNING
    if route in PROBES:
        return logging.DEBUG
    if status >= SERVER_ERROR or status == TOO_MANY or status in NOT_ALLOWED:
        return logging.WARNING
    return logging.DEBUG
