"""Whether something grows: told from noise, from a start, and from a saw."""

from __future__ import annotations

import math
import random

import pytest

from loadtests.observing.slope import fit, student, trend
from loadtests.running import trends

TIMES = [float(n) for n in range(0, 1800, 5)]
MIB = 2.0**20


def noisy(values: list[float], sigma: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [value + rng.gauss(0, sigma) for value in values]


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (28, 2.048), (120, 1.980)]
)
def test_students_t(freedom: int, wanted: float) -> None:
    assert student(0.95, freedom) == pytest.approx(wanted, rel=2e-3)


def test_a_line_is_found_within_its_interval() -> None:
    """95 % of the intervals hold the true slope; of 200, binomially, at least 180."""
    hits = 0
    for seed in range(200):
        line = fit(TIMES, noisy([3.0 + 0.01 * t for t in TIMES], 2.0, seed))
        hits += line.low <= 0.01 <= line.high
    assert 180 <= hits < 200


def test_a_leak_is_found() -> None:
    grows = trend("memory", "B", TIMES, noisy([300 * MIB + 0.02 * MIB * t for t in TIMES], MIB), 4 * MIB)
    assert grows is not None
    assert grows.leaks
    assert 3600 * grows.line.slope / MIB == pytest.approx(72, rel=0.05)


@pytest.mark.parametrize(
    "values",
    [
        [300 * MIB] * len(TIMES),
        [300 * MIB + 20 * MIB * (1 - math.exp(-t / 200)) for t in TIMES],  # caches fill
        [300 * MIB + 10 * MIB * (t % 60) / 60 for t in TIMES],  # garbage, collected every minute
        [320 * MIB - 0.01 * MIB * t for t in TIMES],
        [300 * MIB + 0.001 * MIB * t for t in TIMES],  # 1.8 MiB in half an hour: below what counts
    ],
    ids=["flat", "settles", "saw", "falls", "little"],
)
def test_what_is_no_leak_is_not_called_one(values: list[float]) -> None:
    for seed in range(20):
        found = trend("memory", "B", TIMES, noisy(values, 0.5 * MIB, seed), 4 * MIB)
        assert found is not None
        assert not found.leaks


def test_too_few_samples_say_nothing() -> None:
    assert trend("memory", "B", TIMES[:12], [1.0] * 12, 1.0) is None
    with pytest.raises(ValueError, match="4 samples"):
        fit([0, 1], [0, 1])


def test_a_process_that_came_meanwhile_is_no_trend() -> None:
    def process(pid: int, files: int) -> dict[str, object]:
        return {"pid": pid, "name": "replica", "rss": 10**8, "pss": None, "files": files, "sockets": 1}

    samples = [
        {
            "t": t,
            "sessions": {"device": 5.0},
            "slots": {"taken": 5.0},
            "processes": [process(1, 20 + int(t / 10)), *([process(2, 9)] if t > 900 else [])],
        }
        for t in TIMES
    ]
    found = {each.what: each for each in trends(samples)}
    assert found["files of replica (1)"].leaks
    assert not found["memory of replica (1)"].leaks
    assert not [what for what in found if "(2)" in what]
