"""The proof of capacity, small: the program that opens a million sessions, on three thousand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtests import million

DOCS = Path(__file__).resolve().parents[1] / "docs" / "capacity.md"
SMALL = "--sessions 3000 --steps 3000 --slots 64 --host-sessions 500 --hidden 32 --sample 30"


def test_no_session_is_lost_on_the_way_through_three_tiers(capsys: pytest.CaptureFixture[str]) -> None:
    assert million.main(SMALL.split()) == 0
    report = capsys.readouterr().out
    found = dict(re.findall(r"^(\w+) +([\d,]+) (?:sessions|to the host|in the store|from the)", report, re.M))
    numbers = {place: int(count.replace(",", "")) for place, count in found.items()}
    assert numbers["device"] <= 64
    assert numbers["host"] <= 500
    assert numbers["device"] + numbers["host"] + numbers["store"] == 3000
    assert numbers["store"] > 2000
    fetched_to_compare = numbers["store"] - (numbers["parked"] - numbers["fetched"])
    assert 0 <= fetched_to_compare <= 30


def test_what_is_lost_or_wrong_or_too_large_fails_the_run() -> None:
    size = 2**30
    good = million.Facts({}, {}, 0, 1e-6, size, size, 0.0)
    assert good.failures == []
    for lost, farthest, rss, said in (
        (2, 1e-6, size, "2 sessions are not"),
        (0, 1e-3, size, "from the reference"),
        (0, float("nan"), size, "from the reference"),
        (0, 1e-6, int(1.25 * size), "1.25 of the formula"),
        (0, 1e-6, int(0.75 * size), "0.75 of the formula"),
    ):
        (failure,) = million.Facts({}, {}, lost, farthest, rss, size, 0.0).failures
        assert said in failure


def test_the_formula_in_the_docs_is_the_one_that_is_tested() -> None:
    text = DOCS.read_text()
    assert f"{million.SESSION_BYTES} bytes" in text
    assert f"{million.KEPT_BYTES} bytes" in text
