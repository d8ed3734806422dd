"""The benchmark's score, against the paper, a slow count, and the published figures of other detectors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from model.watch import nab
from model.watch.nab import Benchmark, Profile, Rows, Stream
from tests.model.making import SHARED_DATA

STANDARD = Profile("standard", 1.0, 0.11, 1.0)
LOW_FN = Profile("reward_low_FN_rate", 1.0, 0.11, 2.0)


def make_stream(rows: int = 100, *windows: tuple[int, int], name: str = "d/s.csv") -> Stream:
    return Stream(name, np.zeros(rows), windows)


@pytest.fixture(scope="module")
def benchmark_() -> Benchmark:
    if not (SHARED_DATA / "nab").exists():
        pytest.skip("the Numenta Anomaly Benchmark is not here")
    return nab.read(SHARED_DATA / "nab")


def test_an_alarm_is_worth_what_the_paper_says() -> None:
    worth, at = nab.gains(make_stream(100, (40, 59)), STANDARD)
    assert worth[40] == pytest.approx(1.0)  # 0.98661 of the sigmoid, as a share of itself
    assert worth[50] == pytest.approx((2 / (1 + math.exp(-2.5)) - 1) / 0.98661, abs=1e-4)
    assert worth[39] == -0.11  # before the first window: in full
    assert worth[59 + 19] == pytest.approx(-0.98661 * 0.11, abs=1e-5)  # a window's width behind it
    assert 0 > worth[60] > worth[61] > worth[62]
    assert (at[39], at[40], at[59], at[60]) == (-1, 0, 0, -1)


def test_of_the_alarms_in_a_window_the_earliest_counts_once() -> None:
    stream, scores = make_stream(100, (40, 59)), np.zeros(100)
    scores[[40, 41, 50]] = 1
    assert nab.score([stream], [scores], STANDARD).score == pytest.approx(100)


def test_no_alarm_scores_nothing_and_what_is_in_probation_costs_nothing() -> None:
    stream, scores = make_stream(100, (40, 59)), np.zeros(100)
    assert stream.probation == 15
    scores[:15] = 1
    found = nab.score([stream], [scores], STANDARD, threshold=0.5)
    assert (found.score, found.found, found.false) == (0.0, ((False,),), (0,))
    scores[15] = 1
    assert nab.score([stream], [scores], STANDARD, threshold=0.5).score < 0
    assert nab.score([stream], [scores], STANDARD).score == 0  # the best threshold is one above all


def test_probation_of_a_long_stream_ends_at_row_750() -> None:
    assert [nab.probation(rows) for rows in (100, 4032, 22_695)] == [15, 604, 750]


def test_a_missed_window_costs_twice_where_that_is_asked_for() -> None:
    stream, scores = make_stream(200, (60, 79), (120, 139)), np.zeros(200)
    scores[60] = 1
    assert nab.score([stream], [scores], STANDARD).score == pytest.approx(50)
    found = nab.score([stream], [scores], LOW_FN)
    assert found.score == pytest.approx(50)
    assert found.found == ((True, False),)


@given(st.integers(0, 2**32 - 1), st.sampled_from([STANDARD, LOW_FN]))
def test_no_other_threshold_is_better(seed: int, profile: Profile) -> None:
    rng = np.random.default_rng(seed)
    streams = [make_stream(60, (20, 29), (45, 50)), make_stream(40, (10, 15)), make_stream(30)]
    scores = [np.round(rng.random(len(s.values)), 1) for s in streams]
    best = nab.score(streams, scores, profile)
    others = [nab.score(streams, scores, profile, t / 10).score for t in range(12)]
    assert best.score == pytest.approx(max(others))


def test_scores_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="3 scores for 100 rows"):
        nab.score([make_stream(100)], [np.zeros(3)], STANDARD)


def test_a_directory_that_is_not_the_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="combined_windows"):
        nab.read(tmp_path)
    for folder in ("labels", "config", "results", "data"):
        (tmp_path / folder).mkdir()
    windows = {"s.csv": [["2020-01-01", "2020-01-03"]]}
    (tmp_path / "labels/combined_windows.json").write_text(json.dumps(windows))
    (tmp_path / "config/profiles.json").write_text("{}")
    (tmp_path / "data/s.csv").write_text("timestamp,value\n2020-01-01,1\n2020-01-02,2\n")
    with pytest.raises(DataError, match="begins or ends at no row"):
        nab.read(tmp_path)


def windowed_gaussian(values: Rows) -> Rows:
    """numenta/NAB's detector of that name: the tail of a Gaussian over the newest 6,400 values, moved on by
    100 at a time."""
    window, step = 6400, 100
    scores = np.zeros(len(values))
    total, squares = np.cumsum(values - values[0]), np.cumsum((values - values[0]) ** 2)
    for t in range(1, len(values)):
        end = t if t <= window else window + (t - window) // step * step
        start = max(0, end - window)
        n = end - start
        mean = (total[end - 1] - (total[start - 1] if start else 0.0)) / n
        square = (squares[end - 1] - (squares[start - 1] if start else 0.0)) / n
        std = math.sqrt(max(square - mean**2, 0.0)) or 1e-6
        z = abs(values[t] - values[0] - mean) / std
        scores[t] = 1 - 0.5 * math.erfc(z / math.sqrt(2))
    return np.round(scores, 12)  # the digits that its scores were stored with: near 1 they tie


def test_detectors_that_can_be_had_again_score_what_was_published(benchmark_: Benchmark) -> None:
    streams, published = benchmark_.streams, benchmark_.published
    gaussian = [windowed_gaussian(stream.values) for stream in streams]
    null = [np.full(len(stream.values), 0.5) for stream in streams]
    for profile in benchmark_.profiles:
        found = nab.score(streams, gaussian, profile).score
        assert found == pytest.approx(published["windowedGaussian"][profile.name], abs=0.01)
        assert nab.score(streams, null, profile).score == published["null"][profile.name] == 0


def test_the_benchmark_is_whole(benchmark_: Benchmark) -> None:
    assert len(benchmark_.streams) == 58
    assert sum(len(stream.windows) for stream in benchmark_.streams) == 116
    assert [p.name for p in benchmark_.profiles] == ["standard", "reward_low_FP_rate", "reward_low_FN_rate"]
