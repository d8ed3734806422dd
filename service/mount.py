"""Where a replica's application is mounted: below its model's path, whichever way a request came in.

A front door may be behind the times: where a replica ended, one of another model may have taken its port, and
for a moment gets the requests that were meant for it. It must not say that there is no such model, which its
client would believe; it says that it is to be tried again.
"""

from __future__ import annotations

from service.api.messages import Response
from service.api.problems import TABLE, problem_json
from service.asgi import ASGI, Receive, Scope, Send
from service.errors import Unavailable

MODELS = "/v1/models/"


class Mount:
    """Gives an ASGI callable the full path and no mount point. prefix: /v1/models/<model>, or empty."""

    def __init__(self, app: ASGI, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
            return
        if scope.get("root_path"):
            scope["root_path"] = ""
        path, prefix = scope["path"], self._prefix
        if prefix and path != prefix and not path.startswith(prefix + "/"):
            if path.startswith(MODELS):
                await misdirected(scope, receive, send)
                return
            scope["path"] = prefix + path
        await self._app(scope, receive, send)


async def misdirected(scope: Scope, receive: Receive, send: Send) -> None:
    """503, or the end of a handshake with it: nothing was executed."""
    error = Unavailable(
        "the front door led to another model's replica; nothing was executed", retry_after_s=1
    )
    if scope["type"] != "websocket":
        await Response.of(error, TABLE[Unavailable].status).send(send, head=scope["method"] == "HEAD")
        return
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1013})  # try again later
        return
    headers = [(b"content-type", b"application/problem+json"), (b"retry-after", b"1")]
    await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": problem_json(error)})


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    # The replica's constructor starts the application: an error there reaches the user, one in the lifespan
    # is reported as "see the replica's logs".
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
