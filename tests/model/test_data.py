"""A data file is read completely and correctly, or refused with its line and column."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data import Split, read_series, read_text, signals, split
from model.errors import DataError
from tests.model.making import SHARED_DATA

GOOD = "date,a,b\n2024-01-01 00:00:00,1,10\n2024-01-01 01:00:00,2,20\n2024-01-01 02:00:00,4,-3e1\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


def test_columns_come_as_they_are_named(csv: Path) -> None:
    series = read_series(write(csv, GOOD))
    assert series.names == ("a", "b")
    np.testing.assert_array_equal(series.values, [[1, 10], [2, 20], [4, -30]])
    assert series.source.file == "data.csv"
    assert series.source.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()


def test_columns_can_be_chosen_and_are_then_in_that_order(csv: Path) -> None:
    write(csv, GOOD)
    np.testing.assert_array_equal(read_series(csv, ["b", "a"]).values[0], [10, 1])
    np.testing.assert_array_equal(read_series(csv).columns(["b"])[:, 0], [10, 20, -30])
    with pytest.raises(DataError, match=r"no column 'c'; it has date, a, b"):
        read_series(csv, ["c"])
    with pytest.raises(DataError, match="no column 'c'"):
        read_series(csv).columns(["c"])
    with pytest.raises(DataError, match="each once"):
        read_series(csv, ["a", "a"])
    with pytest.raises(DataError, match="no column 'clock'"):
        read_series(csv, time="clock")


@pytest.mark.parametrize(
    "content",
    [
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD + "\n\n",
        GOOD.rstrip("\n"),
        GOOD.replace("date,a,b", ' date , "a", b ').replace(' "a"', '"a"'),
        GOOD.replace("2024-01-01 0", "2024-01-01T0"),
    ],
)
def test_harmless_differences_of_form_are_read(csv: Path, content: str) -> None:
    np.testing.assert_array_equal(read_series(write(csv, content)).values[:, 0], [1, 2, 4])


def test_no_time_column_is_needed(csv: Path) -> None:
    np.testing.assert_array_equal(read_series(write(csv, "a\n1\n2\n")).values, [[1], [2]])


def test_a_time_column_of_another_name_must_be_named(csv: Path) -> None:
    write(csv, GOOD.replace("date", "hour of day"))
    with pytest.raises(
        DataError, match="line 2, column 'hour of day': '2024-01-01 00:00:00' is not a number"
    ):
        read_series(csv)
    assert read_series(csv, time="hour of day").names == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("date,a,b\n", "no rows below the header"),
        (GOOD.replace(",2,", ",,"), "line 3, column 'a': the cell is empty"),
        (GOOD.replace(",2,", ", ,"), "line 3, column 'a': the cell is empty"),
        (GOOD.replace(",2,", ",two,"), "line 3, column 'a': 'two' is not a number"),
        (GOOD.replace(",2,", ",1_0,"), "line 3, column 'a': '1_0' is not a number"),
        (GOOD.replace(",20", ",NaN"), "line 3, column 'b': 'NaN' is not finite"),
        (GOOD.replace(",20", ",-inf"), "line 3, column 'b': '-inf' is not finite"),
        (GOOD.replace(",20", ",1e999"), "line 3, column 'b': '1e999' is not finite"),
        (GOOD.replace(",20", ""), "line 3: 2 cells, the header has 3"),
        (GOOD.replace(",20", ",20,"), "line 3: 4 cells, the header has 3"),
        (GOOD.replace("a,b", "a,a"), "line 1: the header names 'a' twice"),
        (GOOD.replace("02:00:00", "03:00:00"), "line 4: 7200 s after the row before, not 3600 s"),
        (GOOD.replace("02:00:00", "01:00:00"), "line 4: 0 s after the row before, not 3600 s"),
        (GOOD.replace("01:00:00", "00:00:00"), "line 3: time does not go forward"),
        (GOOD.replace("2024-01-01 01", "yesterday 01"), "line 3, column 'date': 'yesterday 01:00:00'"),
        (GOOD.replace(",20", ',"20'), "line 4: unexpected end of data"),
        (GOOD.encode() + b"2024-01-01 03:00:00,\xff,1\n", "line 5: not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(csv: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_series(write(csv, content))
    assert str(csv) in str(caught.value)


def test_gaps_in_time_can_be_allowed(csv: Path) -> None:
    write(csv, GOOD.replace("02:00:00", "03:00:00"))
    assert len(read_series(csv, allow_gaps=True).values) == 3


def test_time_may_be_numbers_and_zones_may_change(csv: Path) -> None:
    assert len(read_series(write(csv, "time,a\n0,1\n900,2\n1800,3\n")).values) == 3
    zones = ("2024-03-31T00:00:00+01:00", "2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00")
    rows = "".join(f"{zone},1\n" for zone in zones)
    assert len(read_series(write(csv, "time,a\n" + rows)).values) == 3


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: No such file"):
        read_series(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="Is a directory"):
        read_text(tmp_path)


# --- text -----------------------------------------------------------------------------------------------


def test_a_text_becomes_tokens_and_back(tmp_path: Path) -> None:
    text = read_text(write(tmp_path / "t.txt", "banana\r\nœuf\n"))
    vocabulary = text.vocabulary()
    assert vocabulary == "\n\rabfnuœ"
    assert "".join(vocabulary[t] for t in text.tokens(vocabulary)) == "banana\r\nœuf\n"


def test_a_character_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    text = read_text(write(tmp_path / "t.txt", "aab\nabz\n"))
    with pytest.raises(DataError, match="line 2, column 3: the model does not know 'z'"):
        text.tokens("ab\n")


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"ab\ncd\xff", "line 2, byte 3: not UTF-8")]
)
def test_a_text_that_cant_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_text(write(tmp_path / "t.txt", content))


# --- parts ----------------------------------------------------------------------------------------------


def test_counts_are_taken_from_the_start() -> None:
    parts = split(17_420, [8640, 2880, 2880])
    assert parts == Split(range(8640), range(8640, 11520), range(11520, 14400))
    assert parts.measured == ("test", range(11520, 14400))


def test_without_a_test_part_the_validation_part_is_measured() -> None:
    parts = split(1000, [0.9, 0.1])
    assert parts.sizes() == [900, 100, 0]
    assert parts.measured == ("validation", range(900, 1000))


@given(st.integers(60, 10_000), st.lists(st.floats(0.1, 1.0), min_size=2, max_size=3))
def test_shares_that_add_up_to_one_use_every_row_once(rows: int, weights: list[float]) -> None:
    parts = split(rows, [w / sum(weights) for w in weights])
    assert [*parts.train, *parts.validation, *parts.test] == list(range(rows))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([100], "two or three parts"),
        ([0.5, 0.2, 0.2, 0.1], "two or three parts"),
        ([0.9, 0.0], "above 0"),
        ([0.9, -0.1], "above 0"),
        ([float("nan"), 0.1], "above 0"),
        ([0.9, 0.2], "more than 1"),
        ([90, 20], "needs 110 rows, the file has 100"),
        ([90.5, 2], "counts or shares"),
        ([0.99, 0.01], "validation part has 1 rows; this model needs at least 2"),
    ],
)
def test_impossible_splits_are_refused(parts: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(100, parts)


def test_normalisation_is_of_the_training_part_alone(csv: Path) -> None:
    rows = "".join(f"{k},{k % 2}\n" for k in range(10)) + "1000,1000\n" * 5
    series = read_series(write(csv, "a,b\n" + rows))
    a, b = signals(series, ["a", "b"], {"b": "kW"}, range(10))
    assert (a.name, a.unit, a.mean, b.unit, b.mean, b.std) == ("a", "", 4.5, "kW", 0.5, 0.5)
    assert a.std == pytest.approx(np.arange(10).std())


def test_a_column_that_does_not_vary_is_refused(csv: Path) -> None:
    series = read_series(write(csv, "a,b\n" + "0.1,1\n0.1,2\n" * 20))
    with pytest.raises(DataError, match="column 'a' does not vary"):
        signals(series, ["a", "b"], {}, range(40))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data files")
def test_the_standard_data_reads_as_described() -> None:
    series = read_series(SHARED_DATA / "ETTh1.csv")
    assert series.names == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert series.values.shape == (17_420, 7)
    assert series.values[0, 6] == pytest.approx(30.531, abs=1e-6)
    text = read_text(SHARED_DATA / "tinyshakespeare.txt")
    assert (len(text.characters), len(text.vocabulary())) == (1_115_394, 65)
