"""Sizes, names and normalisation are checked where they are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.calendar import Calendar
from model.config import Architecture, ModelSpec, Signal
from model.network import Network, Scaler
from tests.model.making import make_spec


@pytest.mark.parametrize("task", ["series", "text"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_shapes_are_those_of_the_networks_weights(task: str, layers: int) -> None:
    spec = make_spec(task, layers=layers)
    weights = Network(spec).state_dict()
    assert {name: tuple(t.shape) for name, t in weights.items()} == spec.architecture.shapes()
    assert spec.architecture.parameters == sum(t.numel() for t in weights.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"leads": 2}, "one lead and no residual"), ({"residual": True}, "one lead and no residual")],
)
def test_a_text_model_predicts_the_next_character_only(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture("text", 2, 3, 1, 4, **options)  # type: ignore[arg-type]


def test_names_and_sizes_must_agree() -> None:
    a, b = Signal("a"), Signal("b")
    with pytest.raises(ValueError, match="1 inputs are named, the architecture has 2"):
        ModelSpec(Architecture("series", 2, 3, 1, 1), (a,), (a,))
    with pytest.raises(ValueError, match="outputs name a signal twice"):
        ModelSpec(Architecture("series", 2, 3, 1, 2), (a, b), (a, a))
    with pytest.raises(ValueError, match="needs every output among the inputs"):
        ModelSpec(Architecture("series", 1, 3, 1, 1, residual=True), (a,), (b,))


def test_a_time_is_an_input_that_is_read_as_its_calendar_and_never_an_output() -> None:
    spec = make_spec(inputs=2, residual=True, calendar=("day", "year"))
    assert spec.architecture.input_size == 6
    assert spec.columns == ("s0", "s1", "day sin", "day cos", "year sin", "year cos")
    assert (spec.time, spec.measured) == (spec.inputs[-1], spec.inputs[:-1])
    assert spec.output_columns == (0, 1)
    assert spec.closes_loop
    assert make_spec().time is None
    with pytest.raises(ValueError, match="3 inputs are named, the architecture with this calendar has 5"):
        replace(spec, calendar=Calendar(("day",), 1.0))
    with pytest.raises(ValueError, match="a text model has no calendar"):
        replace(make_spec("text"), calendar=Calendar(("day",), 1.0))


def test_the_loop_closes_if_the_outputs_are_all_the_inputs() -> None:
    a, b = Signal("a"), Signal("b")
    both = ModelSpec(Architecture("series", 2, 3, 1, 2), (a, b), (b, a))
    assert both.output_columns == (1, 0)
    assert both.closes_loop
    one = ModelSpec(Architecture("series", 2, 3, 1, 1), (a, b), (b,))
    assert one.output_columns == (1,)
    assert not one.closes_loop
    foreign = ModelSpec(Architecture("series", 1, 3, 1, 1), (a,), (b,))
    assert foreign.output_columns is None
    assert not foreign.closes_loop
    assert make_spec("text").closes_loop


def test_scaling_there_and_back_is_exact_to_float64() -> None:
    spec = make_spec(inputs=3)
    scaler = Scaler(spec)
    values = np.random.default_rng(0).normal(1e6, 1.0, (5, 3))
    normalised = scaler.normalise(values)
    np.testing.assert_allclose(normalised[:, 1], (values[:, 1] - 10.0) / 2.0)
    np.testing.assert_allclose(scaler.denormalise(normalised), values, rtol=1e-15)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantiles": (0.9, 0.1), "spread": 1}, "must rise"),
        ({"quantiles": (0.0,), "spread": 1}, "between 0 and 1"),
        ({"quantiles": "0.5", "spread": 1}, "between 0 and 1"),
        ({"quantiles": (0.5,)}, "need each other"),
        ({"spread": 1}, "need each other"),
        ({"rank": 4}, "to the 3 leads"),
        ({"rank": True}, "to the 3 leads"),
    ],
)
def test_quantiles_and_ranks_that_can_not_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture("series", 2, 4, 1, 2, 3, **fields)


def test_levels_come_back_from_json_as_they_were() -> None:
    arch = Architecture("series", 2, 4, 1, 2, 3, quantiles=[0.1, 0.9], spread=1)  # type: ignore[arg-type]
    assert arch.quantiles == (0.1, 0.9)
    assert arch.shapes()["spread.offsets"] == (2, 3, 2)
