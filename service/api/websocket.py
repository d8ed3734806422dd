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

from service.api.access import CHALLENGE, EVERYBODY, PROTOCOL, Identity
from service.api.endpoint import ModelEndpoint, check_session_id
from service.api.peers import PeerAway
from service.api.problems import PROBLEM_TYPE, TABLE, code_in, problem, problem_json, without
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
    TooLarge,
    Unauthorized,
)
from service.sessions.counters import RequestCounters
from service.sessions.custody import insisting
from service.sessions.names import namespace_of, prefix_of

log = logging.getLogger("cellstate.api")

#: How a stream ended if not by a code of ours: its client left. How it did, uvicorn does not say for sure.
CLIENT = "client"
MESSAGE = "MESSAGE"  # in place of a method
MOST_DIGITS = 16  # of a step's number


class Streams:
    """The open streams of a process, so that a stop can close them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._tasks: dict[asyncio.Task[str], tuple[Identity, str]] = {}  # whose, and of which model
        self._revoked: set[asyncio.Task[str]] = set()
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
        counters, protocols = site.counters, tuple(scope.get("subprotocols", ()))
        identity = EVERYBODY
        if site.access.on:
            try:
                identity = site.access.identify(stream.headers, protocols)
                identity.check("client", model)
            except CellstateError as error:
                _count(site, model, error)
                self._watch.refused(error, STREAM, model if model in site.endpoints else "")
                await _deny(scope, send, error)
                return
        protocol = PROTOCOL if PROTOCOL in protocols else None
        headers = [(REQUEST_ID, stream.id.encode())]
        await send({"type": "websocket.accept", "subprotocol": protocol, "headers": headers})
        try:
            endpoint = site.endpoint(model)
            check_session_id(session_id)
            resume = _resume(scope)
        except CellstateError as error:
            _count(site, model, error)
            await _tell(send, error)
            await send({"type": "websocket.close", "code": 4404})
            return
        name = identity.prefix + session_id
        task = asyncio.ensure_future(
            _converse(endpoint, identity, session_id, site, stream, resume, receive, send)
        )
        self._tasks[task] = identity, model
        counters.streams_opened[model] += 1
        ending = CLIENT
        try:
            ending = await task
        except asyncio.CancelledError:
            if task in self._revoked:
                ending = str(TABLE[Unauthorized].close)
                counters.errors[model, TABLE[Unauthorized].code] += 1
                gone = Unauthorized("the key was taken away, or is not for this any more")
                await _tell(send, gone)
                await send({"type": "websocket.close", "code": TABLE[Unauthorized].close})
                return
            if not self.stopping:
                raise
            ending = "1012"
            counters.errors[model, TABLE[Stopping].code] += 1
            await _tell(send, Stopping("the service is stopping; come back", retry_after_s=1))
            reason = _where(endpoint, name)
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
            del self._tasks[task]
            self._revoked.discard(task)
            counters.streams_closed[model, ending] += 1
            if not self._tasks:
                self._none_left.set()

    def recheck(self) -> None:
        """Closes the streams whose keys are known no more, or not for them, with 1008."""
        for task, (identity, model) in self._tasks.items():
            if identity.revoked or not identity.may_stream(model):
                self._revoked.add(task)
                task.cancel()

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


def _count(site: Site, model: str, error: CellstateError) -> None:
    """Counts a stream that did not begin."""
    kind, known = TABLE[type(error)], model if model in site.endpoints else ""
    site.counters.observe(known, STREAM, kind.status, 0.0)
    site.counters.errors[known, kind.code] += 1


async def _deny(scope: Scope, send: Send, error: CellstateError) -> None:
    """Refuses a handshake, with the reason where the server can tell it."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": TABLE[type(error)].close})
        return
    status, body = TABLE[type(error)].status, problem_json(error)
    headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", b"%d" % len(body))]
    if isinstance(error, Unauthorized):
        headers.append(CHALLENGE)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _converse(
    endpoint: ModelEndpoint,
    identity: Identity,
    session_id: str,
    site: Site,
    stream: Asked,
    resume: int | None,
    receive: Receive,
    send: Send,
) -> str:
    """Until the stream ends; how it did: the code it was closed with, or that its client left."""
    model, counters, watch = endpoint.bundle.name, site.counters, site.watch
    name = identity.prefix + session_id
    if resume is not None:
        close = await _repeat(endpoint, name, counters, resume, send)
        if close is not None:
            return str(close)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return CLIENT
        if wait_s := identity.pace():
            await asyncio.sleep(wait_s)  # what is sent ahead waits in the socket, as behind a step
        started, status, answer, refused = time.perf_counter(), 503, "", None
        asked = watch.message(stream)
        text = message.get("text")
        try:
            if text is None:
                raise BadRequest("a stream takes text frames with JSON in them, not binary ones")
            content = text.encode()
            if len(content) > identity.body_bytes:
                most = identity.body_bytes
                raise TooLarge(f"the message is larger than {most} bytes", limit=most)
            status, answer = await _answer(endpoint, identity, session_id, counters, content)
        except CellstateError as error:
            refused, status = without(identity.prefix, error), TABLE[type(error)].status
        finally:  # also if the service stops meanwhile
            counters.observe(model, STREAM, status, time.perf_counter() - started)
        if refused is None:
            await send({"type": "websocket.send", "text": answer})
            watch.end(asked, MESSAGE, STREAM, model, session_id, status, started)
            continue
        watch.refused(refused, STREAM, model, session_id)
        close = await _tell_all(send, refused, endpoint, name, counters)
        watch.end(asked, MESSAGE, STREAM, model, session_id, status, started)
        if close is not None:
            return str(close)


