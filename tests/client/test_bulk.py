"""Many sessions in one request, of which some fail."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.client import ClientError, DeadlineExceeded, InvalidValue, NotFound, Reply
from service.client.bulk import Item, bulk
from service.client.calls import SessionCalls
from service.client.effects import Exchange, Response
from service.client.errors import Fault
from tests.client.driving import Driver, problem, reply, said


def sessions(driver: Driver, count: int) -> list[SessionCalls]:
    return [driver.run(driver.model.session(f"s{n}", 0)) for n in range(count)]


def items(each: list[SessionCalls]) -> list[Item]:
    return [Item(session, [[1.0]], None, None, None, None) for session in each]


def results(*each: object) -> Response:
    return said(200, {"results": list(each)})


def failed(status: int, code: str, **facts: object) -> dict[str, Any]:
    return {"error": json.loads(problem(status, code, **facts).body)}


def asked(driver: Driver) -> list[list[str]]:
    """The sessions of each request."""
    bodies = [json.loads(effect.body) for effect in driver.of(Exchange)]
    return [[request["session_id"] for request in body["requests"]] for body in bodies]


def test_what_failed_in_passing_is_sent_again_alone() -> None:
    driver = Driver()
    each = sessions(driver, 4)
    first = results(
        reply(session_id="s0"),
        failed(429, "no_capacity", retry_after_s=3),
        failed(422, "invalid_value"),
        failed(503, "unavailable", retry_after_s=1),
    )
    second = results(reply(session_id="s1"), {"what": "is this"})
    said_at_last = driver.run(
        bulk(driver.model, items(each)), [first, second, results(reply(session_id="s3"))]
    )
    assert asked(driver) == [["s0", "s1", "s2", "s3"], ["s1", "s3"], ["s3"]]
    assert [type(one) for one in said_at_last] == [Reply, Reply, InvalidValue, Reply]
    assert [one.attempts for one in said_at_last] == [1, 2, 1, 3]
    assert driver.slept == [3.5, 0.5]  # the longest that was asked for; then a first fault again
    assert [session.next_step for session in each] == [1, 1, 0, 1]


def test_at_the_deadline_what_has_a_reply_keeps_it() -> None:
    driver = Driver(timeout_s=5)
    each = sessions(driver, 2)
    answer = results(reply(session_id="s0"), failed(429, "no_capacity", retry_after_s=9))
    done = driver.run(bulk(driver.model, items(each)), [answer])
    assert [type(one) for one in done] == [Reply, DeadlineExceeded]
    assert [session.next_step for session in each] == [1, 0]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(problem(404, "not_found"), NotFound), ((60, Fault("away", executed=False)), DeadlineExceeded)],
)
def test_what_fails_as_a_whole_is_raised(answer: object, kind: type[ClientError]) -> None:
    driver = Driver()
    with pytest.raises(kind):
        driver.run(bulk(driver.model, items(sessions(driver, 2))), [answer])


def test_too_many_for_one_request_go_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.bulk.MOST", 5)
    driver = Driver()
    each = sessions(driver, 6)
    replies = [reply(session_id=session.id) for session in each]
    done = driver.run(bulk(driver.model, items(each)), [results(*replies[:5]), results(replies[5])])
    assert [len(request) for request in asked(driver)] == [5, 1]
    assert all(isinstance(one, Reply) for one in done)
