"""Expiries: each session comes up once, at its second."""

from __future__ import annotations

import math

from service.sessions.expiries import Expiries
from service.sessions.session import Session
from service.sessions.window import ReplayWindow


def make_session(name: str) -> Session:
    return Session(name, 60.0, "none", ReplayWindow(16), opened_at=0.0, used_at=0.0)


def test_a_session_comes_up_when_its_second_is_over_and_once() -> None:
    expiries, (a, b, c) = Expiries(), map(make_session, "abc")
    expiries.add(b, 20.5)
    expiries.add(a, 10.0)
    expiries.add(c, 20.9)
    assert (len(expiries), expiries.first) == (3, 10.0)
    assert expiries.pop(9.99) == []
    assert expiries.pop(10.0) == [a]
    assert expiries.pop(20.99) == []
    assert expiries.pop(500.0) == [b, c]
    assert (len(expiries), expiries.first) == (0, math.inf)


def test_those_that_are_not_wanted_are_let_go_of() -> None:
    expiries, sessions = Expiries(), [make_session(str(n)) for n in range(9)]
    for n, session in enumerate(sessions):
        expiries.add(session, n / 2)
    expiries.keep(lambda session: session.id in "258")
    assert len(expiries) == 3
    assert [s.id for s in expiries.pop(100.0)] == ["2", "5", "8"]
    expiries.add(sessions[0], 3.0)
    assert expiries.pop(3.0) == [sessions[0]]
