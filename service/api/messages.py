"""One HTTP request and its response, over ASGI."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.api.access import CHALLENGE, EVERYBODY, Identity
from service.api.problems import PROBLEM_TYPE, from_validation, problem_json
from service.api.whole import send_whole
from service.asgi import Message, Receive, Scope, Send
from service.errors import (
    BadRequest,
    CellstateError,
    NoCapacity,
    TooLarge,
    TooSlow,
    UnsupportedMediaType,
)

JSON = "application/json"
Headers = dict[bytes, bytes]
#: Bytes from which a body counts as large
LARGE = 64 * 1024
B = TypeVar("B", bound=BaseModel)


class ClientGone(Exception):
    """The client hung up before its request was whole; nobody waits for a response."""


@dataclass(slots=True)  # frozen would double the cost of making one
class Response:
    """What is sent back. `headers` beside content-type and content-length."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def of(cls, error: CellstateError, status: int) -> Response:
        """A problem; with Retry-After and Allow where the error knows them."""
        headers: list[tuple[bytes, bytes]] = []
        if "retry_after_s" in error.facts:
            headers.append((b"retry-after", str(error.facts["retry_after_s"]).encode()))
        if "allow" in error.facts:
            headers.append((b"allow", str(error.facts["allow"]).encode()))
        if status == HTTPStatus.UNAUTHORIZED:
            headers.append(CHALLENGE)
        return cls(status, problem_json(error), PROBLEM_TYPE, tuple(headers))

    async def send(self, send: Send, *, head: bool = False) -> None:
        """To the server; for a HEAD request without the body."""
        headers = [(b"content-length", b"%d" % len(self.body)), *self.headers]
        if self.body or self.status not in (204, 304):
            headers.append((b"content-type", self.content_type.encode()))
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        await send_whole(send, start, {"type": "http.response.body", "body": b"" if head else self.body})


class Intake:
    """What is taken in. requests: at a time. body: bytes of one. bodies: bytes of all large ones together.
    timeout_s: that a body may take to arrive when it did not come with its head."""

    def __init__(self, requests: int, body: int, bodies: int, timeout_s: float) -> None:
        self.requests, self.body, self.bodies, self.timeout_s = requests, body, bodies, timeout_s
        self.running = 0  # requests that are here
        self.held = 0  # bytes of large bodies that are here

    def hold(self, size: int) -> None:
        """Room for so many bytes. One body has it in any case. Raises NoCapacity."""
        if self.held and self.held + size > self.bodies:
            raise NoCapacity("as many bytes of large bodies are here as may be", retry_after_s=1)
        self.held += size


class Request:
    """A request whose body is read when it is asked for. session_id: as the path has it; names of sessions
    are made of it by `routes`. held: bytes of its body that count as large; whoever made the request gives
    them back to the intake."""

    __slots__ = (
        "_body",
        "_intake",
        "_limit",
        "_receive",
        "headers",
        "held",
        "identity",
        "method",
        "model",
        "scope",
        "session_id",
    )

    def __init__(
        self, scope: Scope, receive: Receive, intake: Intake, model: str, session_id: str, headers: Headers
    ) -> None:
        self.scope, self._receive, self._intake, self._limit = scope, receive, intake, intake.body
        self.held = 0
        self.headers, self.identity = headers, EVERYBODY
        self.method: str = scope["method"]
        self.model, self.session_id = model, session_id
        self._body: bytes | None = None  # once it was read

    def header(self, name: bytes) -> bytes | None:
        return self.headers.get(name)

    def of(self, identity: Identity) -> None:
        """From now on the request is known to be of that one."""
        self.identity = identity
        self._limit = min(self._limit, identity.body_bytes)

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge as soon as it is known to be, ClientGone if it breaks off."""
        if self._body is None:
            self._body = await self._read()
        return self._body

    async def _read(self) -> bytes:
        length = self.header(b"content-length")
        # Length first: int() refuses thousands of digits
        if length is not None and length.isdigit():
            if len(length) > 18 or int(length) > self._limit:
                raise self._too_large()
            self._hold(int(length))
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            whole: bytes = message.get("body", b"")
            if len(whole) > self._limit:
                raise self._too_large()
            return whole
        try:
            async with asyncio.timeout(self._intake.timeout_s):
                return await self._read_on(message)
        except TimeoutError:
            raise TooSlow("the body did not arrive in time; nothing was executed") from None

    async def _read_on(self, message: Message) -> bytes:
        parts: list[bytes] = []
        size = 0
        while message["type"] == "http.request":
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise self._too_large()
            self._hold(size)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()
        raise ClientGone

    def _hold(self, size: int) -> None:
        """The body is of so many bytes, or of more."""
        if size > LARGE and size > self.held:
            self._intake.hold(size - self.held)
            self.held = size

    async def json(self, schema: type[B], *, optional: bool = False) -> B:
        """The body, checked. `optional`: an empty body is as good as {}."""
        body = await self.json_bytes()
        if optional and not body:
            body = b"{}"
        return parse(schema, body)

    async def json_bytes(self) -> bytes:
        """The body, which says it is JSON or says nothing. Raises UnsupportedMediaType, TooLarge."""
        coding = self.header(b"content-encoding")
        if coding is not None and coding.strip().lower() not in (b"identity", b""):
            raise UnsupportedMediaType(
                f"the body must not be compressed, here: {coding.decode('latin-1')[:80]}"
            )
        kind = self.header(b"content-type")
        if kind is not None and kind != b"application/json":
            media = kind.partition(b";")[0].strip().lower()
            if media != b"application/json" and not media.endswith(b"+json"):
                raise UnsupportedMediaType(
                    f"the body must be application/json, not {media.decode('latin-1')[:80] or 'nothing'}"
                )
        return await self.body()

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._limit} bytes", limit=self._limit)


def parse(schema: type[B], body: bytes | str) -> B:
    """A JSON text, checked. Raises BadRequest or InvalidValue, naming the place."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    except (ValueError, OverflowError, RecursionError) as error:  # what the parser itself can't take
        raise BadRequest(f"the body is not valid JSON: {error}") from None
