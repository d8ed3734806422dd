"""What is derived of a time is what a calendar on the wall says, and a manifest can't say nonsense."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import bundle as bundles
from model.calendar import MOST_TIME, PERIODS, Calendar
from model.errors import BundleMalformed
from model.network import Scaler
from tests.model.making import make_bundle, make_spec

ALL = Calendar(("day", "week", "year"), 3600.0)
THURSDAY = 3  # of datetime's weekdays: 1970-01-01


@pytest.mark.parametrize("days", [0, 1, 4000, 20_783, -500])
@pytest.mark.parametrize("hours", [0.0, 5.25, 23.9])
def test_a_time_is_its_place_in_the_day_the_week_and_the_year(days: int, hours: float) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=days, hours=hours)
    day = (moment.hour + moment.minute / 60 + moment.second / 3600) / 24
    week = ((moment.weekday() - THURSDAY) % 7 + day) / 7
    year = (days + hours / 24) / 365.2425
    expected = [wave(2 * math.pi * x) for x in (day, week, year) for wave in (math.sin, math.cos)]
    found = ALL.of(np.array([moment.timestamp()]))
    assert found.shape == (1, 6)
    np.testing.assert_allclose(found[0], expected, atol=1e-12)


@given(st.floats(-MOST_TIME, MOST_TIME), st.permutations(list(PERIODS)))
def test_one_time_alone_is_as_among_many(time: float, names: list[str]) -> None:
    calendar = Calendar(tuple(names), 1.0)
    found = calendar.of(np.array([[0.0, time, 1.0]]))
    assert found.shape == (1, 3, calendar.width)
    np.testing.assert_allclose(calendar.of_one(time), found[0, 1], rtol=0, atol=1e-15)


def test_the_network_reads_the_calendar_behind_the_normalised_values() -> None:
    spec = make_spec(inputs=2, calendar=("day",))
    rows = np.array([[1.0, 12.0, 21_600.0], [0.0, 10.0, 43_200.0]])  # six o'clock, noon
    found = Scaler(spec).normalise(rows)
    np.testing.assert_allclose(found, [[1, 1, 1, 0], [0, 0, 0, -1]], atol=1e-12)
    assert (Scaler(spec).normalise(np.add(rows, [0, 0, 86_400.0 * 20_000])) == found).all()


def test_a_bundle_has_its_calendar_again_and_others_have_no_word_of_it(tmp_path: Path) -> None:
    spec = make_spec(calendar=("day", "week"))
    bundles.save(make_bundle(spec), tmp_path / "timed")
    assert bundles.load(tmp_path / "timed").spec == spec
    manifest = json.loads((tmp_path / "timed" / "manifest.json").read_text())
    assert manifest["calendar"] == {"features": ["day", "week"], "spacing_s": 3600.0}
    bundles.save(make_bundle(), tmp_path / "plain")
    assert "calendar" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("calendar", "message"),
    [
        (None, "calendar must be an object"),
        ([], "calendar must be an object"),
        ({"features": ["day"]}, "spacing_s"),
        ({"features": ["day"], "spacing_s": 1.0, "zone": "CET"}, "zone"),
        (
            {"features": ["day", "hour"], "spacing_s": 1.0},
            "features must be a list of some of day, week, year",
        ),
        ({"features": "day", "spacing_s": 1.0}, "features must be a list"),
        ({"features": [["day"]], "spacing_s": 1.0}, "features must be a list"),
        ({"features": [], "spacing_s": 1.0}, "at least one"),
        ({"features": ["day", "day"], "spacing_s": 1.0}, "each once"),
        ({"features": ["day"], "spacing_s": 0}, "above 0, not 0"),
        ({"features": ["day"], "spacing_s": -1.0}, "above 0"),
        ({"features": ["day"], "spacing_s": math.inf}, "finite number above 0"),
        ({"features": ["day"], "spacing_s": math.nan}, "finite number above 0"),
        ({"features": ["day"], "spacing_s": True}, "finite number above 0"),
        ({"features": ["day"], "spacing_s": "1"}, "finite number above 0"),
        ({"features": ["day", "week"], "spacing_s": 1.0}, "3 inputs are named, the architecture with this"),
    ],
)
def test_a_calendar_that_can_not_be_is_named(tmp_path: Path, calendar: Any, message: str) -> None:
    bundles.save(make_bundle(make_spec(calendar=("day",))), tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "calendar": calendar}))
    with pytest.raises(BundleMalformed, match=message):
        bundles.load(tmp_path)
