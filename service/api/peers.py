"""The other replicas of a model: a request for a session that one of them owns is passed on to it, and a
session that is wanted here is asked for.

They know each other by a secret that is in their store; who does not know it finds nothing here.
"""

from __future__ import annotations

import hmac
import json
import logging
import ssl
import time
from collections.abc import Callable

import httpx

from service.api.access import NAMESPACE, Identity
from service.api.messages import Request, Response
from service.api.problems import code_in
from service.asked import PEER, Attributes, current_trace, new_span_id, onward
from service.logs import Repeated
from service.sessions.names import prefix_of

log = logging.getLogger("cellstate.api")

#: Whose session it is; believed with the secret alone
NAMESPACE_HEADER = b"x-cellstate-namespace"
#: Of a request's headers, those that are passed on
KEPT = (b"content-type", b"content-encoding")
CONNECT_S, RELEASE_S = 0.5, 2.0
#: Longest that a request passed on is waited for: an owner that is paused keeps its connections open
ANSWER_S = 10.0


class PeerAway(Exception):
    """The replica did not answer. sent: whether it may have done what was asked."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class Peers:
    """Of one model. secret: what the replicas of the store share. newest: the newest version of the
    model that this replica serves. verify: whom the others' certificates must be of."""

    def __init__(
        self, model: str, secret: Callable[[], str], newest: str = "", verify: ssl.SSLContext | bool = True
    ) -> None:
        self._model, self._secret, self._newest = model, secret, newest
        self.passed_on = 0  # requests
        self._away = Repeated(log)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=1000, max_keepalive_connections=100),
            trust_env=False,
            verify=verify,
        )

    def identity(self, request: Request) -> Identity | None:
        """Whose request another replica passed on, which has checked its key; None if none has."""
        given = request.header(PEER)
        if given is None:
            return None
        secret = self._secret().encode()
        if not secret or not hmac.compare_digest(given, secret):
            return None
        namespace = (request.header(NAMESPACE_HEADER) or b"").decode("latin-1")
        if namespace and not NAMESPACE.fullmatch(namespace):
            return None
        return Identity(prefix=prefix_of(namespace), peer=True)

    async def pass_on(self, address: str, request: Request) -> Response:
        """Another replica's answer to a request. Raises PeerAway."""
        path = request.scope["path"]
        headers = [(name, value) for name in KEPT if (value := request.header(name)) is not None]
        headers += _within(request.identity.namespace)
        return await self._ask(address, request.method, path, await request.body(), headers)

    async def post(self, address: str, path: str, body: bytes, namespace: str) -> Response:
        """Another replica's answer to a JSON body of somebody with that namespace, on a path below the
        model's. Raises PeerAway."""
        headers = [(b"content-type", b"application/json"), *_within(namespace)]
        return await self._ask(address, "POST", f"/v1/models/{self._model}{path}", body, headers)

    async def release(self, address: str, session_id: str) -> bool | None:
        """Asks a replica to let go of a session: whether it did; None if it did not say."""
        body = json.dumps({"session_id": session_id, "newest": self._newest}).encode()
        headers = [(PEER, self._secret().encode()), *onward()]
        try:
            answer = await self._client.post(
                f"{address}/v1/models/{self._model}/handover",
                content=body,
                headers=headers,
                timeout=httpx.Timeout(RELEASE_S, connect=CONNECT_S),
            )
        except httpx.HTTPError as error:
            about = {"event": "peer_away", "peer": address, "error": repr(error)}
            log.info("the owner of a session did not hand it over", extra=about | {"session": session_id})
            return None
        return answer.json() is True if answer.status_code == httpx.codes.OK else None

    async def _ask(
        self, address: str, method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> Response:
        headers.append((PEER, self._secret().encode()))
        trace, span_id, started = current_trace(), new_span_id(), time.perf_counter()
        headers += onward(span_id)
        try:
            answer = await self._client.request(method, address + path, content=body, headers=headers)
            if trace is not None:
                about: Attributes = {"peer": address, "status": answer.status_code}
                trace.add("pass on", started, time.perf_counter(), about, span_id)
        except httpx.HTTPError as error:
            if trace is not None:
                about = {"peer": address, "error": type(error).__name__}
                trace.add("pass on", started, time.perf_counter(), about, span_id)
            self._away.tell(
                address, logging.WARNING, "another replica did not answer", event="peer_away", peer=address
            )
            sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise PeerAway(f"the replica at {address} did not answer: {error!r}", sent=sent) from error
        if answer.status_code == httpx.codes.NOT_FOUND and code_in(404, answer.content) == "not_found":
            # By now a replica of another model has that address
            raise PeerAway(f"the replica at {address} is of another model", sent=False)
        self.passed_on += 1
        kept = tuple(
            (name.encode(), answer.headers[name].encode())
            for name in ("retry-after",)
            if name in answer.headers
        )
        return Response(answer.status_code, answer.content, answer.headers.get("content-type", ""), kept)

    async def close(self) -> None:
        await self._client.aclose()


def _within(namespace: str) -> list[tuple[bytes, bytes]]:
    return [(NAMESPACE_HEADER, namespace.encode())] if namespace else []
