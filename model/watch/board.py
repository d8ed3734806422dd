"""A watch model's figures on the Numenta Anomaly Benchmark, beside those published of other detectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.bundle import Bundle
from model.streaming import Predictor
from model.watch import nab
from model.watch.detector import judged, watcher_of
from model.watch.nab import Benchmark, Rows, Scored, Stream
from model.watch.rules import ALARM

#: The half of the streams that the rules were chosen by: every second of each directory, in an order of this
#: seed
SPLIT_SEED = 0
LIKELIHOOD = 1


@torch.no_grad()
def evaluate(bundle: Bundle, directory: Path, network: Predictor | None = None) -> dict[str, Any]:
    """The quality figures of a watch bundle, as they stand in its manifest; of its weights as that network
    steps them, if one is given. Raises DataError."""
    benchmark, blank = nab.read(directory), bundle.network()
    for weight in blank.parameters():
        weight.zero_()
    figures = quality(benchmark, _likelihoods(bundle, benchmark, network or bundle.network()))
    without = _likelihoods(bundle, benchmark, blank)
    scored = {p.name: nab.score(benchmark.streams, without, p).score for p in benchmark.profiles}
    figures["table"]["without LSTM"] = scored
    return figures


def _likelihoods(bundle: Bundle, benchmark: Benchmark, network: Predictor) -> list[Rows]:
    watcher = watcher_of(bundle)
    return [judged(watcher, network, s.values.tolist())[:, LIKELIHOOD] for s in benchmark.streams]


def quality(benchmark: Benchmark, scores: Sequence[Rows]) -> dict[str, Any]:
    """The figures of a detector's numbers for each row of each stream. `evaluate` adds those of the same
    rules with a network whose weights are 0, which expects the same of every step.

    table: the score over all streams for each profile, with its threshold; over the half that the rules were
    chosen by and over the other, each at its own best threshold; over all with `ALARM` as the threshold.
    directories: of each, the windows found and the false alarms at the standard profile's threshold.
    """
    standard, *_ = results = [nab.score(benchmark.streams, scores, p) for p in benchmark.profiles]
    names = [p.name for p in benchmark.profiles]
    table = {"all": {name: found.score for name, found in zip(names, results, strict=True)}}
    for half, chosen in zip(("chosen by", "held out"), halves(benchmark.streams), strict=True):
        streams, rows = [benchmark.streams[n] for n in chosen], [scores[n] for n in chosen]
        scored = [nab.score(streams, rows, p).score for p in benchmark.profiles]
        table[half] = dict(zip(names, scored, strict=True))
    fixed = [nab.score(benchmark.streams, scores, p, ALARM).score for p in benchmark.profiles]
    table["at 0.5"] = dict(zip(names, fixed, strict=True))
    table["threshold"] = {name: found.threshold for name, found in zip(names, results, strict=True)}
    return {
        "benchmark": "Numenta Anomaly Benchmark",
        "streams": len(benchmark.streams),
        "windows": sum(len(stream.windows) for stream in benchmark.streams),
        "table": table,
        "directories": _directories(benchmark.streams, standard),
    }


def halves(streams: Sequence[Stream]) -> tuple[list[int], list[int]]:
    """The numbers of the streams that the rules were chosen by, and of the others."""
    rng, chosen, turn = np.random.default_rng(SPLIT_SEED), set(), 0
    for directory in sorted({stream.directory for stream in streams}):
        mine = [n for n, stream in enumerate(streams) if stream.directory == directory]
        for n in rng.permutation(mine).tolist():
            if turn % 2 == 0:
                chosen.add(n)
            turn += 1
    return sorted(chosen), [n for n in range(len(streams)) if n not in chosen]


def _directories(streams: Sequence[Stream], scored: Scored) -> dict[str, dict[str, int]]:
    told: dict[str, dict[str, int]] = {}
    for stream, found, false in zip(streams, scored.found, scored.false, strict=True):
        row = told.setdefault(stream.directory, {"streams": 0, "windows": 0, "found": 0, "false alarms": 0})
        for name, n in zip(row, (1, len(found), sum(found), false), strict=True):
            row[name] += n
    return told


def lines(
    name: str, figures: Mapping[str, Any], published: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """The figures as text: the table of all detectors, the two halves, the directories."""
    table = figures["table"]
    profiles = list(table["all"])
    yield f"{'detector':20}" + "".join(f"{profile:>22}" for profile in profiles)
    rows = {**published, f"{name} (this bundle)": table["all"]}
    for detector, row in sorted(rows.items(), key=lambda item: -item[1].get(profiles[0], 0.0)):
        yield f"{detector:20}" + "".join(f"{row.get(profile, float('nan')):22.2f}" for profile in profiles)
    yield ""
    for row in ("chosen by", "held out", "at 0.5", "without LSTM", "threshold"):
        yield f"{row:20}" + "".join(f"{table[row][profile]:22.4g}" for profile in profiles)
    yield f"\n{'directory':24}{'streams':>10}{'windows':>10}{'found':>10}{'false alarms':>14}"
    for directory, counts in figures["directories"].items():
        streams, windows, found, false = counts.values()
        yield f"{directory:24}{streams:10}{windows:10}{found:10}{false:14}"
