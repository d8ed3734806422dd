"""The histogram's promise: every quantile within its relative error, whatever the values, merged or not."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.generator.histogram import ERROR, LEAST, Histogram

values = st.lists(st.floats(LEAST, 1e5), min_size=1, max_size=300)
shares = st.floats(0, 1)


def exact(found: list[float], q: float) -> float:
    return sorted(found)[max(0, math.ceil(q * len(found)) - 1)]


@given(values, shares)
def test_a_quantile_is_within_the_error(found: list[float], q: float) -> None:
    assert Histogram(found).quantile(q) == pytest.approx(exact(found, q), rel=ERROR + 1e-9)


@given(values, values, shares)
def test_merged_is_as_if_recorded_in_one(one: list[float], other: list[float], q: float) -> None:
    merged = Histogram(one)
    merged.merge(Histogram(other))
    whole = Histogram(one + other)
    assert merged.quantile(q) == whole.quantile(q)
    assert (merged.count, merged.min, merged.max) == (whole.count, whole.min, whole.max)
    assert merged.total == pytest.approx(whole.total)


@given(values, st.lists(shares, max_size=9))
def test_it_comes_back_from_json(found: list[float], qs: list[float]) -> None:
    before = Histogram(found)
    after = Histogram.from_json(json.loads(json.dumps(before.to_json())))
    assert after.quantiles(qs) == before.quantiles(qs)
    assert after.mean == before.mean


@given(values)
def test_the_ends_are_exact_and_quantiles_do_not_fall(found: list[float]) -> None:
    histogram = Histogram(found)
    qs = histogram.quantiles([0, 0.1, 0.5, 0.9, 0.99, 1])
    assert (qs[0], qs[-1]) == (min(found), max(found))
    assert qs == sorted(qs)


def test_the_order_of_the_shares_does_not_matter() -> None:
    histogram = Histogram([1.0, 2.0, 4.0])
    assert histogram.quantiles([1, 0, 0.5]) == [histogram.quantile(q) for q in (1, 0, 0.5)]


def test_how_many_are_above() -> None:
    assert Histogram([0.001, 0.002, 0.5, 0.7]).above(0.1) == 2


def test_an_empty_one_has_zeros() -> None:
    assert Histogram().quantiles([0.5, 1]) == [0.0, 0.0]
    assert Histogram.from_json(Histogram().to_json()).count == 0


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="can't be recorded"):
        Histogram([math.nan])
    with pytest.raises(ValueError, match="from 0 to 1"):
        Histogram([1.0]).quantile(1.5)


def test_buckets_of_another_make_are_refused() -> None:
    facts = Histogram([1.0]).to_json() | {"growth": 1.5}
    with pytest.raises(ValueError, match="grow by"):
        Histogram.from_json(facts)
