"""Quality figures of a bundle on its data file: measured, and compared with what the manifest says.

The network runs in float32 as one served session would: step after step through the whole part, its state
carried, never reset, no row seen ahead of its time. A series begins at the first row of the file; a text,
whose training part is long, some thousand characters before its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.bundle import Bundle
from model.config import ModelSpec
from model.data import Series, Source, Split, Text, read_series, read_text, split
from model.errors import BundleMalformed, DataError
from model.network import Scaler
from model.streaming import Predictor, frequency_figures, origins, series_figures, text_figures
from model.tasks.measuring import measure_task, trial_of

#: Largest difference from the manifest, as a share of its figure. Another CPU or a GPU sums in another order
#: (about 1e-5); a run in several streams starts each with a short memory (about 1e-4).
TOLERANCE = 1e-3
#: Characters that run before the part that is measured, and before each of its pieces if there are several.
#: What lies further back changes no figure's fourth digit.
WARM, WARM_PIECE = 4096, 512


@dataclass(frozen=True)
class Difference:
    """One figure that is not what the manifest says."""

    name: str
    manifest: float | None
    measured: float | None


def series_tensors(series: Series, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """All rows of a series, normalised: inputs [N, I] and outputs [N, O], float32."""
    scaler = Scaler(spec)
    x = scaler.normalise(series.sent(spec))
    y = (series.columns([s.name for s in spec.outputs]) - scaler.output_mean) / scaler.output_std
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


@dataclass(frozen=True)
class Subject:
    """What a bundle is measured on: its data file, the file's parts, and the rows in a season, 0 if none."""

    data: Series | Text
    parts: Split
    season: int


def read_data(bundle: Bundle, path: Path) -> Series | Text:
    """The file, read as this bundle's task needs it. Raises DataError."""
    if bundle.spec.architecture.task == "text":
        return read_text(path)
    spec, data = bundle.spec, bundle.training.get("data") or {}
    names = dict.fromkeys(s.name for s in (*spec.measured, *spec.outputs))
    time = data.get("time") if spec.time is None else spec.time.name
    return read_series(path, list(names), time, bool(data.get("allow_gaps")), timed=spec.time is not None)


def split_of(bundle: Bundle, rows: int) -> Split:
    """The parts that the bundle was trained with. Raises BundleMalformed if its manifest names none."""
    try:
        parts = [int(n) for n in bundle.training["split"].values() if n]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleMalformed(f"the manifest of {bundle.name} does not say how its data was split") from error
    return split(rows, parts)


@torch.no_grad()
def measure(
    spec: ModelSpec,
    network: Predictor,
    data: Series | Text,
    parts: Split,
    season: int = 0,
    streams: int = 1,
    precision: str = "float32",
) -> dict[str, Any]:
    """The quality figures as they stand in a manifest, on the test part, or validation if there is none.

    streams: for a text, cut the part into so many pieces that run side by side: faster, less exact.
    precision: what the network computes in, to be told with the figures.
    """
    name, part = parts.measured
    quality: dict[str, Any] = {"part": name, "rows": [part.start, part.stop - 1]}
    device = network.device
    if isinstance(data, Text):
        tokens = torch.from_numpy(data.tokens(spec.vocabulary)).to(device)
        rows = origins(part, 1)
        warm = min(rows.start, WARM if streams == 1 else WARM_PIECE)
        return {
            **quality,
            "predictions": len(rows),
            "state": f"one stream from row {rows.start - warm} on, {precision}",
            "table": {
                "model": text_figures(network, tokens, part, streams, warm),
                "frequencies": frequency_figures(tokens, parts.train, part, len(spec.vocabulary)),
            },
        }
    x, y = series_tensors(data, spec)
    table, units = series_figures(network, x.to(device), y.to(device), part, season)
    return {
        **quality,
        "windows": len(origins(part, spec.architecture.leads)),
        "leads": spec.architecture.leads,
        "season": season,
        "state": f"one stream from row 0 on, {precision}",
        "scale": "normalised by the training part's mean and deviation",
        "table": table,
        "in_units": units,
    }


def figures(quality: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every figure of a manifest's quality by a dotted name. Raises BundleMalformed for a foreign form."""
    for group in ("table", "in_units"):
        try:
            for row, entries in (quality.get(group) or {}).items():
                for name, value in entries.items():
                    yield f"{row}.{name}" if group == "table" else f"{group}.{row}.{name}", float(value)
        except (AttributeError, TypeError, ValueError) as error:
            raise BundleMalformed(f"quality.{group} of the manifest is no table of numbers") from error


def compare(
    manifest: Mapping[str, Any], measured: Mapping[str, Any], tolerance: float = TOLERANCE
) -> list[Difference]:
    """The figures that differ by more than the tolerance, or that only one side has."""
    told, found = dict(figures(manifest)), dict(figures(measured))
    differences = []
    for name in [*told, *(n for n in found if n not in told)]:
        a, b = told.get(name), found.get(name)
        # "not within", so that a NaN counts as different
        if a is None or b is None or not abs(a - b) <= tolerance * abs(a):
            differences.append(Difference(name, a, b))
    return differences


def subject(bundle: Bundle, path: Path) -> Subject:
    """The data file of a bundle, split as its manifest says. Raises DataError, BundleMalformed."""
    data = read_data(bundle, path)
    rows = len(data.characters) if isinstance(data, Text) else len(data.values)
    return Subject(data, split_of(bundle, rows), int(bundle.quality.get("season") or 0))


def evaluate(
    bundle: Bundle, path: Path | None, device: torch.device, streams: int = 1
) -> tuple[dict[str, Any], Source]:
    """Measures a bundle on a data file, on the rows its manifest names; or, if a task was what it was trained
    on, on the task's test sequences, drawn again."""
    network = bundle.network().to(device)
    trial = trial_of(bundle)
    if trial is not None:
        return measure_task(trial, network)
    on = subject(bundle, needed(path))
    return measure(bundle.spec, network, on.data, on.parts, on.season, streams), on.data.source


def needed(path: Path | None) -> Path:
    """The data file, if there is one. Raises DataError."""
    if path is None:
        raise DataError("this bundle is measured on data: name them with --data")
    return path
