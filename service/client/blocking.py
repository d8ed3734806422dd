"""The client for programs with threads. All logic is in the generators; this performs their effects."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from service.client import transport
from service.client.bulk import Item, Result, bulk
from service.client.calls import Caller, Facts, ModelCalls, SessionCalls
from service.client.effects import (
    Call,
    Connect,
    Disconnect,
    Effect,
    Exchange,
    Receive,
    Response,
    Send,
    Sleep,
)
from service.client.errors import Fault
from service.client.messages import Generate, Prediction, Reply, Rows
from service.client.retries import Retries
from service.client.streaming import StreamCalls

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

T = TypeVar("T")
WRITE_MS = 15_000  #: after which a stream's socket whose peer takes nothing is given up


def _run(call: Call[T], perform: Callable[[Effect], Any]) -> T:
    try:
        effect = next(call)
        while True:
            effect = call.send(perform(effect))
    except StopIteration as done:
        value: T = done.value
        return value
    finally:
        call.close()  # at once, wherever it was broken off


class Client:
    """A service at `url`. Threads may share it; the calls of one session run one after the other.

    timeout_s: for a whole call, its retries included; None: for ever. key: sent as a bearer token. direct:
    use the own address of a session's replica where it has one. connections: open at the same time at most.
    retries: how often and how long to wait for what. trust_env: proxies are taken from the environment.
    traceparent: gives the W3C traceparent of whoever calls, if there is one; it is sent along.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float | None = 60.0,
        key: str | None = None,
        direct: bool = True,
        connections: int = 1000,
        retries: Retries | None = None,
        direct_rest_s: float = 5.0,
        trust_env: bool = True,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        self._setup = transport.Setup(key, connections, trust_env)
        retries = replace(retries or Retries(), timeout_s=timeout_s)
        self._caller = Caller(url, retries, direct=direct, rest_s=direct_rest_s, traceparent=traceparent)
        self._http = httpx.Client(**self._setup.for_httpx())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections. The sessions stay open."""
        self._http.close()

    def model(self, name: str) -> Model:
        """One model. Nothing is sent."""
        return Model(self, ModelCalls(self._caller, name))

    def run(self, call: Call[T]) -> T:
        """Performs what a call asks for, until it has its result."""
        return _run(call, self._perform)

    def stream_options(self, effect: Connect) -> dict[str, Any]:
        """For a stream's socket."""
        return self._setup.for_websockets(effect)

    def _perform(self, effect: Effect) -> Response | Fault | None:
        if isinstance(effect, Exchange):
            return self._exchange(effect)
        assert isinstance(effect, Sleep)  # noqa: S101  streams perform the rest
        time.sleep(effect.seconds)
        return None

    def _exchange(self, request: Exchange) -> Response | Fault:
        end = time.monotonic() + request.timeout_s
        parts = []
        try:
            with self._http.stream(
                request.method,
                request.url,
                content=request.body or None,
                headers=transport.headers(request),
                timeout=transport.timeouts(request.timeout_s),
            ) as answer:
                for part in answer.iter_raw():
                    parts.append(part)
                    if time.monotonic() > end:  # a trickle: each part came in time, and the whole does not
                        return transport.silence(request.timeout_s)
        except httpx.RequestError as error:
            return transport.no_response(error)
        return transport.response(answer, b"".join(parts))


class Model:
    """One model of a service."""

    def __init__(self, client: Client, calls: ModelCalls) -> None:
        self._client, self._calls = client, calls

    @property
    def name(self) -> str:
        return self._calls.name

    def facts(self) -> Facts:
        """Its task, inputs and outputs by name and unit, version, quality."""
        return self._client.run(self._calls.facts())

    def predict(
        self,
        inputs: Rows | None = None,
        *,
        text: str | None = None,
        horizon: int | None = None,
        generate: Generate | None = None,
    ) -> Prediction:
        """Outputs of a whole sequence, without a session."""
        return self._client.run(self._calls.predict(inputs, text, horizon, generate))

    def open(
        self, session_id: str | None = None, *, ttl_s: float | None = None, durability: str | None = None
    ) -> Session:
        """Opens a session at step 0. Raises SessionExists if the id is taken."""
        return Session(self._client, self._client.run(self._calls.open(session_id, ttl_s, durability)))

    def session(self, session_id: str, next_step: int | None = 0) -> Session:
        """A session to go on with, at the step that is next. None: where the service says. 0: begins it, or
        repeats its beginning; nothing is sent before the first step."""
        return Session(self._client, self._client.run(self._calls.session(session_id, next_step)))

    def steps(self, items: Iterable[Item | tuple[Session, Rows]]) -> list[Result]:
        """The next steps of many sessions in one request, each session once: pairs of a session and its
        inputs, or what `Session.item` makes. A reply or an error for each, in order; what failed in passing
        was tried again alone. Not to be mixed with other calls to these sessions at the same time."""
        whole = [each if isinstance(each, Item) else each[0].item(each[1]) for each in items]
        return self._client.run(bulk(self._calls, whole))


