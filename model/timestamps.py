"""The column of times of a CSV file: read, checked to be even, and kept for a calendar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.calendar import MOST_TIME, UNIT
from model.config import Signal
from model.errors import DataError

#: Names by which a column of time is known when the command names none (compared in lower case).
TIME_COLUMNS = frozenset({"date", "datetime", "time", "timestamp"})


def check_column(path: Path, header: list[str], at: int | None, chosen: list[int]) -> None:
    """Raises DataError if a file has no times for a calendar, or they are among the columns to be read."""
    if at is None:
        raise DataError(
            f"{path}: a calendar needs a column of times: name it with --time, or call the first"
            f" {', '.join(sorted(TIME_COLUMNS))}"
        )
    if at in chosen:
        raise DataError(f"{path}: column {header[at]!r} is the calendar's time, and can be nothing else")


def seconds(path: Path, line: int, column: str, cell: str, calendar: bool) -> float:
    """Seconds of a timestamp: ISO 8601, or a plain number, which for a calendar must be in Unix seconds."""
    try:
        found = float(cell)
    except ValueError:
        return _moment(path, line, column, cell)
    if calendar and not abs(found) <= MOST_TIME:
        raise DataError(f"{path}: line {line}, column {column!r}: {cell!r} is no time in seconds since 1970")
    return found


def _moment(path: Path, line: int, column: str, cell: str) -> float:
    try:
        moment = datetime.fromisoformat(cell.strip())
    except ValueError:
        raise DataError(f"{path}: line {line}, column {column!r}: {cell!r} is not a time") from None
    # Without a zone it counts as UTC: distances must not jump at the clock changes of whatever zone this
    # machine is in.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def check_spacing(path: Path, stamps: list[tuple[int, float]]) -> None:
    """Raises DataError unless times, each with its line, are evenly spaced."""
    if len(stamps) < 2:
        return
    spacing = stamps[1][1] - stamps[0][1]
    if not spacing > 0:
        raise DataError(f"{path}: line {stamps[1][0]}: time does not go forward")
    for (_, before), (line, now) in pairwise(stamps):
        if not math.isclose(now - before, spacing, rel_tol=1e-6, abs_tol=1e-6):
            raise DataError(
                f"{path}: line {line}: {now - before:g} s after the row before, not {spacing:g} s: "
                "the rows must be evenly spaced (or ask to allow gaps)"
            )


@dataclass(frozen=True)
class Times:
    """Unix seconds of each row [N], and the name of their column."""

    column: str
    values: NDArray[np.float64]

    def spacing(self) -> float:
        """Seconds from row to row, the median. Raises DataError if most do not go forward."""
        found = float(np.median(np.diff(self.values))) if len(self.values) > 1 else 0.0
        if not found > 0:
            raise DataError(f"column {self.column!r}: time does not go forward")
        return found

    def signal(self, part: range) -> Signal:
        """The time as an input. Mean and deviation, over `part`, are for examples: nothing is normalised by
        them."""
        times = self.values[part.start : part.stop]
        return Signal(self.column, UNIT, float(times.mean()), float(times.std()))
