"""The keys in front of an ASGI callable that knows nothing of them: the root application."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from service.api.access import EVERYBODY, NOBODY, Access, Identity, rule_of
from service.api.messages import Response
from service.api.problems import TABLE
from service.asgi import ASGI, Receive, Scope, Send
from service.errors import CellstateError


@dataclass(slots=True, frozen=True)
class Asker:
    """Who asked, and how it showed that: the replicas want to see it too."""

    identity: Identity = EVERYBODY
    authorization: bytes = b""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"authorization", self.authorization)] if self.authorization else []


_ANYBODY = Asker()
#: Of the request that is being answered
ASKER: ContextVar[Asker] = ContextVar("asker", default=_ANYBODY)


class Guard:
    """Lets through what the keys allow. All paths that are not known are for everybody: there is nothing."""

    def __init__(self, app: ASGI, access: Access, paths: frozenset[str]) -> None:
        self._app, self._access, self._paths = app, access, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._access.on:
            try:
                ASKER.set(self._asker(scope))
            except CellstateError as error:
                refusal = Response.of(error, TABLE[type(error)].status)
                await refusal.send(send, head=scope["method"] == "HEAD")
                return
        await self._app(scope, receive, send)

    def _asker(self, scope: Scope) -> Asker:
        rule = rule_of(scope["path"]) if scope["path"] in self._paths else "open"
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if rule == "open" or (rule == "page" and b"authorization" not in headers):
            return Asker(NOBODY)
        identity = self._access.identify(headers)
        identity.spend()
        if rule != "page":
            identity.check(rule, "")
        return Asker(identity, headers[b"authorization"])
