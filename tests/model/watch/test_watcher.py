"""What stands between a watch model's network and its clients: scale, distribution, judgement, carry."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from model.watch import judge, mixture, scale
from model.watch.detector import Detector, Reading, judged, watcher_of
from model.watch.rules import OUTPUTS, READS, SAYS, Rules
from model.watch.watcher import CARRY, Watcher, check_carry
from tests.model.making import make_bundle
from tests.model.watch.making import make_series, make_watch_bundle

HEAD = [0.5, -1.0, 0.2, 0.0, 3.0, -2.0, -0.5, 0.3, 1.0]
FINITE = st.floats(-1e30, 1e30)


def watched(values: list[float]) -> list[Reading]:
    detector = Detector(make_watch_bundle())
    return [detector.step(value) for value in values]


def test_series_side_by_side_have_the_scale_of_each_alone() -> None:
    values = np.stack([make_series(200, seed) for seed in range(3)], 1)
    values[60:80, 1] = values[60, 1]
    inputs, changes = scale.together(values)
    for b in range(3):
        kept = [0.0] * scale.SIZE
        for t in range(199):
            features, kept = scale.advance(kept, float(values[t, b]))
            np.testing.assert_allclose(inputs[t, b], features, rtol=1e-9)
            assert changes[t, b] == pytest.approx(scale.change_to(kept, float(values[t + 1, b])), rel=1e-9)


def test_a_series_in_other_units_gives_the_same_inputs() -> None:
    kept, other = [0.0] * scale.SIZE, [0.0] * scale.SIZE
    for value in make_series(300):
        features, kept = scale.advance(kept, value)
        scaled, other = scale.advance(other, value * 1e-3)
    np.testing.assert_allclose(features, scaled, rtol=1e-6)
    assert scale.value_at(kept, scale.change_to(kept, 1.2e6)) == pytest.approx(1.2e6)


def test_the_tails_are_the_density_summed() -> None:
    of, edges = mixture.parts(HEAD), torch.linspace(-60, 1.3, 200_001, dtype=torch.float64)
    density = mixture.log_density(torch.tensor(HEAD, dtype=torch.float64).expand(len(edges), -1), edges).exp()
    below, above = mixture.tails(of, 1.3)
    assert below == pytest.approx(float(torch.trapezoid(density, edges)), abs=1e-6)
    assert below + above == pytest.approx(1)
    for share in (0.01, 0.5, 0.99):
        assert mixture.tails(of, mixture.quantile(of, share))[0] == pytest.approx(share, abs=1e-5)


def test_the_quantiles_of_many_are_those_of_each() -> None:
    heads = np.random.default_rng(0).normal(0, 3, (50, SAYS))
    shares = (0.5, 0.01, 0.99)
    each = [[mixture.quantile(mixture.parts(head), share) for share in shares] for head in heads.tolist()]
    np.testing.assert_allclose(mixture.quantiles(heads, shares), each, atol=2e-6)


def test_a_score_is_the_decimals_of_what_is_as_far_out() -> None:
    assert judge.score_of(0.5, 0.5) == 0
    assert judge.score_of(0.9995, 0.0005) == judge.score_of(0.0005, 0.9995) == pytest.approx(3)
    assert math.isfinite(judge.score_of(0.0, 1.0))


def likelihoods(values: list[float], rules: Rules) -> list[float]:
    kept, told = [0.0] * judge.SIZE, []
    for seen, value in enumerate(values):
        likelihood, kept = judge.judge(rules, kept, seen, value, 0.1)
        told.append(likelihood)
    return told


def test_a_value_beyond_all_before_is_told_once_and_again_only_if_it_is_farther_still() -> None:
    rules = Rules(short=1, long=1, warm=20, hold=10, novel=0.05, forget=0)
    values = [float(k % 5) for k in range(40)]
    values[30], values[31], values[32] = 8.0, 8.0, 40.0
    told = likelihoods(values, rules)
    assert max(told[:30]) == 0
    assert told[30] == pytest.approx(1.0 / 1.05)  # 4 beyond a range of 4: a novelty of 1
    assert told[31] == 0
    assert told[32] > told[30]
    assert max(told[33:]) == 0


def test_what_was_seen_long_ago_is_new_again() -> None:
    values = [0.0, 10.0] + [4.0, 5.0] * 200 + [9.0]
    assert likelihoods(values, Rules(short=1, long=1, forget=0))[-1] == 0
    assert likelihoods(values, Rules(short=1, long=1, forget=0.01))[-1] > 0.9


def test_nothing_is_told_while_a_range_is_new() -> None:
    assert max(likelihoods([1.0] * 9 + [50.0], Rules(warm=10))) == 0
    assert likelihoods([1.0] * 10 + [50.0], Rules(warm=10))[-1] > 0.99


def test_a_series_in_pieces_is_the_series_in_one() -> None:
    bundle, values = make_watch_bundle(), make_series(300)
    one_by_one = watched(values)
    found = judged(watcher_of(bundle), bundle.network(), values)
    np.testing.assert_allclose(found, [(r.score, r.likelihood) for r in one_by_one], atol=1e-5)
    assert any(r.alarm for r in one_by_one[150:160])


def test_what_comes_later_changes_nothing() -> None:
    values = make_series(120)
    assert watched(values)[:60] == watched([*values[:60], *[0.0] * 60])[:60]


def test_the_expectation_lies_in_its_interval_and_the_memory_is_of_one_size() -> None:
    bundle = make_watch_bundle()
    watcher, carry = watcher_of(bundle), Watcher.fresh()
    for value in make_series(60):
        inputs, draft = watcher.before(carry, [value])
        assert inputs.shape == (1, READS)
        outputs, carry = watcher.after(draft, np.array([HEAD]))
        expected, low, high, score, likelihood = outputs[0]
        assert (len(outputs[0]), carry.shape) == (len(OUTPUTS), (CARRY,))
        assert low < expected < high
        assert score >= 0
        assert 0 <= likelihood <= 1
        check_carry(carry)


@given(st.lists(FINITE, min_size=1, max_size=40), st.lists(st.floats(-50, 50), min_size=SAYS, max_size=SAYS))
def test_whatever_comes_all_numbers_stay_finite(values: list[float], head: list[float]) -> None:
    watcher = Watcher(Rules(warm=1))
    inputs, draft = watcher.before(watcher.fresh(), values)
    outputs, carry = watcher.after(draft, np.array([head] * len(values)))
    assert np.isfinite(inputs).all()
    assert np.isfinite(outputs).all()
    check_carry(carry)


@pytest.mark.parametrize(("at", "value"), [(0, -1.0), (2, -1e-9), (4, -1.0), (7, math.nan), (7, 1e300)])
def test_a_carry_that_no_series_leads_to_is_refused(at: int, value: float) -> None:
    carry = Watcher.fresh()
    carry[at] = value
    with pytest.raises(ValueError, match=r"below 0|beyond"):
        check_carry(carry)
    with pytest.raises(ValueError, match="must have"):
        check_carry(np.zeros(3))


def test_what_is_no_number_and_what_is_no_watch_model_are_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        Detector(make_watch_bundle()).step(math.inf)
    with pytest.raises(DataError, match="series model"):
        Detector(make_bundle())
    with pytest.raises(ValueError, match=r"rules\.hold"):
        replace(Rules(), hold=0.0)