class Session:
    """One session. next_step: the next one to be sent; after a StepConflict it may be set, to go on."""

    def __init__(self, client: Client, calls: SessionCalls) -> None:
        self._client, self._calls = client, calls
        self._turn = threading.Lock()

    @property
    def id(self) -> str:
        return self._calls.id

    @property
    def next_step(self) -> int:
        return self._calls.next_step

    @next_step.setter
    def next_step(self, step: int) -> None:
        self._calls.next_step = step

    def step(
        self,
        inputs: Rows | None = None,
        *,
        text: str | None = None,
        horizon: int | None = None,
        returns: Sequence[str] | None = None,
        generate: Generate | None = None,
    ) -> Reply:
        """The next steps. After an exception `next_step` has not moved: the same call with the same inputs
        is answered rightly, whatever became of this one."""
        with self._turn:
            return self._client.run(self._calls.step(inputs, text, horizon, returns, generate))

    def stream(self, *, ahead: int = 64, resume: bool = False) -> Stream:
        """A WebSocket for this session's steps; see Stream."""
        return Stream(self._client, self._turn, StreamCalls(self._calls, ahead, resume))

    def facts(self) -> Facts:
        """Its next step at the service, time to live, durability, place. Moves nothing here."""
        with self._turn:
            return self._client.run(self._calls.facts())

    def state(self) -> bytes:
        """A snapshot: safetensors of h and c, layers×hidden each."""
        with self._turn:
            return self._client.run(self._calls.state())

    def put_state(self, snapshot: bytes) -> Facts:
        """Puts the session where the snapshot was taken."""
        with self._turn:
            return self._client.run(self._calls.put_state(snapshot))

    def fork(self, session_id: str | None = None, *, at_step: int | None = None) -> Session:
        """A new session from this one's state; before `at_step`, if given."""
        with self._turn:
            return Session(
                self._client, self._client.run(self._calls.model.fork(self._calls, session_id, at_step))
            )

    def rewind(self, step: int) -> Facts:
        """Puts the session back to where `step` is the next."""
        with self._turn:
            return self._client.run(self._calls.rewind(step))

    def close(self) -> None:
        """Ends the session."""
        with self._turn:
            self._client.run(self._calls.close())

    def item(
        self,
        inputs: Rows | None = None,
        *,
        text: str | None = None,
        horizon: int | None = None,
        returns: Sequence[str] | None = None,
        generate: Generate | None = None,
    ) -> Item:
        """Its next steps as an item for `Model.steps`."""
        return Item(self._calls, inputs, text, horizon, returns, generate)


class Stream:
    """A WebSocket for the steps of one session, for one thread. It is opened by the first message, and again
    by itself whenever it breaks.

    `step` sends and waits for the reply. `send` and `receive` apart send ahead, `ahead` steps at most: then
    `send` waits for replies first. If a message is refused for good, that is raised by whichever hears of it,
    and what was sent behind it was not executed. Receive all replies before the end: those that are left are
    not counted in the session's `next_step`, and their steps may have been executed.

    resume: a new socket begins with the replies that the service has to what is sent again. Only for a
    session that nobody else steps: such replies are not checked against the inputs.
    """

    def __init__(self, client: Client, turn: threading.Lock, calls: StreamCalls) -> None:
        self._client, self._turn, self._calls = client, turn, calls
        self._socket: ClientConnection | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def outstanding(self) -> int:
        """Replies that are still to be received."""
        return self._calls.outstanding

    def step(
        self,
        inputs: Rows | None = None,
        *,
        text: str | None = None,
        horizon: int | None = None,
        returns: Sequence[str] | None = None,
        generate: Generate | None = None,
    ) -> Reply:
        """The next steps, as `Session.step`."""
        return self._run(self._calls.step(inputs, text, horizon, returns, generate))

    def send(
        self,
        inputs: Rows | None = None,
        *,
        text: str | None = None,
        horizon: int | None = None,
        returns: Sequence[str] | None = None,
        generate: Generate | None = None,
    ) -> None:
        """Sends the next steps, and does not wait for their reply."""
        self._run(self._calls.send(inputs, text, horizon, returns, generate))

    def receive(self) -> Reply:
        """The next reply, in the order of what was sent."""
        return self._run(self._calls.receive())

    def close(self) -> None:
        """Ends the socket. The session stays open."""
        self._run(self._calls.close())

    def _run(self, call: Call[T]) -> T:
        with self._turn:
            return _run(call, self._perform)

    def _perform(self, effect: Effect) -> object:
        from websockets.exceptions import ConnectionClosed

        match effect:
            case Connect():
                return self._connect(effect)
            case Disconnect():
                self._disconnect(effect)
                return None
            case Sleep():
                time.sleep(effect.seconds)
                return None
        assert self._socket is not None  # noqa: S101  a call connects first
        assert isinstance(effect, Send | Receive)  # noqa: S101  there is nothing else
        try:
            if isinstance(effect, Receive):
                return self._socket.recv(effect.timeout_s)
            self._socket.send(effect.text)  # its time is the socket's own: see _connect
        except ConnectionClosed as error:
            return transport.closed(error.rcvd)
        except TimeoutError:
            return transport.silence(effect.timeout_s)
        return None

    def _connect(self, effect: Connect) -> Response | Fault | None:
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        try:
            # Entered, as newer versions of the library demand; closed in _disconnect
            self._socket = connect(effect.url, **self._client.stream_options(effect)).__enter__()
        except InvalidStatus as error:
            return transport.refusal(error.response)
        except (OSError, EOFError, WebSocketException) as error:
            return transport.no_stream(error)
        # Else a write to a peer that is no more could take minutes. It may have closed the socket already
        with contextlib.suppress(OSError, AttributeError):
            self._socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, WRITE_MS)
        return None

    def _disconnect(self, effect: Disconnect) -> None:
        connection, self._socket = self._socket, None
        if connection is None:
            return
        if not effect.politely:
            connection.close_socket()  # a broken one would not take part in a closing handshake
        connection.close()
