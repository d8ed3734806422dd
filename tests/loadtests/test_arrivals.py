"""When requests are due."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pvariance

import pytest

from loadtests.generator.arrivals import (
    Arrival,
    Burst,
    Schedule,
    TraceError,
    poisson,
    read_trace,
    write_trace,
)

EXAMPLE = Path("loadtests/traces/mixed.jsonl")


def test_poisson_has_its_rate_and_its_irregularity() -> None:
    """Of a Poisson process the counts have a variance that is their mean; evenly spaced ones have none."""
    times = list(poisson(50.0, 2000.0, random.Random(1)))
    counts = [0] * 2000
    for at in times:
        counts[int(at)] += 1
    # Of 2,000 counts: the mean within 5 of its standard errors, the variance too
    assert fmean(counts) == pytest.approx(50, abs=5 * (50 / 2000) ** 0.5)
    assert pvariance(counts) == pytest.approx(50, abs=5 * 50 * (2 / 2000) ** 0.5)
    gaps = [b - a for a, b in pairwise(times)]
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(2.718281828**-1, abs=0.01)


def test_parts_add_up_to_the_schedule() -> None:
    schedule = Schedule(100, 100, seed=3)
    parts = [list(schedule.arrivals(part, 4)) for part in range(4)]
    assert sum(map(len, parts)) == pytest.approx(10_000, rel=0.05)
    assert len({arrival.at for part in parts for arrival in part}) == sum(map(len, parts))


def test_the_same_seed_gives_the_same_arrivals() -> None:
    one, same, other = (list(Schedule(50, 5, seed=seed).arrivals()) for seed in (7, 7, 8))
    assert one == same != other


def test_uniform_is_even_over_all_parts() -> None:
    schedule = Schedule(10, 2, "uniform")
    times = sorted(a.at for part in range(3) for a in schedule.arrivals(part, 3))
    assert times == pytest.approx([n / 10 for n in range(20)])


def test_bursts_are_so_many_times_as_dense() -> None:
    burst = Burst(factor=5, every_s=10, for_s=2)
    times = list(poisson(20, 1000, random.Random(2), burst))
    high = sum(at in burst for at in times)
    assert high / (100 * 2) == pytest.approx(100, rel=0.05)
    assert (len(times) - high) / (100 * 8) == pytest.approx(20, rel=0.05)


def test_a_trace_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    arrivals = [Arrival(0.5, 3), Arrival(0.25, 1)]
    assert write_trace(path, arrivals, "made here") == 2
    assert read_trace(path) == ("made here", [Arrival(0.25, 1), Arrival(0.5, 3)])
    schedule = Schedule(2, 0.5, "trace", trace=str(path))
    assert list(schedule.arrivals(0, 2)) == [Arrival(0.25, 1)]
    assert list(schedule.arrivals(1, 2)) == []  # the other is behind the end


def test_the_shipped_trace_says_where_it_is_from() -> None:
    origin, arrivals = read_trace(EXAMPLE)
    assert "sent and answered in a run" in origin
    assert len(arrivals) > 100
    assert len({arrival.steps for arrival in arrivals}) > 1


@pytest.mark.parametrize(
    "line",
    ['{"at": -1}', '{"at": "0"}', '{"steps": 1}', "[]", "{", '{"at": 0, "steps": 0}', '{"at": 1e999}'],
)
def test_what_is_wrong_in_a_trace_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"schema": "cellstate-trace/1", "origin": ""}\n{"at": 0}\n' + line + "\n")
    with pytest.raises(TraceError, match="line 3"):
        read_trace(path)


@pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", "at,steps\n0,1\n"])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(TraceError):
        read_trace(path)
