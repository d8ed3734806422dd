"""From a file to a bundle: what a network can be told by the time alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from model.bundle import Bundle
from model.train.jobs import Job, SeriesColumns, train_series
from model.train.options import Options
from model.train.report import Report


def write_office(path: Path, hours: int = 1008) -> None:
    """A door that is open in working hours, and noise, which is all that can be measured of it."""
    noise = np.random.default_rng(0).standard_normal(hours)
    start, lines = datetime(2024, 1, 1, tzinfo=UTC), ["date,noise,open"]
    for k in range(hours):
        moment = start + timedelta(hours=k)
        works = moment.weekday() < 5 and 8 <= moment.hour < 18
        lines.append(f"{moment:%Y-%m-%d %H:%M:%S},{noise[k]:.4f},{int(works)}")
    path.write_text("\n".join(lines))


def train(tmp_path: Path, calendar: tuple[str, ...]) -> Bundle:
    options = Options(epochs=15, window=24, streams=8, learning_rate=0.02, warmup=5, dropout=0.0)
    job = Job(
        "office", tmp_path / "bundle", tmp_path / "run", options, (0.6, 0.2, 0.2), 12, 1, report=Report()
    )
    columns = SeriesColumns(inputs=["noise"], outputs=["open"], calendar=calendar)
    return train_series(tmp_path / "office.csv", columns, job)


def test_what_follows_the_hour_of_the_week_is_told_by_a_calendar_and_by_nothing_else(tmp_path: Path) -> None:
    write_office(tmp_path / "office.csv")
    without, by_calendar = (train(tmp_path, names) for names in ((), ("day", "week")))
    assert without.quality["table"]["model"]["mse_1"] > 0.7  # deviations: the mean alone has 1
    assert by_calendar.quality["table"]["model"]["mse_1"] < 0.3
