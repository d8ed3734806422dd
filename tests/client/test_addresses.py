"""The direct address first, and the door as soon as that does not work."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from service.client.calls import SessionCalls
from service.client.effects import Closed, Connect, Exchange, Response, Sleep
from service.client.errors import Fault
from service.client.streaming import StreamCalls
from tests.client.driving import DIRECT, DOOR, Driver, facts, problem, reply, said

AWAY = Fault("refused", executed=False)


def opened(driver: Driver, direct_url: str = DIRECT) -> SessionCalls:
    session = driver.run(driver.model.open("s", None, None), [said(201, facts(0, "s", direct_url))])
    driver.effects.clear()
    return session


def step(driver: Driver, session: SessionCalls, *answers: object) -> None:
    driver.run(session.step([[1.0]], None, None, None, None), answers)


def hosts(driver: Driver) -> list[str]:
    """Where each request went, since the last time."""
    went = [urlsplit(e.url).hostname or "" for e in driver.effects if isinstance(e, Exchange | Connect)]
    driver.effects.clear()
    return went


def test_a_session_is_stepped_at_its_replica() -> None:
    driver = Driver()
    step(driver, opened(driver), said(200, reply()))
    assert hosts(driver) == ["replica"]


def test_or_not_if_so_wished() -> None:
    driver = Driver(direct=False)
    step(driver, opened(driver), said(200, reply()))
    assert hosts(driver) == ["door"]


@pytest.mark.parametrize(
    "answer",
    [
        AWAY,
        Fault("cut", executed=True),
        problem(503, "unavailable", retry_after_s=9),
        problem(404, "not_found"),  # another process has the port by now
        problem(404, "session_not_found"),
        said(200, {"hello": "world"}),
        Response(400, b"<html>"),
    ],
)
def test_back_to_the_door_at_once_and_for_some_seconds(answer: object) -> None:
    driver = Driver()
    session = opened(driver)
    step(driver, session, answer, said(200, reply(0)))
    assert not driver.of(Sleep)
    assert hosts(driver) == ["replica", "door"]
    step(driver, session, said(200, reply(1)))
    assert hosts(driver) == ["door"]
    driver.clock.now += 5
    step(driver, session, said(200, reply(2)))
    assert hosts(driver) == ["replica"]


def test_a_full_replica_is_waited_for() -> None:
    driver = Driver()
    step(driver, opened(driver), problem(429, "no_capacity", retry_after_s=1), said(200, reply()))
    assert hosts(driver) == ["replica", "replica"]


def test_a_session_that_moved_is_followed() -> None:
    driver = Driver()
    session = opened(driver)
    moved = said(200, reply(0), cellstate_direct_url="http://other:9000")
    step(driver, session, AWAY, moved)
    step(driver, session, said(200, reply(1), cellstate_direct_url=""))
    step(driver, session, said(200, reply(2)))
    assert hosts(driver) == ["replica", "door", "other", "door"]


@pytest.mark.parametrize("told", [DOOR, DOOR + "/", "", None, 3, "ftp://replica", "replica:9000"])
def test_what_is_no_other_address_is_not_used(told: object) -> None:
    addresses = Driver().model.caller.addresses
    assert addresses.usable(told) == ""


def test_what_goes_encrypted_to_the_door_never_goes_in_the_clear() -> None:
    from service.client.addresses import Addresses

    addresses = Addresses("https://door", direct=True, rest_s=5, clock=float)
    assert addresses.usable("http://replica:9000") == ""
    assert addresses.usable("https://replica:9000") == "https://replica:9000"


@pytest.mark.parametrize("wrong", ["door:8000", "ftp://door", "http://", ""])
def test_an_address_is_of_http(wrong: str) -> None:
    from service.client import Client

    with pytest.raises(ValueError, match="the address must be"):
        Client(wrong)


def test_a_stream_comes_back_through_the_door() -> None:
    import json

    driver = Driver()
    session = opened(driver)
    stream = StreamCalls(session, 8, False)
    text = json.dumps(reply(0))
    # disconnect, connect, send, receive: the close; disconnect, connect, send, receive
    driver.run(
        stream.step([[1.0]], None, None, None, None),
        [None, None, None, Closed(1012, '{"next_step": 0}'), None, None, None, text],
    )
    assert [effect.seconds for effect in driver.of(Sleep)] == [0.5]
    assert hosts(driver) == ["replica", "door"]
    driver.run(stream.close(), [None])


def test_a_stream_whose_replica_is_away_begins_at_the_door() -> None:
    import json

    driver = Driver()
    stream = StreamCalls(opened(driver), 8, False)
    answers = [None, AWAY, None, None, None, json.dumps(reply(0))]
    driver.run(stream.step([[1.0]], None, None, None, None), answers)
    assert not driver.of(Sleep)
    assert hosts(driver) == ["replica", "door"]
