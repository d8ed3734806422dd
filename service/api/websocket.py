"""The stream: each message a body of /steps, each reply as its reply, in order.

One message at a time: the steps of a session are one after the other anyway, and what a client sends ahead
waits in its socket, which is all the back-pressure that is needed.
"""

from __future__ import annotations

import asyncio
import logging

from service.api.endpoint import ModelEndpoint, check_session_id
from service.api.problems import TABLE, problem
from service.api.render import dumps
from service.api.routes import Site
from service.asgi import Receive, Send
from service.errors import BadRequest, CellstateError, EngineFailure, Stopping

log = logging.getLogger("cellstate.api")


class Streams:
    """The open streams of a process, so that a stop can close them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._none_left = asyncio.Event()
        self.stopping = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def serve(self, site: Site, model: str, session_id: str, receive: Receive, send: Send) -> None:
        """Serves one stream until its client leaves, its session is gone, or the service stops."""
        try:
            await self._serve(site, model, session_id, receive, send)
        except OSError:  # of the socket: the client left before its reply; a retry of the step gets it
            log.debug("a stream's client left", exc_info=True)

    async def _serve(self, site: Site, model: str, session_id: str, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        try:
            endpoint = site.endpoint(model)
            check_session_id(session_id)
        except CellstateError as error:
            await _tell(send, error)
            await send({"type": "websocket.close", "code": 4404})
            return
        task = asyncio.ensure_future(_converse(endpoint, session_id, receive, send))
        self._tasks.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            await _tell(send, Stopping("the service is stopping; come back", retry_after_s=1))
            await send({"type": "websocket.close", "code": 1012})
        except OSError:
            raise
        except Exception:  # a bug of ours, as in `app`
            log.exception("a stream failed")
            await _tell(send, EngineFailure("the service met an error of its own", retry_after_s=1))
            await send({"type": "websocket.close", "code": 1011})
        finally:
            task.cancel()
            self._tasks.discard(task)
            if not self._tasks:
                self._none_left.set()

    async def stop(self) -> None:
        """Closes every stream with 1012, once it has answered what it was asked."""
        self.stopping = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await self._none_left.wait()


async def _converse(endpoint: ModelEndpoint, session_id: str, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        try:
            if text is None:
                raise BadRequest("a stream takes text frames with JSON in them, not binary ones")
            command = await endpoint.read_step(session_id, text.encode())
            answer = (await endpoint.answer(await endpoint.manager.step(command))).decode()
        except CellstateError as error:
            await _tell(send, error)
            close = TABLE[type(error)].close
            if close is not None:
                await send({"type": "websocket.close", "code": close})
                return
        else:
            await send({"type": "websocket.send", "text": answer})


async def _tell(send: Send, error: CellstateError) -> None:
    await send({"type": "websocket.send", "text": dumps({"error": problem(error)})})
