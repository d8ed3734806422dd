"""The table from errors to the wire is whole, and says one thing by one code."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from service.api.advice import ADVICE
from service.api.messages import Response
from service.api.problems import MAX_PLACE, TABLE, from_validation, path, problem, problem_json
from service.api.schemas import StepBody
from service.errors import (
    BadRequest,
    CellstateError,
    Elsewhere,
    InvalidValue,
    Moving,
    NoCapacity,
    StepConflict,
    Stopping,
    Unavailable,
)


def tree(root: type[CellstateError]) -> Iterator[type[CellstateError]]:
    """A class and all below it."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


ERRORS = list(tree(CellstateError))


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_a_row(error: type[CellstateError]) -> None:
    assert error in TABLE


@pytest.mark.parametrize("error", ERRORS)
def test_a_row_is_an_error_status_and_a_close_code_that_may_be_sent(error: type[CellstateError]) -> None:
    kind = TABLE[error]
    assert 400 <= kind.status <= 504
    assert kind.close in (None, 1008, 1011, 1012) or 4000 <= kind.close <= 4999


def test_a_code_has_one_meaning() -> None:
    by_code: dict[str, set[tuple[int, str]]] = {}
    for kind in TABLE.values():
        by_code.setdefault(kind.code, set()).add((kind.status, kind.title))
    assert [code for code, meanings in by_code.items() if len(meanings) > 1] == []
    shared = {e for e in TABLE if sum(kind.code == TABLE[e].code for kind in TABLE.values()) > 1}
    # The root is what is left, and may be tried again; who is told that a session is elsewhere may as well
    assert shared == {CellstateError, Unavailable, Stopping, Moving, Elsewhere}


def test_every_code_has_advice_and_none_is_invented() -> None:
    assert set(ADVICE) == {kind.code for kind in TABLE.values()}
    assert all(happened and do for happened, do in ADVICE.values())


def test_a_problem_carries_the_facts() -> None:
    error = StepConflict("step 9 is ahead; the next step is 3", expected_step=3)
    assert problem(error) == json.loads(problem_json(error))
    assert problem(error) == {
        "type": "/docs#step_conflict",
        "title": "The step does not follow",
        "status": 409,
        "detail": "step 9 is ahead; the next step is 3",
        "code": "step_conflict",
        "expected_step": 3,
    }


def test_retry_after_is_a_header_too() -> None:
    response = Response.of(NoCapacity("full", retry_after_s=7), 429)
    assert (b"retry-after", b"7") in response.headers


@pytest.mark.parametrize(
    ("loc", "text"),
    [
        ((), ""),
        (("inputs",), "inputs"),
        (("inputs", 0, 3), "inputs[0][3]"),
        (("requests", 2, "inputs", 0), "requests[2].inputs[0]"),
        (("generate", "top_k"), "generate.top_k"),
    ],
)
def test_a_place_reads_like_code(loc: tuple[int | str, ...], text: str) -> None:
    assert path(loc) == text


def refused(body: str) -> BadRequest:
    with pytest.raises(ValidationError) as caught:
        StepBody.model_validate_json(body)
    return from_validation(caught.value)


def test_the_first_place_is_named_and_the_others_counted() -> None:
    error = refused('{"inputs": [[1]], "step": -1, "horizon": 0}')
    assert isinstance(error, InvalidValue)
    assert error.facts["field"] == "horizon"
    assert "(and 1 more)" in error.detail


def test_what_is_not_json_is_not_a_value() -> None:
    assert type(refused('{"inputs": [[1]')) is BadRequest


def test_a_name_of_the_clients_making_is_not_repeated_at_length() -> None:
    error = refused(json.dumps({"x" * 10_000: 1}))
    assert len(error.detail) < 2 * MAX_PLACE
    assert error.facts["field"] == "x" * MAX_PLACE


def test_a_list_of_errors_ends_at_the_first() -> None:
    error = refused('{"inputs": [[' + "null," * 10_000 + "null]]}")
    assert error.facts["field"] == "inputs[0][0]"
    assert "more)" not in error.detail
