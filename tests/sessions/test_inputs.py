"""Inputs: what is not a step of this model goes no further, and the error names its place."""

from __future__ import annotations

import numpy as np
import pytest

from model.config import ModelSpec, Signal
from service.errors import InvalidValue, TooLarge
from service.sessions.inputs import InputReader
from tests.engine.making import VOCABULARY, make_spec
from tests.sessions.making import make_rows

SERIES = make_spec()  # three inputs: mean 0, 10, 20 and std 1, 2, 3


def make_reader(task: str = "series", max_steps: int = 10) -> InputReader:
    return InputReader(make_spec(task), max_steps)


def test_rows_are_normalised_by_the_manifest() -> None:
    steps = make_reader().series([[0, 10, 20], [1, 12, 23], [-2.5, 5.0, 12.5]])
    assert len(steps) == 3
    assert steps.prepared.dtype == np.float32
    assert steps.prepared.tolist() == [[0, 0, 0], [1, 1, 1], [-2.5, -2.5, -2.5]]


def test_whole_numbers_and_their_floats_are_the_same_request() -> None:
    reader = make_reader()
    assert reader.series([[1, 12, 23]]).raw == reader.series([[1.0, 12.0, 23.0]]).raw
    assert reader.series([[1, 12, 23]]).raw != reader.series([[1, 12, 23.0000001]]).raw


def test_normalising_is_float64() -> None:
    """A large offset would cost float32 its digits."""
    spec = make_spec()
    row = [1e-9, 10 + 2e-9, 20 + 3e-9]
    np.testing.assert_allclose(InputReader(spec, 10).series([row]).prepared, 1e-9, rtol=1e-5)


def test_text_becomes_tokens() -> None:
    steps = make_reader("text").text("bad\n")
    assert steps.prepared.dtype == np.int64
    assert steps.prepared.tolist() == [VOCABULARY.index(c) for c in "bad\n"]
    assert steps.raw == steps.prepared.astype(np.int32).tobytes()


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([], "inputs"),
        ([[]], "inputs[0]"),
        ([[1, 2, 3], [1, 2]], "inputs[1]"),
        ([[1, 2, 3, 4]], "inputs[0]"),
        ([[1, 2, 3], [1, 1e300, 3]], "inputs[1][1]"),
        ([[-1.1e6, 10, 20]], "inputs[0][0]"),
        ([[0, 10, 20 + 3.1e6]], "inputs[0][2]"),
    ],
)
def test_a_bad_row_is_refused_by_its_place(rows: list[list[float]], field: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        make_reader().series(rows)
    assert raised.value.facts["field"] == field
    assert field in raised.value.detail


def test_the_largest_number_that_is_allowed_is_allowed() -> None:
    assert make_reader().series([[1e6, 10 - 2e6, 20]]).prepared.tolist() == [[1e6, -1e6, 0]]


@pytest.mark.parametrize("huge", [1.7e308, -1.7e308])
def test_a_number_that_overflows_when_it_is_normalised_is_refused(huge: float) -> None:
    """In silence: a client's number is nothing to warn the operator of."""
    architecture = make_spec(inputs=1).architecture
    signals = (Signal("small", std=1e-3),)
    reader = InputReader(ModelSpec(architecture, signals, signals), 10)
    with pytest.raises(InvalidValue) as raised:
        reader.series([[0.0], [huge]])
    assert raised.value.facts["field"] == "inputs[1][0]"


@pytest.mark.parametrize(
    ("text", "field"), [("", "text"), ("abz", "text[2]"), ("aé", "text[1]"), ("\0", "text[0]")]
)
def test_a_bad_character_is_refused_by_its_place(text: str, field: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        make_reader("text").text(text)
    assert raised.value.facts["field"] == field


def test_too_many_steps_are_refused_and_the_limit_itself_is_not() -> None:
    series, text = make_reader(), make_reader("text")
    assert len(series.series(make_rows(SERIES, 10))) == 10
    assert len(text.text("a" * 10)) == 10
    with pytest.raises(TooLarge) as raised:
        series.series(make_rows(SERIES, 11))
    assert raised.value.facts["limit"] == 10
    with pytest.raises(TooLarge):
        text.text("a" * 11)


def test_a_model_takes_its_own_kind() -> None:
    with pytest.raises(InvalidValue, match="takes inputs, not text"):
        make_reader().text("a")
    with pytest.raises(InvalidValue, match="takes text, not inputs"):
        make_reader("text").series([[1.0]])
