"""A stream, as generators: messages sent ahead, replies in order, and a new socket whenever one breaks.

What has no reply is sent again on the new socket, numbered as before: what had been executed is answered from
the session's replay window, and what had not is executed.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence

from service.client.calls import SessionCalls, as_fault, strange
from service.client.effects import Call, Closed, Connect, Disconnect, Receive, Response, Send, Sleep
from service.client.errors import ClientError, Fault
from service.client.judging import TOO_BIG, judge, judge_close, judge_problem, read_object
from service.client.messages import Generate, Message, Reply, Rows, any_reply, message
from service.client.retries import Tries


class _Pending:
    """A message without a reply. attempts: how often it was sent."""

    __slots__ = ("attempts", "sent")

    def __init__(self, sent: Message) -> None:
        self.sent = sent
        self.attempts = 0


class StreamCalls:
    """One stream of a session. ahead: the most steps that are sent without a reply; they must be fewer than
    those that the service answers again (256 unless set otherwise). resume: on a new socket the service is
    asked for the replies it has, before the messages are sent again."""

    def __init__(self, session: SessionCalls, ahead: int, resume: bool) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be 1 or more, not {ahead}")
        self._session, self._most, self._resume = session, ahead, resume
        self._route = session.route
        self._request_id = secrets.token_hex(8)  # the same for every socket of it
        self._unanswered: deque[_Pending] = deque()
        self._ready: deque[Reply] = deque()
        self._out = 0  # of the unanswered, how many went out on this socket
        self._up = False
        self._one_by_one = False  # a message was too big for the service: which one is to be found out

    @property
    def outstanding(self) -> int:
        """Replies that are still to be received."""
        return len(self._unanswered) + len(self._ready)

    def send(
        self,
        inputs: Rows | None,
        text: str | None,
        horizon: int | None,
        returns: Sequence[str] | None,
        generate: Generate | None,
    ) -> Call[None]:
        tries = self._begin()
        number = self._unanswered[-1].sent.end if self._unanswered else self._session.next_step
        sent = message(number, inputs, text, horizon, returns, generate)
        while self._unanswered and sent.end - self._unanswered[0].sent.step > self._most:
            yield from self._hear(tries)
        self._unanswered.append(_Pending(sent))
        self._session.ahead += 1
        try:
            yield from self._pump(tries)
        except BaseException:
            if self._unanswered and self._unanswered[-1].sent is sent:
                self._unanswered.pop()
                self._session.ahead -= 1
            self._up = False  # it may be out, and its reply would come as if for another
            raise

    def receive(self) -> Call[Reply]:
        if self._ready:
            return self._ready.popleft()
        if not self._unanswered:
            raise RuntimeError("nothing was sent that has no reply yet")
        yield from self._hear(self._begin())
        return self._ready.popleft()

    def step(
        self,
        inputs: Rows | None,
        text: str | None,
        horizon: int | None,
        returns: Sequence[str] | None,
        generate: Generate | None,
    ) -> Call[Reply]:
        if self.outstanding:
            raise RuntimeError(f"{self.outstanding} replies are to be received first")
        try:
            yield from self.send(inputs, text, horizon, returns, generate)
            return (yield from self.receive())
        except BaseException:
            self._abandon()
            raise

    def close(self) -> Call[None]:
        self._abandon(keep_socket=True)
        yield Disconnect(politely=self._up)
        self._up = False

    # How

    def _begin(self) -> Tries:
        tries = self._session.model.caller.retries.begin()
        tries.attempts, tries.request_id = 1, self._request_id
        return tries

    def _hear(self, tries: Tries) -> Call[None]:
        """Until one reply more is ready."""
        before = len(self._ready)
        while len(self._ready) == before:
            yield from self._pump(tries)
            if len(self._ready) == before:
                yield from self._take(tries)

    def _pump(self, tries: Tries) -> Call[None]:
        """Sends what is not out yet, on a new socket if need be."""
        while True:
            if not self._up:
                yield from self._connect(tries)
            most = 1 if self._one_by_one else len(self._unanswered)
            if self._out >= min(most, len(self._unanswered)):
                return
            pending = self._unanswered[self._out]
            self._up = False  # until the frame is out as a whole: this may be broken off here
            pending.attempts += 1
            heard: Closed | Fault | None = yield Send(pending.sent.text, tries.patience())
            self._up = True
            if heard is None:
                self._out += 1
            elif isinstance(heard, Fault):
                yield from self._again(heard, tries)
            else:  # replies may have come before the end, or the reason of it
                yield from self._take(tries)

    def _connect(self, tries: Tries) -> Call[None]:
        headers = self._session.model.caller.headers(self._request_id)
        while True:
            yield Disconnect()
            self._out = 0
            heard: Response | Fault | None = yield Connect(self._url(), tries.patience(), headers)
            if heard is None:
                self._up = True
                return
            verdict = heard if isinstance(heard, Fault) else judge(heard)
            verdict = verdict or Fault("the handshake of the stream was not understood", executed=False)
            if not self._route.at_door and strange(verdict):
                self._route.failed()
                tries.note(as_fault(verdict))
                tries.attempts += 1
                continue
            if isinstance(verdict, ClientError):
                raise self._failed(verdict, tries)
            tries.note(verdict)
            tries.attempts += 1
            yield Sleep(tries.delay())

    def _url(self) -> str:
        url = self._route.pick().replace("http", "ws", 1) + self._session.path + "/stream"
        # Only of what went out before: a reply to this step may be to the inputs of an earlier, given up one
        if self._resume and self._unanswered and self._unanswered[0].attempts:
            url += f"?resume={self._unanswered[0].sent.step}"
        return url

    def _take(self, tries: Tries) -> Call[None]:
        """Hears one frame, or the end of the socket. A reply that is awaited is ready then."""
        heard: str | Closed | Fault = yield Receive(tries.patience())
        if isinstance(heard, str):
            yield from self._read(heard, tries)
            return
        verdict = heard if isinstance(heard, Fault) else judge_close(heard)
        if isinstance(heard, Closed) and heard.code == TOO_BIG and self._out > 1:
            self._one_by_one = True
            verdict = Fault(str(verdict), executed=True)
        if isinstance(verdict, ClientError):
            raise self._failed(verdict, tries)
        yield from self._again(verdict, tries)

    def _read(self, text: str, tries: Tries) -> Call[None]:
        try:
            value = read_object(text)
            problem = value.get("error")
            if problem is None:
                self._on_reply(any_reply(value, 1), tries)
                return
            verdict = judge_problem(int(problem["status"]), problem)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            yield from self._again(Fault(f"a message can't be read: {error}", executed=True), tries)
            return
        if isinstance(verdict, ClientError):
            raise self._failed(verdict, tries)
        if self._out == 1 and verdict.code != "unavailable":  # this alone was refused, and the socket is good
            tries.note(verdict)
            tries.attempts += 1
            self._out = 0
            yield Sleep(tries.delay())
        else:  # what was sent behind it conflicts now: begin anew
            yield from self._again(verdict, tries)

    def _on_reply(self, reply: Reply, tries: Tries) -> None:
        session = self._session
        if reply.session_id != session.id:
            raise ValueError(f"a reply of session {reply.session_id}")
        if reply.step < session.next_step:  # it was here before, on another socket
            return
        first = self._unanswered[0] if self._unanswered else None
        if first is None or (reply.step, reply.next_step) != (first.sent.step, first.sent.end):
            raise ValueError(f"a reply to steps {reply.step} to {reply.next_step - 1}, which were not sent")
        self._unanswered.popleft()
        self._out = max(0, self._out - 1)
        session.ahead -= 1
        session.next_step = reply.next_step
        tries.progress()
        self._ready.append(reply.sent(first.attempts))

    def _again(self, fault: Fault, tries: Tries) -> Call[None]:
        """After the end of a socket: the next one, in a short while, through the door."""
        tries.note(fault)
        tries.attempts += 1
        self._up = False
        self._route.failed()
        yield Sleep(tries.delay())

    def _failed(self, error: ClientError, tries: Tries) -> ClientError:
        """The oldest message was refused for good. What was sent behind it was not executed: its number does
        not follow. On this socket there are only conflicts to be heard now."""
        tries.sign(error)
        if self._unanswered:
            error.attempts = self._unanswered[0].attempts
        self._abandon()
        return error

    def _abandon(self, *, keep_socket: bool = False) -> None:
        self._session.ahead -= len(self._unanswered)
        self._unanswered.clear()
        self._out = 0
        self._one_by_one = False
        self._up = self._up and keep_socket
