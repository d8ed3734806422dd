"""The Numenta Anomaly Benchmark: its streams, and its score of a detector.

Lavin & Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark", ICMLA 2015,
arXiv:1510.03336; where the paper leaves a detail open, as the benchmark's own program has it (numenta/NAB
1.1). A detector gives each row a number from 0 to 1 without looking ahead. One threshold, the best for a
profile over all streams, makes alarms of them. Of the alarms in a labelled window the earliest counts, the
more the earlier; each alarm outside costs, the less the closer it is behind a window; each window without one
costs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data import read_series
from model.errors import DataError

#: The rows of a stream that are not scored: a share of it, of 5,000 rows at most
PROBATION, PROBATION_ROWS = 0.15, 5000
#: So many window widths behind a window an alarm costs in full
FAR = 3.0

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """What a right alarm gains, and a false one and a missed window cost."""

    name: str
    right: float
    false: float
    missed: float


@dataclass(frozen=True)
class Stream:
    """One series. name: its directory and file; values [N]; windows: first and last row of each."""

    name: str
    values: Rows
    windows: tuple[tuple[int, int], ...]

    @property
    def directory(self) -> str:
        return self.name.split("/")[0]

    @property
    def probation(self) -> int:
        """Rows at the beginning that are not scored."""
        return probation(len(self.values))


@dataclass(frozen=True)
class Benchmark:
    """streams by name, in their order; published: final scores of other detectors, by detector and
    profile."""

    streams: tuple[Stream, ...]
    profiles: tuple[Profile, ...]
    published: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Scored:
    """score: 100 for every window found at its first row and no false alarm, 0 for no alarm at all.
    threshold: scores from here on are alarms. found: of each stream, which of its windows. false: of each
    stream, the number of rows outside its windows that are alarms."""

    score: float
    threshold: float
    found: tuple[tuple[bool, ...], ...]
    false: tuple[int, ...]


def probation(rows: int) -> int:
    """The first so many of a stream's rows are not scored."""
    return math.ceil(min(math.floor(PROBATION * rows), PROBATION * PROBATION_ROWS))


def read(directory: Path) -> Benchmark:
    """The benchmark as its repository lays it out: data/, labels/, config/, results/. Raises DataError."""
    windows = _json(directory / "labels/combined_windows.json")
    profiles = _json(directory / "config/profiles.json")
    streams = [_stream(directory, name, windows[name]) for name in sorted(windows)]
    try:
        costs = {name: entry["CostMatrix"] for name, entry in profiles.items()}
        read = [Profile(n, c["tpWeight"], c["fpWeight"], c["fnWeight"]) for n, c in costs.items()]
    except (KeyError, TypeError) as error:
        raise DataError(f"{directory / 'config/profiles.json'}: no cost matrix in a profile") from error
    return Benchmark(tuple(streams), tuple(read), _json(directory / "results/final_results.json"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be a JSON object")
    return found


def _stream(directory: Path, name: str, windows: Sequence[Sequence[str]]) -> Stream:
    path = directory / "data" / name
    values = read_series(path, ["value"], "timestamp", allow_gaps=True).values[:, 0]
    stamps = [line.split(",", 1)[0] for line in path.read_text().splitlines()[1:] if line]
    times = [datetime.fromisoformat(stamp) for stamp in stamps]
    try:
        rows = [tuple(times.index(datetime.fromisoformat(t)) for t in window) for window in windows]
        return Stream(name, values, tuple((first, last) for first, last in rows))
    except ValueError as error:
        raise DataError(f"{path}: a labelled window begins or ends at no row: {error}") from error


def gains(stream: Stream, profile: Profile) -> tuple[Rows, NDArray[np.int64]]:
    """What an alarm at each row is worth, and which window the row lies in, -1 for none; [N] each.

    Inside a window 2 / (1 + exp(5 y)) - 1 with y from -1 at its first row to nearly 0 at its last, as a share
    of what y = -1 gives; behind it the same with y from 0 on in widths of the window, and -1 beyond `FAR`
    widths and before the first (section III of the paper).
    """
    rows = np.arange(len(stream.values))
    place, at = np.full(len(rows), np.inf), np.full(len(rows), -1)
    for n, (first, last) in enumerate(stream.windows):
        width = last - first + 1
        place[first : last + 1] = (rows[first : last + 1] - last - 1) / width
        at[first : last + 1] = n
        place[last + 1 :] = (rows[last + 1 :] - last) / (width - 1)  # until the next window
    worth = np.where(place > FAR, -1.0, 2 / (1 + np.exp(5 * np.minimum(place, FAR + 1))) - 1)
    inside = profile.right / (2 / (1 + math.exp(-5)) - 1)
    return np.where(at >= 0, worth * inside, worth * profile.false), at


def score(
    streams: Sequence[Stream], scores: Sequence[Rows], profile: Profile, threshold: float | None = None
) -> Scored:
    """Scores a detector by its numbers for each row of each stream; at the best threshold, if none is given.

    The result is normalised between the null detector, which misses every window, and a perfect one.
    """
    tracks = [_track(s, n, profile) for s, n in zip(streams, scores, strict=True)]
    if threshold is None:
        threshold = _best(tracks, profile)
    windows = sum(len(stream.windows) for stream in streams)
    total, found, false = 0.0, [], []
    for stream, track in zip(streams, tracks, strict=True):
        alarm = track.scores >= threshold
        outside = track.at < 0
        total += track.gains[alarm & outside].sum()
        hits = []
        for n in range(len(stream.windows)):
            inside = track.at == n
            hit = alarm & inside
            hits.append(bool(hit.any()))
            total += track.gains[hit].max() if hit.any() else -profile.missed * bool(inside.any())
        found.append(tuple(hits))
        false.append(int((alarm & outside).sum()))
    null = -profile.missed * windows
    normal = 100 * (total - null) / (profile.right * windows - null) if windows else total
    return Scored(normal, threshold, tuple(found), tuple(false))


@dataclass(frozen=True)
class _Track:
    """The scored rows of a stream."""

    scores: Rows
    gains: Rows
    at: NDArray[np.int64]


def _track(stream: Stream, scores: Rows, profile: Profile) -> _Track:
    if scores.shape != stream.values.shape:
        raise DataError(f"{stream.name}: {len(scores)} scores for {len(stream.values)} rows")
    worth, at = gains(stream, profile)
    on = stream.probation
    return _Track(scores[on:], worth[on:], at[on:])


def _best(tracks: Sequence[_Track], profile: Profile) -> float:
    """The threshold with the highest total. From above all scores down, the total moves by each row that
    becomes an alarm: by its cost outside the windows, by how much it improves its window inside."""
    scores, moves = [np.empty(0)], [np.empty(0)]
    for track in tracks:
        for n in range(-1, int(track.at.max(initial=-1)) + 1):
            mine = track.at == n
            order = np.argsort(-track.scores[mine], kind="stable")
            worth = track.gains[mine][order]
            if n >= 0:
                worth = (
                    np.diff(np.maximum.accumulate(worth), prepend=-profile.missed) if len(worth) else worth
                )
                worth = np.maximum(worth, 0.0)
            scores.append(track.scores[mine][order])
            moves.append(worth)
    flat, moved = np.concatenate(scores), np.concatenate(moves)
    order = np.argsort(-flat, kind="stable")
    flat, total = flat[order], np.cumsum(moved[order])
    last = np.append(flat[1:] != flat[:-1], True)  # of those with the same score
    at = int(np.argmax(np.where(last, total, -np.inf)))
    return float(flat[at]) if total[at] > 0 else math.inf
