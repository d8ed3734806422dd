"""When the client waits, for how long, and when it gives up: with a clock that is told the time."""

from __future__ import annotations

import email.utils
import time

import pytest

from service.client import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    InvalidValue,
    NotFound,
    Refused,
    Retries,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    StepConflict,
    TooLarge,
    Unexpected,
)
from service.client.calls import SessionCalls
from service.client.effects import Exchange, Response
from service.client.errors import Fault
from tests.client.driving import Driver, facts, problem, reply, said

CUT = Fault("cut", executed=True)
SILENCE = Fault("no answer", executed=True, timed_out=True)
NOT_REACHED = Fault("refused", executed=False)


def step(driver: Driver, *answers: object, session_id: str = "s") -> SessionCalls:
    session = driver.run(driver.model.session(session_id, 0))
    driver.run(session.step([[1.0]], None, None, None, None), answers)
    return session


def test_the_waits_double_up_to_the_longest() -> None:
    driver = Driver()
    step(driver, *[CUT] * 6, said(200, reply()))
    assert driver.slept == [0.5, 1, 2, 4, 4, 4]


def test_the_waits_are_drawn_from_zero_on() -> None:
    driver = Driver(random=0.25)
    step(driver, CUT, CUT, said(200, reply()))
    assert driver.slept == [0.125, 0.25]


@pytest.mark.parametrize(
    "refusal",
    [
        said(503, None, retry_after="7"),
        problem(429, "no_capacity", retry_after_s=7),
        problem(503, "unavailable", retry_after_s=7),
    ],
)
def test_what_the_service_asks_to_wait_is_waited_in_full(refusal: Response) -> None:
    driver = Driver(random=0.5)
    step(driver, refusal, said(200, reply()))
    assert driver.slept == [7.25]


def test_a_date_to_wait_for() -> None:
    driver = Driver(random=0)
    step(driver, said(503, None, retry_after=email.utils.formatdate(time.time() + 20)), said(200, reply()))
    assert 15 < driver.slept[0] <= 20


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520])
@pytest.mark.parametrize("body", [b"", b"<html></html>", b"[]", b'{"code": 3}'])
def test_a_proxys_page_is_a_fault(status: int, body: bytes) -> None:
    driver = Driver()
    assert step(driver, Response(status, body), said(200, reply())).next_step == 1


@pytest.mark.parametrize(
    "answer",
    [
        Response(200, b""),
        Response(200, b"<html>"),
        said(200, []),
        said(200, {}),
        said(200, reply(step=3)),
        said(200, reply(count=2)),
        said(200, reply(session_id="another")),
        Response(409, b'{"status":', {"content-type": "application/problem+json"}),
    ],
)
def test_a_reply_to_something_else_is_none(answer: Response) -> None:
    driver = Driver()
    assert step(driver, answer, said(200, reply())).next_step == 1


def test_an_attempt_that_took_too_long_gets_more_time() -> None:
    driver = Driver()
    step(driver, (10, SILENCE), CUT, (20, SILENCE), said(200, reply()))
    assert [effect.timeout_s for effect in driver.of(Exchange)] == [10, 20, 20, 26.5]


def test_past_the_deadline_one_exception_tells_the_last_fault() -> None:
    driver = Driver(timeout_s=20)
    with pytest.raises(
        DeadlineExceeded, match="within 20 s, tried 2 times; the last fault: it is no_cap"
    ) as e:
        step(driver, (10, SILENCE), problem(429, "no_capacity", retry_after_s=30))
    assert (e.value.attempts, e.value.code, e.value.status, e.value.uncertain) == (
        2,
        "no_capacity",
        429,
        True,
    )
    assert driver.clock.now == 110.5  # a wait beyond the deadline is not begun


def test_the_last_fault_is_not_that_the_deadline_came() -> None:
    driver = Driver(timeout_s=1)
    with pytest.raises(DeadlineExceeded, match="tried 2 times; the last fault: cut"):
        step(driver, CUT, (0.5, SILENCE))


def test_without_a_deadline_it_goes_on() -> None:
    driver = Driver(timeout_s=None)
    assert step(driver, *[(100, SILENCE)] * 20, said(200, reply())).next_step == 1


def test_every_attempt_sends_the_same_bytes() -> None:
    driver = Driver()
    rows = [[1.0]]
    session = driver.run(driver.model.session("s", 4))
    call = session.step(rows, None, None, None, None)
    first = next(call)
    rows[0][0] = 9.0
    call.send(CUT)
    second = next(call)
    assert isinstance(first, Exchange)
    assert isinstance(second, Exchange)
    assert first.body == second.body == b'{"step":4,"inputs":[[1.0]]}'


