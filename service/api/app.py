"""The one ASGI callable: HTTP, streams, and the life of the process around them.

Written on bare ASGI: a framework's routing would cost as much as a step.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from http import HTTPStatus

from service.api.messages import ClientGone, Intake, Request, Response
from service.api.peers import PeerAway
from service.api.problems import TABLE, code_in, without
from service.api.routes import HANDOVER, ROUTES, STREAM, Handler, Site, admit, hand_over, match, unanswered
from service.api.websocket import Streams
from service.asgi import Receive, Scope, Send
from service.asked import REQUEST_ID
from service.errors import (
    CellstateError,
    Elsewhere,
    EngineFailure,
    MethodNotAllowed,
    NoCapacity,
    NotFound,
)
from service.sessions.counters import RequestCounters
from service.sessions.custody import insisting

log = logging.getLogger("cellstate.api")

#: As nginx has it: nobody was there to be answered
CLIENT_GONE = 499


class Api:
    """Answers every request exactly once; whatever comes in, never a traceback and never a 500."""

    def __init__(self, site: Site, intake: Intake, counters: RequestCounters) -> None:
        self.site, self.counters = site, counters
        self.streams = Streams(site.watch)
        self._intake = intake

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        template = model = known = session_id = code = ""
        request: Request | None = None
        response: Response | None = None
        watch, intake = self.site.watch, self._intake
        asked = watch.begin(scope["headers"])
        intake.running += 1
        try:
            try:
                template, model, session_id = match(scope["path"])
                known = self._known(model)
                if intake.running > intake.requests:
                    self._check_room(scope["method"], template)
                handler = _handler(template, scope["method"])
                request = Request(scope, receive, intake, model, session_id, asked.headers)
                admit(self.site, template, request)
                try:
                    response = await handler(self.site, request)
                except Elsewhere as error:
                    response = await self._pass_on(error, handler, request)
                    code = code_in(response.status, response.body)
            except CellstateError as error:
                kind = TABLE[type(error)]
                error = without("" if request is None else request.identity.prefix, error)
                response, code = Response.of(error, kind.status), kind.code
                watch.refused(error, template, known, session_id)
            except (ClientGone, asyncio.CancelledError):
                raise
            except Exception:  # a bug of ours: its client still gets an answer, and the log the reason
                about = {"event": "failure", "model": model, "session": session_id}
                log.exception("a handler of %s failed", template, extra=about)
                own = EngineFailure("the service met an error of its own; it is in its log", retry_after_s=1)
                response, code = Response.of(own, 503), TABLE[EngineFailure].code
            self._count(template, known, request, response.status, code, started)
            if asked.named:
                response.headers += ((REQUEST_ID, asked.id.encode()),)
            await response.send(send, head=scope["method"] == "HEAD")
            watch.end(asked, scope["method"], template, known, session_id, response.status, started)
        except ClientGone:
            self._count(template, known, request, CLIENT_GONE, "", started)
        except asyncio.CancelledError:
            if response is None:  # else it was counted, and its client left while it was sent
                self._count(template, known, request, CLIENT_GONE, "", started)
            raise
        finally:
            intake.running -= 1
            if request is not None and request.held:
                intake.held -= request.held

    def _check_room(self, method: str, template: str) -> None:
        """More requests are here than may be: what moves no session is let in all the same. Raises
        NoCapacity."""
        if method == "POST" and template != HANDOVER:
            self.counters.refused["requests"] += 1
            raise NoCapacity("as many requests are here as may be; nothing was executed", retry_after_s=1)

    def _known(self, model: str) -> str:
        """A model name that is not one of ours is a client's invention: as a label it would be unbounded."""
        return model if model in self.site.endpoints else ""

    def _count(
        self, template: str, known: str, request: Request | None, status: int, code: str, started: float
    ) -> None:
        route = template or "none"
        if request is not None and request.identity.peer:
            self.counters.of_peers[known, route, status] += 1
            return
        self.counters.observe(known, route, status, time.perf_counter() - started)
        if code:
            self.counters.errors[known, code] += 1

    async def _pass_on(self, error: Elsewhere, handler: Handler, request: Request) -> Response:
        """The answer of the replica that owns the session; if that is away, the session is brought here."""
        peers = self.site.endpoint(request.model).peers
        if peers is None or request.identity.peer:
            raise error
        try:
            return await peers.pass_on(error.address, request)
        except PeerAway as away:
            if away.sent and not await _repeatable(request):
                raise unanswered() from None
            with insisting():
                return await handler(self.site, request)

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            template, model, session_id = match(scope["path"])
        except NotFound:
            template = model = session_id = ""
        if template != STREAM:
            self.counters.observe("", "none", HTTPStatus.NOT_FOUND, 0.0)
            self.counters.errors["", TABLE[NotFound].code] += 1
            await receive()
            await send({"type": "websocket.close", "code": 4404})
            return
        await self.streams.serve(self.site, model, session_id, scope, receive, send)


async def _repeatable(request: Request) -> bool:
    """Whether a request that was perhaps executed may be sent again: not if it is a step without a number,
    or a fork without an id."""
    if request.method != "POST" or request.scope["path"].endswith("/rewind"):
        return True
    body = json.loads(await request.body() or b"{}")
    return body.get("step") is not None or body.get("session_id") is not None


def _handler(template: str, method: str) -> Handler:
    """What answers; HEAD is a GET without its body. Raises MethodNotAllowed."""
    handlers = {"POST": hand_over} if template == HANDOVER else ROUTES.get(template)
    if handlers is None:
        raise MethodNotAllowed("this path is a WebSocket; open it with an upgrade", allow="")
    handler = handlers.get("GET" if method == "HEAD" else method)
    if handler is None:
        names = [*handlers, "HEAD"] if "GET" in handlers else list(handlers)
        allow = ", ".join(names)
        raise MethodNotAllowed(f"{method[:40]} is not for this path; it takes {allow}", allow=allow)
    return handler
