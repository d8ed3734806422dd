"""A uvicorn of our own around an ASGI callable, inside an event loop that already runs.

Each replica opens one on a port of its own beside Ray's: a client that can reach it saves the front door.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterable

import uvicorn

from service.asgi import ASGI
from service.gate import SWEEP_S, Gate, GateConfig, GateProtocol
from service.settings import Settings


class PortTaken(RuntimeError):
    """No port asked for can be listened on. The message says which, and why."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # Signals are the business of whoever owns the process.
        yield


def bind(host: str, ports: Iterable[int]) -> socket.socket:
    """A listening socket on the first free port. Raises PortTaken when there is none."""
    reason: OSError | None = None
    tried = list(ports)
    for port in tried:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise PortTaken(f"host {host!r}: {error.strerror}") from error
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            listener.close()
            reason = error
        else:
            listener.setblocking(False)
            return listener
    which = f"port {tried[0]}" if len(tried) == 1 else f"each port of {tried[0]}-{tried[-1]}"
    raise PortTaken(f"{which} on {host}: {reason.strerror if reason else 'no port given'}")


def url(listener: socket.socket, host: str, scheme: str = "http") -> str:
    """The address of a listening socket, for clients that know this machine as `host`."""
    try:
        shown = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        shown = host
    return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def spare_descriptors() -> int:
    """How many connections this process can hold, beside its own files: half of what it may open."""
    return max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Listener:
    """Serves one ASGI callable on one listening socket, until `close`. Its lifespan is left to the caller.
    refused: where to count what the gate does not let in, by reason. arrived: told of what was read of a
    request, before its task runs."""

    def __init__(
        self,
        app: ASGI,
        listener: socket.socket,
        settings: Settings,
        refused: Counter[str] | None = None,
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = listener
        connections = min(settings.max_connections, spare_descriptors())
        self.gate = Gate(settings.max_requests, connections, settings.request_timeout_s, refused, arrived)
        self._server = _Server(
            GateConfig(
                app,
                gate=self.gate,
                loop="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                ssl_certfile=settings.tls_cert or None,
                ssl_keyfile=settings.tls_key or None,
                server_header=False,
                proxy_headers=False,  # nobody here asks who the client is
                # Above the idle time of the usual connection pools: they close first, so that no request
                # meets a connection that is being closed here.
                timeout_keep_alive=90,
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
                ws_max_size=settings.max_body_bytes,
                # A pong stands behind what its client has sent ahead, however long that takes to be stepped
                ws_ping_timeout=None,
                backlog=2048,
            )
        )
        self._task: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Starts to answer, in the running loop."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._server.serve(sockets=[self._socket]))
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Ends the connections that hold a place with a request that does not come."""
        loop = asyncio.get_running_loop()
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, GateProtocol):
                connection.end_if_stuck(loop.time())
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    async def close(self) -> None:
        """Takes no more connections and waits for the requests that run, `drain_s` at most."""
        self._server.should_exit = True
        self.gate.let_go()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._task is not None:
            await self._task
            self._task = None
        self._socket.close()
