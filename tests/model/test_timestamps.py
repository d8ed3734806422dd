"""A file's times are kept for a calendar, and must be times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.config import Signal
from model.data import Series, read_series
from model.errors import DataError
from tests.model.making import make_spec

GOOD = "date,a\n2016-07-01 00:00:00,1\n2016-07-01T03:00:00+02:00,2\n2016-07-01 02:00:00,3\n"


def read(
    tmp_path: Path, content: str, *columns: str, allow_gaps: bool = False, time: str | None = None
) -> Series:
    path = tmp_path / "data.csv"
    path.write_text(content)
    return read_series(path, columns or None, time, allow_gaps, timed=True)


def test_times_are_unix_seconds_and_utc_without_a_zone(tmp_path: Path) -> None:
    series = read(tmp_path, GOOD)
    assert series.names == ("a",)
    assert series.times is not None
    assert series.times.column == "date"
    assert series.times.values.tolist() == [1467331200, 1467334800, 1467338400]
    assert series.times.spacing() == 3600
    expected = Signal("date", "s since 1970-01-01", 1467333000.0, 1800.0)
    assert series.times.signal(range(2)) == expected


def test_a_client_sends_the_columns_and_last_the_time(tmp_path: Path) -> None:
    series = read(tmp_path, "s1,clock,s0\n1,60,2\n3,120,4\n", time="clock")
    sent = series.sent(make_spec(calendar=("day",)))
    np.testing.assert_array_equal(sent, [[2, 1, 60], [4, 3, 120]])
    assert series.sent(make_spec()).shape == (2, 2)
    with pytest.raises(DataError, match="its times were not read"):
        read_series(tmp_path / "data.csv", ["s0", "s1"]).sent(make_spec(calendar=("day",)))


def test_with_gaps_the_spacing_is_the_usual_one(tmp_path: Path) -> None:
    series = read(tmp_path, "time,a\n0,1\n60,2\n600,3\n660,4\n720,5\n", allow_gaps=True)
    assert series.times is not None
    assert series.times.values.tolist() == [0, 60, 600, 660, 720]
    assert series.times.spacing() == 60


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a,b\n1,2\n3,4\n", (), "needs a column of times: name it with --time"),
        ("date,a\n1,2\n2,4\n", ("date", "a"), "needs a column of times"),
        (
            "date,a\n1467331200000,1\n1467334800000,2\n",
            (),
            "line 2, column 'date': '1467331200000' is no time in",
        ),
        ("date,a\nnan,1\n1,2\n", (), "'nan' is no time in seconds"),
        ("date,a\nsoon,1\n1,2\n", (), "'soon' is not a time"),
    ],
)
@pytest.mark.parametrize("allow_gaps", [False, True])
def test_what_is_no_time_is_named(
    tmp_path: Path, content: str, columns: tuple[str, ...], message: str, allow_gaps: bool
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content, *columns, allow_gaps=allow_gaps)


def test_the_time_is_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'b' is the calendar's time, and can be nothing else"):
        read(tmp_path, "a,b\n1,2\n3,4\n", "a", "b", time="b")


def test_time_must_go_forward(tmp_path: Path) -> None:
    series = read(tmp_path, "time,a\n7,1\n7,2\n7,3\n", allow_gaps=True)
    assert series.times is not None
    with pytest.raises(DataError, match="column 'time': time does not go forward"):
        series.times.spacing()
