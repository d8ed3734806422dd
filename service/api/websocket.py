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
from service.api.problems import TABLE, problem
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
from service.sessions.custody import insisting

log = logging.getLogger("cellstate.api")

MOST_DIGITS = 16  # of a step's number


class Streams:
    """The open streams of a process, so that a stop can close them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._tasks: set[asyncio.Task[None]] = set()
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
        try:
            endpoint = site.endpoint(model)
            check_session_id(session_id)
            resume = _resume(scope)
        except CellstateError as error:
            await _tell(send, error)
            await send({"type": "websocket.close", "code": 4404})
            return
        task = asyncio.ensure_future(self._converse(endpoint, session_id, resume, stream, receive, send))
        self._tasks.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            await _tell(send, Stopping("the service is stopping; come back", retry_after_s=1))
            reason = _where(endpoint, session_id)
            await send({"type": "websocket.close", "code": 1012, "reason": reason})
        except OSError:
            raise
        except Exception:  # a bug of ours, as in `app`
            about = {"event": "failure", "model": model, "session": session_id}
            log.exception("a stream failed", extra=about)
            await _tell(send, EngineFailure("the service met an error of its own", retry_after_s=1))
            await send({"type": "websocket.close", "code": 1011})
        finally:
            task.cancel()
            self._tasks.discard(task)
            if not self._tasks:
                self._none_left.set()

    async def _converse(
        self,
        endpoint: ModelEndpoint,
        session_id: str,
        resume: int | None,
        stream: Asked,
        receive: Receive,
        send: Send,
    ) -> None:
        watch, model = self._watch, endpoint.bundle.name
        if resume is not None and not await _repeat(endpoint, session_id, resume, send):
            return
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            started, asked = time.perf_counter(), watch.message(stream)
            text, status = message.get("text"), 200
            try:
                if text is None:
                    raise BadRequest("a stream takes text frames with JSON in them, not binary ones")
                answer = await _answer(endpoint, session_id, text.encode())
            except CellstateError as error:
                status = TABLE[type(error)].status
                watch.refused(error, STREAM, model, session_id)
                if not await _went_on(send, error, endpoint, session_id):
                    return
            else:
                await send({"type": "websocket.send", "text": answer})
            watch.end(asked, "MESSAGE", STREAM, model, session_id, status, started)

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


async def _repeat(endpoint: ModelEndpoint, session_id: str, step: int, send: Send) -> bool:
    """Sends the replies from a step on that were given before; whether the stream goes on."""
    try:
        try:
            replies = await endpoint.manager.replies(session_id, step)
        except (Elsewhere, SessionNotFound):
            if step == 0:
                return True  # not opened yet; or where it is, each message finds out
            with insisting():
                replies = await endpoint.manager.replies(session_id, step)
        for reply in replies:
            await send({"type": "websocket.send", "text": (await endpoint.answer(reply)).decode()})
    except CellstateError as error:
        return await _went_on(send, error, endpoint, session_id)
    return True


async def _answer(endpoint: ModelEndpoint, session_id: str, text: bytes) -> str:
    """A message's reply, from the replica that has the session."""
    try:
        command = await endpoint.read_step(session_id, text)
        return (await endpoint.answer(await endpoint.manager.step(command))).decode()
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
            return (await endpoint.answer(reply)).decode()
        if answer.status == HTTPStatus.OK:
            return answer.body.decode()
        return '{"error":' + answer.body.decode() + "}"


async def _went_on(send: Send, error: CellstateError, endpoint: ModelEndpoint, session_id: str) -> bool:
    """Tells an error, and closes the stream if it must end; whether it goes on."""
    await _tell(send, error)
    close = TABLE[type(error)].close
    if close is not None:
        reason = _where(endpoint, session_id) if isinstance(error, Stopping) else ""
        await send({"type": "websocket.close", "code": close, "reason": reason})
    return close is None


def _where(endpoint: ModelEndpoint, session_id: str) -> str:
    """Where the session is, as the reason of a close; empty if that is not known here."""
    at = endpoint.manager.next_step(session_id)
    return "" if at is None else dumps({"next_step": at})


async def _tell(send: Send, error: CellstateError) -> None:
    await send({"type": "websocket.send", "text": dumps({"error": problem(error)})})
