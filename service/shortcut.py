"""The short way through a replica: past Ray's wrapper, straight to the application.

Ray wraps each request in a task, a metadata record, metrics and a semaphore, which costs more than a step of
the model. Serve takes middlewares by the name of a function (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH) and
puts them around the wrapper; this one answers itself what is the application's and leaves Ray's own paths
(/-/healthz, /-/routes) to Ray. Ray does not see these requests: autoscaling goes by what replicas report
(`occupancy.py`), not by Ray's count of ongoing ones.
"""

from __future__ import annotations

import asyncio

from starlette.middleware import Middleware

from service.asgi import ASGI, Receive, Scope, Send

IMPORT_PATH = "service.shortcut:middlewares"


class _Target:
    """What this process serves. Ray's processes that serve nothing import this module too."""

    app: ASGI | None = None
    loop: asyncio.AbstractEventLoop | None = None


def serve(app: ASGI | None) -> None:
    """From now on this process's requests go straight to `app`, which lives in the running loop."""
    _Target.app, _Target.loop = app, asyncio.get_running_loop()


class Shortcut:
    """ASGI middleware around Ray's wrapper."""

    def __init__(self, app: ASGI) -> None:
        self._ray = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = _Target.app
        # Ray may run its server in another thread's loop than the replica's; then there is no short way.
        if app is None or scope["path"].startswith("/-/") or _Target.loop is not asyncio.get_running_loop():
            app = self._ray
        await app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve calls."""
    return [Middleware(Shortcut)]
