"""The stream: each message a body of /steps, each reply as its reply, in order.

One message at a time: the steps of a session are one after the other anyway, and what a client sends ahead
waits in its socket, which is all the back-pressure that is needed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from urllib.parse import parse_qs

from service.api.endpoint import ModelEndpoint, check_session_id
from service.api.peers import PeerAway
from service.api.problems import TABLE, code_in, problem
from service.api.render import dumps
from service.api.routes import STREAM, Site, unanswered
from service.api.watch import Watch
from service.asgi import Receive, Scope, Send
from service.asked import REQUEST_ID, Asked
from service.errors import (
    BadRequest,
    CellstateError,
    Elsewhere,
    EngineFailure,
    InvalidValue,
    SessionNotFound,
    Stopping,
)
from service.sessions.counters import RequestCounters
from service.sessions.custody import insisting

log = logging.getLogger("cellstate.api")

#: How a stream ended if not by a code of ours: its client left. How it did, uvicorn does not say for sure.
CLIENT = "client"
MESSAGE = "MESSAGE"  # in place of a method
MOST_DIGITS = 16  # of a step's number


class Streams:
    """The open streams of a process, so that a stop can close them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._tasks: set[asyncio.Task[str]] = set()
        self._none_left = asyncio.Event()
        self.stopping = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def serve(
        self, site: Site, model: str, session_id: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serves one stream until its client leaves, its session is gone, or the service stops."""
        try:
            await self._serve(site, model, session_id, scope, receive, send)
        except OSError:  # of the socket: the client left before its reply; a retry of the step gets it
            log.debug("a stream's client left", exc_info=True)

    async def _serve(
        self, site: Site, model: str, session_id: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        stream = self._watch.begin(scope["headers"])
        await receive()  # websocket.connect
        await send({"type": "websocket.accept", "headers": [(REQUEST_ID, stream.id.encode())]})
        counters = site.counters
        try:
            endpoint = site.endpoint(model)
            check_session_id(session_id)
            resume = _resume(scope)
        except CellstateError as error:
            kind = TABLE[type(error)]
            known = model if model in site.endpoints else ""
            counters.observe(known, STREAM, kind.status, 0.0)
            counters.errors[known, kind.code] += 1
            await _tell(send, error)
            await send({"type": "websocket.close", "code": 4404})
            return
        task = asyncio.ensure_future(_converse(endpoint, session_id, site, stream, resume, receive, send))
        self._tasks.add(task)
        counters.streams_opened[model] += 1
        ending = CLIENT
        try:
            ending = await task
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            ending = "1012"
            counters.errors[model, TABLE[Stopping].code] += 1
            await _tell(send, Stopping("the service is stopping; come back", retry_after_s=1))
            reason = _where(endpoint, session_id)
            await send({"type": "websocket.close", "code": 1012, "reason": reason})
        except OSError:
            raise
        except Exception:  # a bug of ours, as in `app`
            about = {"event": "failure", "model": model, "session": session_id}
            log.exception("a stream failed", extra=about)
            ending = "1011"
            counters.errors[model, TABLE[EngineFailure].code] += 1
            await _tell(send, EngineFailure("the service met an error of its own", retry_after_s=1))
            await send({"type": "websocket.close", "code": 1011})
        finally:
            task.cancel()
            self._tasks.discard(task)
            counters.streams_closed[model, ending] += 1
            if not self._tasks:
                self._none_left.set()

    async def stop(self) -> None:
        """Closes every stream with 1012, once it has answered what it was asked."""
        self.stopping = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await self._none_left.wait()


def _resume(scope: Scope) -> int | None:
    """The step whose reply the client misses first, if it says so: `?resume=n`. Raises InvalidValue."""
    given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("resume")
    if given is None:
        return None
    if not given[-1].isdecimal() or len(given[-1]) > MOST_DIGITS:
        raise InvalidValue(f"resume is {given[-1][:40]!r}, must be a step's number", field="resume")
    return int(given[-1])


async def _converse(
    endpoint: ModelEndpoint,
    session_id: str,
    site: Site,
    stream: Asked,
    resume: int | None,
    receive: Receive,
    send: Send,
) -> str:
    """Until the stream ends; how it did: the code it was closed with, or that its client left."""
    model, counters, watch = endpoint.bundle.name, site.counters, site.watch
    if resume is not None:
        close = await _repeat(endpoint, session_id, counters, resume, send)
        if close is not None:
            return str(close)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return CLIENT
        started, status, answer, refused = time.perf_counter(), 503, "", None
        asked = watch.message(stream)
        text = message.get("text")
        try:
            if text is None:
                raise BadRequest("a stream takes text frames with JSON in them, not binary ones")
            status, answer = await _answer(endpoint, session_id, counters, text.encode())
        except CellstateError as error:
            refused, status = error, TABLE[type(error)].status
        finally:  # also if the service stops meanwhile
            counters.observe(model, STREAM, status, time.perf_counter() - started)
        if refused is None:
            await send({"type": "websocket.send", "text": answer})
            watch.end(asked, MESSAGE, STREAM, model, session_id, status, started)
            continue
        watch.refused(refused, STREAM, model, session_id)
        close = await _tell_all(send, refused, endpoint, session_id, counters)
        watch.end(asked, MESSAGE, STREAM, model, session_id, status, started)
        if close is not None:
            return str(close)


async def _repeat(
    endpoint: ModelEndpoint, session_id: str, counters: RequestCounters, step: int, send: Send
) -> int | None:
    """Sends the replies from a step on that were given before; the code of the close if that ended it."""
    try:
        try:
            replies = await endpoint.manager.replies(session_id, step)
        except (Elsewhere, SessionNotFound):
            if step == 0:
                return None  # not opened yet; or where it is, each message finds out
            with insisting():
                replies = await endpoint.manager.replies(session_id, step)
        for reply in replies:
            await send({"type": "websocket.send", "text": (await endpoint.answer(reply)).decode()})
    except CellstateError as error:
        return await _tell_all(send, error, endpoint, session_id, counters)
    return None


async def _answer(
    endpoint: ModelEndpoint, session_id: str, counters: RequestCounters, text: bytes
) -> tuple[int, str]:
    """A message's reply, from the replica that has the session, and the status that HTTP has for it."""
    try:
        command = await endpoint.read_step(session_id, text)
        return HTTPStatus.OK, (await endpoint.answer(await endpoint.manager.step(command))).decode()
    except Elsewhere as error:
        if endpoint.peers is None:
            raise
        try:
            answer = await endpoint.peers.post(error.address, f"/sessions/{session_id}/steps", text)
        except PeerAway as away:
            if away.sent and command.step is None:
                raise unanswered() from None
            with insisting():
                command = await endpoint.read_step(session_id, text)
                reply = await endpoint.manager.step(command)
            return HTTPStatus.OK, (await endpoint.answer(reply)).decode()
        if answer.status == HTTPStatus.OK:
            return answer.status, answer.body.decode()
        counters.errors[endpoint.bundle.name, code_in(answer.status, answer.body)] += 1
        return answer.status, '{"error":' + answer.body.decode() + "}"


async def _tell_all(
    send: Send, error: CellstateError, endpoint: ModelEndpoint, session_id: str, counters: RequestCounters
) -> int | None:
    """Tells an error, and closes the stream if it must end; the code of the close, None if it goes on."""
    kind = TABLE[type(error)]
    counters.errors[endpoint.bundle.name, kind.code] += 1
    await _tell(send, error)
    if kind.close is not None:
        reason = _where(endpoint, session_id) if isinstance(error, Stopping) else ""
        await send({"type": "websocket.close", "code": kind.close, "reason": reason})
    return kind.close


def _where(endpoint: ModelEndpoint, session_id: str) -> str:
    """Where the session is, as the reason of a close; empty if that is not known here."""
    at = endpoint.manager.next_step(session_id)
    return "" if at is None else dumps({"next_step": at})


async def _tell(send: Send, error: CellstateError) -> None:
    await send({"type": "websocket.send", "text": dumps({"error": problem(error)})})
