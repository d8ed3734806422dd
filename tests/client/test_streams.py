"""What a stream makes of what it hears, by hand: also of a service that begins with the replies it has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.client import InvalidValue, Reply, SessionLost, Unexpected
from service.client.effects import Call, Closed, Connect, Disconnect, Receive, Send
from service.client.streaming import StreamCalls
from tests.client.driving import Driver, reply

CUT = Closed(1006)


class Talk:
    """A stream whose service says `heard`, one after the other; connecting and sending always work."""

    def __init__(self, *, resume: bool = False, next_step: int = 0) -> None:
        self.driver = Driver()
        self.session = self.driver.run(self.driver.model.session("s", next_step))
        self.stream = StreamCalls(self.session, 100, resume)

    def send(self, count: int) -> None:
        for _ in range(count):
            self._run(self.stream.send([[1.0]], None, None, None, None))

    def receive(self, *heard: object) -> Reply:
        reply = self._run(self.stream.receive(), *heard)
        assert isinstance(reply, Reply)
        return reply

    def _run(self, call: Call[object], *heard: object) -> object:
        left = list(heard)
        try:
            effect = next(call)
            while True:
                self.driver.effects.append(effect)
                effect = call.send(left.pop(0) if isinstance(effect, Receive) else None)
        except StopIteration as done:
            assert not left
            value: object = done.value
            return value

    @property
    def sent(self) -> list[int]:
        """The steps that went out."""
        return [json.loads(effect.text)["step"] for effect in self.driver.of(Send)]

    @property
    def asked(self) -> list[str]:
        return [effect.url.partition("/stream")[2] for effect in self.driver.of(Connect)]


def text(step: int, **more: Any) -> str:
    return json.dumps(reply(step, **more))


def error(status: int, code: str) -> str:
    return json.dumps({"error": {"status": status, "code": code, "detail": code}})


def test_what_has_no_reply_is_sent_again_in_order() -> None:
    talk = Talk()
    talk.send(3)
    assert talk.receive(text(0)).step == 0
    assert talk.receive(CUT, text(1, replayed=True)).attempts == 2
    assert talk.receive(text(2)).next_step == talk.session.next_step == 3
    assert talk.sent == [0, 1, 2, 1, 2]
    assert talk.asked == ["", ""]


def test_a_service_may_begin_with_the_replies_it_has() -> None:
    talk = Talk(resume=True, next_step=5)
    talk.send(4)
    assert talk.receive(text(5)).step == 5
    assert talk.receive(CUT, text(6, replayed=True)).replayed  # unasked
    assert talk.receive(text(7, replayed=True)).replayed
    again = [text(6, replayed=True), text(7, replayed=True)]  # the answers to what was sent again
    assert talk.receive(*again, text(8)).step == 8
    assert talk.asked == ["", "?resume=6"]
    assert talk.session.next_step == 9


def test_it_is_not_asked_for_replies_to_what_was_never_sent() -> None:
    talk = Talk(resume=True)
    talk.send(1)
    talk.receive(text(0))
    talk.stream._up = False
    talk.send(1)
    talk.receive(text(1))
    assert talk.asked == ["", ""]


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 1013])
def test_an_end_that_passes(code: int) -> None:
    talk = Talk()
    talk.send(1)
    assert talk.receive(Closed(code, "bye"), text(0)).attempts == 2
    assert len(talk.driver.slept) == 1


@pytest.mark.parametrize(
    "nonsense", ["", "<html>", "[]", "{}", text(7), text(0, session_id="else"), text(0, count=2)]
)
def test_what_is_no_reply_ends_the_socket(nonsense: str) -> None:
    talk = Talk()
    talk.send(1)
    assert talk.receive(nonsense, text(0)).attempts == 2
    assert len(talk.driver.of(Disconnect)) == 2


def test_a_lone_message_that_was_refused_in_passing_goes_out_again_on_the_same_socket() -> None:
    talk = Talk()
    talk.send(1)
    assert talk.receive(error(429, "no_capacity"), text(0)).attempts == 2
    assert talk.asked == [""]


def test_what_was_sent_behind_it_conflicts_so_the_socket_is_given_up() -> None:
    talk = Talk()
    talk.send(2)
    assert talk.receive(error(503, "engine_failure"), text(0)).attempts == 2
    assert talk.receive(text(1)).attempts == 2
    assert talk.asked == ["", ""]


def test_a_session_that_is_gone() -> None:
    talk = Talk()
    talk.send(2)
    with pytest.raises(SessionLost):
        talk.receive(error(410, "session_lost"))
    assert (talk.stream.outstanding, talk.session.ahead, talk.session.next_step) == (0, 0, 0)


def test_an_end_that_nobody_knows() -> None:
    talk = Talk()
    talk.send(1)
    with pytest.raises(Unexpected, match="4999: why"):
        talk.receive(Closed(4999, "why"))


def test_after_a_refusal_the_next_message_has_a_socket_of_its_own() -> None:
    talk = Talk()
    talk.send(3)
    with pytest.raises(InvalidValue):
        talk.receive(error(422, "invalid_value"))
    talk.send(1)
    assert talk.receive(text(0)).attempts == 1
    assert talk.sent == [0, 1, 2, 0]
    assert talk.asked == ["", ""]
