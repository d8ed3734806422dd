"""What both drivers need: how a client is set up, and what the exceptions of httpx and websockets mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx

from service.client.effects import Closed, Connect, Exchange, Response
from service.client.errors import Fault
from service.client.redaction import guard

#: Before the request was sent
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
CONNECT_S = 5.0  #: for a connection to be made, at most
CLOSE_S = 0.5  #: for the closing handshake of a stream
PING_S = 20.0  #: between pings of an idle stream: they keep its way through proxies open


@dataclass(frozen=True, slots=True)
class Setup:
    """key: sent as a bearer token. connections: open at the same time, at most; the streams not counted.
    trust_env: proxies and certificates are taken from the environment."""

    key: str | None = field(repr=False)
    connections: int
    trust_env: bool

    def __post_init__(self) -> None:
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise ValueError("a key is of printable ASCII characters")
        guard("websockets.client", "httpx", "httpcore.connection", "httpcore.http11")
        if self.connections < 1:
            raise ValueError(f"connections must be 1 or more, not {self.connections}")

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"authorization": f"Bearer {self.key}"}

    def for_httpx(self) -> dict[str, Any]:
        """For httpx.Client and httpx.AsyncClient."""
        return {
            "headers": {"accept-encoding": "identity", **self.headers},
            "limits": httpx.Limits(
                max_connections=self.connections, max_keepalive_connections=self.connections
            ),
            "trust_env": self.trust_env,
        }

    def for_websockets(self, asked: Connect) -> dict[str, Any]:
        """For both connect of websockets. What is received is bounded by what was sent ahead, so the queue
        is not. A service that is busy with what was sent ahead is late with its pongs: no harm in it."""
        return {
            "additional_headers": {**self.headers, **asked.headers},
            "compression": None,
            "proxy": True if self.trust_env else None,
            "open_timeout": min(asked.timeout_s, CONNECT_S),
            "ping_interval": PING_S,
            "ping_timeout": None,
            "close_timeout": CLOSE_S,
            "max_size": None,
            "max_queue": None,
        }


def headers(asked: Exchange) -> dict[str, str]:
    """Of one request, beside those of all."""
    return {**asked.headers, "content-type": asked.media} if asked.body else dict(asked.headers)


def timeouts(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))


def no_response(error: BaseException) -> Fault:
    """What an exception of a request means."""
    executed = not isinstance(error, NOT_SENT)
    timed_out = isinstance(error, TimeoutError | httpx.TimeoutException)
    return Fault(_words(error), executed=executed, timed_out=timed_out)


def no_stream(error: BaseException) -> Fault:
    """What an exception of a stream's handshake means, other than a response."""
    return Fault(
        f"the stream could not be opened: {_words(error)}",
        executed=False,
        timed_out=isinstance(error, TimeoutError),
    )


def silence(timeout_s: float) -> Fault:
    return Fault(f"no answer within {timeout_s:.3g} s", executed=True, timed_out=True)


def response(answer: httpx.Response, body: bytes) -> Response:
    return Response(answer.status_code, body, {k.lower(): v for k, v in answer.headers.items()})


def refusal(answer: Any) -> Response:
    """The response of websockets to a handshake that failed."""
    headers = {k.lower(): v for k, v in answer.headers.raw_items()}
    return Response(answer.status_code, bytes(answer.body or b""), headers)


def closed(frame: Any) -> Closed:
    """What the close frame of websockets says, or that there was none."""
    return Closed(1006) if frame is None else Closed(frame.code, frame.reason)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