async def _repeat(
    endpoint: ModelEndpoint, name: str, counters: RequestCounters, step: int, send: Send
) -> int | None:
    """Sends the replies from a step on that were given before; the code of the close if that ended it."""
    try:
        try:
            replies = await endpoint.manager.replies(name, step)
        except (Elsewhere, SessionNotFound):
            if step == 0:
                return None  # not opened yet; or where it is, each message finds out
            with insisting():
                replies = await endpoint.manager.replies(name, step)
        for reply in replies:
            await send({"type": "websocket.send", "text": (await endpoint.answer(reply)).decode()})
    except CellstateError as error:
        told = without(prefix_of(namespace_of(name)), error)
        return await _tell_all(send, told, endpoint, name, counters)
    return None


async def _answer(
    endpoint: ModelEndpoint, identity: Identity, session_id: str, counters: RequestCounters, text: bytes
) -> tuple[int, str]:
    """A message's reply, from the replica that has the session, and the status that HTTP has for it."""
    name = identity.prefix + session_id
    try:
        command = await endpoint.read_step(name, text)
        return HTTPStatus.OK, (await endpoint.answer(await endpoint.manager.step(command))).decode()
    except Elsewhere as error:
        if endpoint.peers is None:
            raise
        try:
            answer = await endpoint.peers.post(
                error.address, f"/sessions/{session_id}/steps", text, identity.namespace
            )
        except PeerAway as away:
            if away.sent and command.step is None:
                raise unanswered() from None
            with insisting():
                command = await endpoint.read_step(name, text)
                reply = await endpoint.manager.step(command)
            return HTTPStatus.OK, (await endpoint.answer(reply)).decode()
        if answer.status == HTTPStatus.OK:
            return answer.status, answer.body.decode()
        counters.errors[endpoint.bundle.name, code_in(answer.status, answer.body)] += 1
        return answer.status, '{"error":' + answer.body.decode() + "}"


async def _tell_all(
    send: Send, error: CellstateError, endpoint: ModelEndpoint, name: str, counters: RequestCounters
) -> int | None:
    """Tells an error, and closes the stream if it must end; the code of the close, None if it goes on."""
    kind = TABLE[type(error)]
    counters.errors[endpoint.bundle.name, kind.code] += 1
    await _tell(send, error)
    if kind.close is not None:
        reason = _where(endpoint, name) if isinstance(error, Stopping) else ""
        await send({"type": "websocket.close", "code": kind.close, "reason": reason})
    return kind.close


def _where(endpoint: ModelEndpoint, name: str) -> str:
    """Where the session is, as the reason of a close; empty if that is not known here."""
    at = endpoint.manager.next_step(name)
    return "" if at is None else dumps({"next_step": at})


async def _tell(send: Send, error: CellstateError) -> None:
    await send({"type": "websocket.send", "text": dumps({"error": problem(error)})})