LASTING: list[tuple[int, str, type[ClientError]]] = [
    (400, "bad_request", InvalidRequest),
    (401, "", Refused),
    (403, "", Refused),
    (404, "not_found", NotFound),
    (404, "session_not_found", SessionNotFound),
    (405, "method_not_allowed", InvalidRequest),
    (409, "step_conflict", StepConflict),
    (410, "session_expired", SessionExpired),
    (410, "session_lost", SessionLost),
    (413, "too_large", TooLarge),
    (415, "unsupported_media_type", InvalidRequest),
    (422, "invalid_value", InvalidValue),
    (302, "", Unexpected),
    (501, "", Unexpected),
]


@pytest.mark.parametrize(("status", "code", "kind"), LASTING)
def test_what_lasts_is_raised_at_once(status: int, code: str, kind: type[ClientError]) -> None:
    driver = Driver()
    with pytest.raises(ClientError) as raised:
        step(driver, CUT, problem(status, code, expected_step=3, field="inputs[0]", limit=5))
    error = raised.value
    assert (type(error), error.status, error.code) == (kind, status, code)
    assert (error.attempts, error.uncertain) == (2, True)
    assert error.problem["field"] == "inputs[0]"


def test_after_a_conflict_the_session_is_where_it_was() -> None:
    driver = Driver()
    session = driver.run(driver.model.session("s", 3))
    with pytest.raises(StepConflict) as raised:
        driver.run(
            session.step([[1.0]], None, None, None, None), [problem(409, "step_conflict", expected_step=9)]
        )
    assert raised.value.expected_step == 9
    assert session.next_step == 3


@pytest.mark.parametrize("doubt", [CUT, said(502), said(504), problem(504, "unavailable")])
def test_opening_again_finds_what_was_opened(doubt: object) -> None:
    driver = Driver()
    taken = problem(409, "session_exists")
    call = driver.model.open("mine", None, None)
    session = driver.run(call, [doubt, taken, said(200, facts(0, "mine"))])
    assert (session.id, session.next_step) == ("mine", 0)


@pytest.mark.parametrize(
    "answers",
    [
        [],  # at the first attempt it is somebody else's
        [NOT_REACHED],
        [problem(429, "no_capacity")],
        [problem(503, "unavailable")],
    ],
)
def test_an_id_that_was_taken_before_is_taken(answers: list[object]) -> None:
    driver = Driver()
    with pytest.raises(SessionExists):
        driver.run(driver.model.open("mine", None, None), [*answers, problem(409, "session_exists")])


@pytest.mark.parametrize("found", [said(200, facts(4)), problem(404, "session_not_found")])
def test_a_session_that_has_moved_is_not_the_one_just_opened(found: Response) -> None:
    driver = Driver()
    with pytest.raises(SessionExists):
        driver.run(driver.model.open("s", None, None), [CUT, problem(409, "session_exists"), found])


def test_a_fork_that_was_made_is_found() -> None:
    driver = Driver()
    session = driver.run(driver.model.session("s", 3))
    made = driver.run(
        driver.model.fork(session, None, None),
        [CUT, problem(409, "session_exists"), said(200, facts(3, "f"))],
    )
    assert (made.id, made.next_step) == ("f", 3)
    with pytest.raises(SessionExists):
        driver.run(
            driver.model.fork(session, "f", 2),
            [CUT, problem(409, "session_exists"), said(200, facts(3, "f"))],
        )


@pytest.mark.parametrize("gone", [problem(404, "session_not_found"), problem(410, "session_expired")])
def test_a_session_is_closed_once(gone: Response) -> None:
    driver = Driver()
    session = driver.run(driver.model.session("s", 3))
    driver.run(session.close(), [CUT, gone])
    for before in ([], [NOT_REACHED]):
        with pytest.raises((SessionNotFound, SessionExpired)):
            driver.run(session.close(), [*before, gone])


def test_rewinding_goes_on_from_there() -> None:
    driver = Driver()
    session = driver.run(driver.model.session("s", 9))
    driver.run(session.rewind(4), [CUT, said(200, facts(4))])
    assert session.next_step == 4
    assert [effect.body for effect in driver.of(Exchange)] == [b'{"to_step":4}'] * 2


@pytest.mark.parametrize("wrong", [{"attempt_timeout_s": 0}, {"max_delay_s": -1}, {"timeout_s": 0}])
def test_times_are_more_than_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Retries(**wrong)  # type: ignore[arg-type]
