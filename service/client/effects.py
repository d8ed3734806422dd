"""What the client's logic asks of the world, and what it hears back.

The logic is generators: each yields effects, is sent what came of them, and returns the result of a call. A
driver performs the effects, one blocking, one on an event loop; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.client.errors import Fault

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request and its response. Brings a Response, or a Fault if there was none."""

    method: str
    url: str
    body: bytes
    media: str
    timeout_s: float
    headers: Mapping[str, str] = field(default_factory=dict)  # beside those of every request


@dataclass(frozen=True, slots=True)
class Sleep:
    """Brings None, after that time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Connect:
    """Opens the socket of a stream. Brings None, a Fault, or the Response of a server that would not."""

    url: str
    timeout_s: float
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Send:
    """One text frame into the socket. Brings None, Closed or a Fault."""

    text: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Receive:
    """The next text frame. Brings it, Closed, or a Fault."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Closes the socket, if there is one. Brings None. politely: with the closing handshake."""

    politely: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """A whole HTTP response. Names of headers are in lower case."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Closed:
    """The other side closed the socket."""

    code: int
    reason: str = ""


Effect = Exchange | Sleep | Connect | Send | Receive | Disconnect
Call = Generator[Effect, Any, T]


def exchange(request: Exchange) -> Call[Response | Fault]:
    heard: Response | Fault = yield request
    return heard
