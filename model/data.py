"""Data files and their parts: a CSV table becomes a series, a text file a row of tokens.

Whatever a file holds, it is read completely and correctly or refused with a DataError that names the line
and column: a gap that is filled in silently would be learnt as if it had been measured.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.config import ModelSpec, Signal
from model.errors import DataError
from model.timestamps import TIME_COLUMNS, Times, check_column, check_spacing, seconds

#: Deviations below this share of a column's magnitude are rounding, not information.
LEAST_DEVIATION = 1e-9


@dataclass(frozen=True)
class Source:
    """Which file, for a manifest: its name without a path, and the SHA-256 of its bytes."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Series:
    """Columns of numbers, evenly spaced in time. values [N, C] float64, in the file's units. times: if they
    were asked for."""

    source: Source
    names: tuple[str, ...]
    values: NDArray[np.float64]
    times: Times | None = None

    def columns(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The named columns [N, len(names)], in that order. Raises DataError for a name there is not."""
        return self.values[:, [self.index(name) for name in names]]

    def sent(self, spec: ModelSpec) -> NDArray[np.float64]:
        """The rows as a client of that model would send them [N, inputs]. Raises DataError."""
        values = self.columns([s.name for s in spec.measured])
        if spec.calendar is None:
            return values
        if self.times is None:
            raise DataError(f"{self.source.file}: its times were not read, and the model has a calendar")
        return np.column_stack((values, self.times.values))

    def index(self, name: str) -> int:
        if name not in self.names:
            raise DataError(f"{self.source.file}: no column {name!r}; it has {', '.join(self.names)}")
        return self.names.index(name)


@dataclass(frozen=True)
class Text:
    """A text, character by character."""

    source: Source
    characters: str

    def vocabulary(self) -> str:
        """Every character of the text once, by code point; its index is its token."""
        return "".join(sorted(set(self.characters)))

    def tokens(self, vocabulary: str) -> NDArray[np.int64]:
        """The text as tokens [N]. Raises DataError at the first character outside the vocabulary."""
        index = {character: token for token, character in enumerate(vocabulary)}
        try:
            return np.fromiter((index[c] for c in self.characters), np.int64, len(self.characters))
        except KeyError as error:
            character = error.args[0]
            place = self.characters.index(character)
            line = self.characters.count("\n", 0, place) + 1
            column = place - self.characters.rfind("\n", 0, place)
            raise DataError(
                f"{self.source.file}: line {line}, column {column}: the model does not know {character!r}"
            ) from None


@dataclass(frozen=True)
class Split:
    """Three parts of the rows, in order of time: train, validation, test (empty if there is none)."""

    train: range
    validation: range
    test: range

    @property
    def measured(self) -> tuple[str, range]:
        """The part that quality figures are measured on: test if there is one, else validation."""
        return ("test", self.test) if self.test else ("validation", self.validation)

    def sizes(self) -> list[int]:
        return [len(self.train), len(self.validation), len(self.test)]


def split(rows: int, parts: Sequence[float], least: int = 2) -> Split:
    """Parts of `rows` rows, from their start: counts (whole numbers) or shares (all at most 1).

    Two or three parts; rows beyond them stay unused. Raises DataError if they ask for more than there is,
    or if a part has fewer than `least` rows.
    """
    if not 2 <= len(parts) <= 3 or any(not p > 0 for p in parts):
        raise DataError(f"a split has two or three parts above 0, not {list(parts)}")
    if all(p <= 1 for p in parts):
        if sum(parts) > 1 + 1e-9:
            raise DataError(f"the shares {list(parts)} add up to more than 1")
        # Bounds are rounded, not sizes: shares that add up to 1 must use every row.
        bounds = [round(rows * sum(parts[:k])) for k in range(len(parts) + 1)]
    elif all(float(p).is_integer() for p in parts):
        bounds = [int(sum(parts[:k])) for k in range(len(parts) + 1)]
    else:
        raise DataError(f"a split is counts or shares, not both: {list(parts)}")
    if bounds[-1] > rows:
        raise DataError(f"the split needs {bounds[-1]} rows, the file has {rows}")
    ranges = [range(a, b) for a, b in pairwise(bounds)]
    for name, part in zip(("training", "validation", "test"), ranges, strict=False):
        if len(part) < least:
            raise DataError(f"the {name} part has {len(part)} rows; this model needs at least {least}")
    return Split(ranges[0], ranges[1], ranges[2] if len(ranges) == 3 else range(bounds[-1], bounds[-1]))


def signals(series: Series, names: Sequence[str], units: dict[str, str], part: range) -> tuple[Signal, ...]:
    """The named columns as signals, normalised by their mean and deviation over `part`."""
    values = series.columns(names)[part.start : part.stop]
    mean, std = values.mean(0), values.std(0)
    for name, m, s in zip(names, mean, std, strict=True):
        if not s > LEAST_DEVIATION * abs(m):
            raise DataError(f"{series.source.file}: column {name!r} does not vary in the training part")
    return tuple(
        Signal(name, units.get(name, ""), float(m), float(s))
        for name, m, s in zip(names, mean, std, strict=True)
    )


def read_text(path: Path) -> Text:
    """A UTF-8 text file, line ends as they are. Raises DataError."""
    blob, source = _read(path)
    try:
        characters = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = blob.count(b"\n", 0, error.start) + 1
        column = error.start - blob.rfind(b"\n", 0, error.start)
        raise DataError(f"{path}: line {line}, byte {column}: not UTF-8") from error
    if not characters:
        raise DataError(f"{path}: the file is empty")
    return Text(source, characters)


def read_series(
    path: Path,
    columns: Sequence[str] | None = None,
    time: str | None = None,
    allow_gaps: bool = False,
    timed: bool = False,
) -> Series:
    """A CSV file with a header line.

    columns: which to read (default: all but the time). time: the column of timestamps; by default the first,
    if its name says so. It is not an input: it is only checked to be evenly spaced (unless allow_gaps), and
    kept if `timed`, for a calendar.
    Raises DataError with line and column for a cell that is empty, not a number or not finite, a row of the
    wrong length, or a gap in time.
    """
    blob, source = _read(path)
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = blob.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise DataError(f"{path}: the file is empty; its first line must name the columns")
        header = [name.strip() for name in header]
        time_at, chosen = _choose(path, header, columns, time)
        if timed:
            check_column(path, header, time_at, chosen)
        rows, stamps = [], []
        for row in reader:
            if not row:  # a blank line, as at the end of many files
                continue
            line = reader.line_num
            if len(row) != len(header):
                raise DataError(f"{path}: line {line}: {len(row)} cells, the header has {len(header)}")
            rows.append([_number(path, line, header[k], row[k]) for k in chosen])
            if time_at is not None and (timed or not allow_gaps):
                stamps.append((line, seconds(path, line, header[time_at], row[time_at], timed)))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    if not allow_gaps:
        check_spacing(path, stamps)
    names, values = tuple(header[k] for k in chosen), np.array(rows, np.float64)
    if not timed or time_at is None:
        return Series(source, names, values)
    times = np.array([stamp for _, stamp in stamps], np.float64)
    return Series(source, names, values, Times(header[time_at], times))


def _read(path: Path) -> tuple[bytes, Source]:
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return blob, Source(path.name, hashlib.sha256(blob).hexdigest())


def _choose(
    path: Path, header: list[str], columns: Sequence[str] | None, time: str | None
) -> tuple[int | None, list[int]]:
    """The place of the time column, if any, and those of the chosen columns."""
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}: line 1: the header names {twice!r} twice")
    if time is None and header[0].lower() in TIME_COLUMNS and header[0] not in (columns or ()):
        time = header[0]
    if columns is None:
        columns = [name for name in header if name != time]
    for name in [*columns, *([time] if time else [])]:
        if name not in header:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(header)}")
    if not columns or len(set(columns)) != len(columns):
        raise DataError(f"{path}: choose at least one column, and each once, not {list(columns)}")
    return (header.index(time) if time else None), [header.index(name) for name in columns]


def _number(path: Path, line: int, column: str, cell: str) -> float:
    if not cell.strip():
        raise DataError(f"{path}: line {line}, column {column!r}: the cell is empty")
    try:
        value = float(cell)
    except ValueError:
        value = None
    if value is None or "_" in cell:  # Python's 1_000 is no number to anybody else
        raise DataError(f"{path}: line {line}, column {column!r}: {cell!r} is not a number")
    if not math.isfinite(value):
        raise DataError(f"{path}: line {line}, column {column!r}: {cell!r} is not finite")
    return value
