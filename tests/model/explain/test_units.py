"""Time constants by their formula, and which units are chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from model.explain.activations import Observation, observe
from model.explain.units import (
    LONGEST,
    UNITS_SHOWN,
    bias_time_constants,
    choose,
    followers,
    shown_layers,
    time_constants,
)
from model.lstm import StackedLSTM


def make_observation(layers: int = 1, hidden: int = 40, features: int = 2, seed: int = 0) -> Observation:
    torch.manual_seed(seed)
    share = torch.zeros(3, layers, hidden)
    return Observation(
        steps=100,
        log_forget=-torch.rand(layers, hidden, dtype=torch.float64),
        closed=share,
        opened=share,
        cell_std=torch.rand(layers, hidden),
        output_std=torch.rand(layers, hidden),
        largest=torch.ones(layers, hidden),
        correlation=torch.rand(features, layers, hidden) - 0.5,
        kept=torch.zeros(6, layers, 1, hidden),
        states=(),
    )


@pytest.mark.parametrize("f", [1e-6, 0.5, 0.9, 0.999])
def test_a_constant_gate_has_the_time_constant_of_its_formula(f: float) -> None:
    """Through an LSTM whose forget gates are all f: exp(-k / tau) is f^k."""
    lstm = StackedLSTM(1, 2, 1)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        lstm.layer(0)[2][2:4] = math.log(f / (1 - f))
    seen = observe(lstm, torch.zeros(50, 1), 10, range(40, 50), (), torch.ones(50, 1))
    tau = time_constants(seen.log_forget)
    torch.testing.assert_close(tau, torch.full_like(tau, -1 / math.log(f)), rtol=1e-4, atol=0)
    torch.testing.assert_close(bias_time_constants(lstm.layer(0)[2].detach()), tau[0], rtol=1e-4, atol=0)
    assert math.exp(-7 / tau[0, 0].item()) == pytest.approx(f**7, rel=1e-2)


def test_a_gate_that_never_closes_has_the_longest_time_constant() -> None:
    assert time_constants(torch.tensor([0.0, -1e-30])).tolist() == pytest.approx([LONGEST] * 2)


def test_the_layers_shown_are_first_last_and_some_between() -> None:
    assert [shown_layers(n) for n in (1, 2, 4, 7, 100)] == [
        [0],
        [0, 1],
        [0, 1, 2, 3],
        [0, 2, 4, 6],
        [0, 33, 66, 99],
    ]


@pytest.mark.parametrize(("layers", "hidden"), [(1, 40), (3, 40), (9, 40), (1, 1), (2, 3)])
def test_units_are_chosen_once_each_and_the_slowest_of_a_layer_first(layers: int, hidden: int) -> None:
    seen = make_observation(layers, hidden)
    tau = time_constants(seen.log_forget)
    units = choose(seen)
    assert 0 < len(units) <= UNITS_SHOWN
    assert len({u.place for u in units}) == len(units)
    for before, after in pairwise(units):
        assert before.layer < after.layer or tau[before.place] >= tau[after.place]


def test_the_slowest_unit_that_moves_is_chosen_and_a_dead_one_is_not() -> None:
    seen = make_observation()
    seen.log_forget[0, 3], seen.cell_std[0, 3] = -1e-6, 0.0  # slow, but dead
    seen.output_std[0, 3] = 0.0
    seen.log_forget[0, 8], seen.cell_std[0, 8] = -1e-4, 1.0
    seen.output_std[0, 21] = 5.0
    reasons = {u.index: u.reason for u in choose(seen)}
    assert reasons[8] == "slow"
    assert 21 in reasons
    assert 3 not in reasons


def test_followers_name_each_unit_once_the_closest_first() -> None:
    seen = make_observation(layers=2, features=3)
    r = torch.zeros(3, 2, 40)
    r[0, 1, 7], r[1, 1, 7], r[2, 0, 4] = 0.6, -0.9, 0.7
    found = followers(replace(seen, correlation=r), ("a", "b", "c"))
    assert [(f.feature, f.unit.place, round(f.r, 3)) for f in found] == [
        ("b", (1, 7), -0.9),
        ("c", (0, 4), 0.7),
    ]
    assert found[0].unit.name == "L2 u7"
