"""From a data file to a bundle: read, split, normalise, train, measure, save."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from model import bundle as bundles
from model.bundle import Bundle
from model.calendar import Calendar
from model.config import Architecture, ModelSpec
from model.data import Series, Split, Text, read_series, read_text, signals, split
from model.errors import DataError, TrainingError
from model.evaluate import measure, series_tensors
from model.memory import Bank, remember
from model.network import Network
from model.storage import rounded
from model.train.options import Options
from model.train.quantiles import calibrate, spread_rank
from model.train.regression import fit_head
from model.train.report import Report, draw_curve
from model.train.streams import SeriesData, TextData, TrainingData
from model.train.trainer import Progress, Trainer


@dataclass(frozen=True)
class Job:
    """One training, apart from its data.

    out: the bundle's directory. run: that of checkpoints and curve. parts: of the split, counts or shares.
    command: as it goes into the manifest.
    """

    name: str
    out: Path
    run: Path
    options: Options
    parts: Sequence[float]
    hidden_size: int
    num_layers: int
    version: str = "1"
    description: str = ""
    dtype: str = "float32"
    device: str = "auto"
    resume: bool = False
    command: str = ""
    report: Report = field(default_factory=Report)


@dataclass(frozen=True)
class SeriesColumns:
    """Which columns a series model reads and predicts, and how far. Empty inputs: all columns; empty
    outputs: the inputs. season: rows in a period, for the seasonal forecast it is compared with; 0: none.
    rank: functions of the lead in the head; 0: weights for each lead. memory: units that remember from the
    start (see `model.memory`), with a head that starts as their ridge regression. quantiles: levels.
    calendar: what the model reads of the time (see `model.calendar`).
    """

    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    time: str | None = None
    allow_gaps: bool = False
    leads: int = 1
    residual: bool = False
    season: int = 0
    rank: int = 0
    memory: bool = False
    ridge: float = 3e-3
    quantiles: tuple[float, ...] = ()
    calendar: tuple[str, ...] = ()


def train_series(path: Path, columns: SeriesColumns, job: Job) -> Bundle:
    """Trains on a CSV file and saves the bundle. Raises DataError, TrainingError."""
    if columns.season < 0:
        raise TrainingError(f"season must be at least 0, not {columns.season}")
    both = list(dict.fromkeys([*columns.inputs, *columns.outputs])) if columns.inputs else None
    series = read_series(path, both, columns.time, columns.allow_gaps, timed=bool(columns.calendar))
    inputs = list(columns.inputs) or list(series.names)
    outputs = list(columns.outputs) or inputs
    unknown = set(columns.units) - {*inputs, *outputs}
    if unknown:
        raise DataError(f"a unit is given for {sorted(unknown)[0]!r}, which is not among the columns")
    parts = split(len(series.values), job.parts, least=columns.leads + 2)
    spec = _series_spec(series, inputs, outputs, columns, parts, job)
    x, y = series_tensors(series, spec)
    device = pick_device(job.device)
    where = tuple(inputs.index(name) if name in inputs else None for name in outputs)
    data = SeriesData(
        x.to(device),
        y.to(device),
        where,
        columns.leads,
        parts.train,
        parts.validation,
        job.options,
        len(inputs),
    )
    extra = {"season": columns.season, "allow_gaps": columns.allow_gaps, "time": columns.time}
    return _train(spec, data, series, parts, job, device, extra, _Fitted(columns, data))


class _Fitted:
    """What of a series model is not learnt by gradients: its memory and the head's start, before; the
    quantiles, behind."""

    def __init__(self, columns: SeriesColumns, data: SeriesData) -> None:
        self.columns, self.data = columns, data
        self.bank: Bank | None = None

    def before(self, network: Network) -> None:
        """Raises TrainingError for a network that has no room for a memory."""
        c, d = self.columns, self.data
        if not c.memory:
            return
        if not c.rank or None in d.columns:
            raise TrainingError("memory needs a rank, and every output among the inputs")
        try:
            self.bank = remember(network.lstm, c.season, signals=len(network.spec.measured))
        except ValueError as error:
            raise TrainingError(str(error)) from error
        network.held_units = self.bank.units
        learnt = d.options.epochs and network.spec.architecture.hidden_size > self.bank.units
        if network.spec.calendar is not None and not learnt:
            raise TrainingError(
                f"a calendar is read by units that are learnt: beside a memory it needs more than its"
                f" {self.bank.units} units, and an epoch"
            )
        fit_head(network, self.bank, d.x, d.outputs, d.of_inputs, self._rows(), c.ridge)

    def behind(self, network: Network) -> None:
        d = self.data
        if network.spread is not None:
            train = range(self._rows().start, d.train.stop)
            calibrate(network, self.bank, d.x, d.outputs, d.columns, train, d.validation)

    def _rows(self) -> range:
        """After which the head is fitted: in the training part, behind where the memory is still filling."""
        train = self.data.train
        last = train.stop - self.data.leads
        return range(train.start + (last - train.start) // 16, last)


def train_text(path: Path, embedding_size: int, job: Job) -> Bundle:
    """Trains on a text file and saves the bundle. Raises DataError, TrainingError."""
    text = read_text(path)
    vocabulary = text.vocabulary()
    parts = split(len(text.characters), job.parts)
    size = len(vocabulary)
    try:
        architecture = Architecture("text", embedding_size, job.hidden_size, job.num_layers, size)
        spec = ModelSpec(architecture, vocabulary=vocabulary)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    device = pick_device(job.device)
    tokens = torch.from_numpy(text.tokens(vocabulary)).to(device)
    data = TextData(tokens, parts.train, parts.validation, job.options)
    return _train(spec, data, text, parts, job, device, {})


def _series_spec(
    series: Series, inputs: list[str], outputs: list[str], columns: SeriesColumns, parts: Split, job: Job
) -> ModelSpec:
    units = dict(columns.units)
    try:
        times = series.times
        calendar = None if times is None else Calendar(columns.calendar, times.spacing())
        return ModelSpec(
            Architecture(
                "series",
                len(inputs) + (0 if calendar is None else calendar.width),
                job.hidden_size,
                job.num_layers,
                len(outputs),
                columns.leads,
                columns.residual,
                columns.rank,
                columns.quantiles,
                spread_rank(columns.memory, columns.leads) if columns.quantiles else 0,
            ),
            inputs=(
                *signals(series, inputs, units, parts.train),
                *([] if times is None else [times.signal(parts.train)]),
            ),
            outputs=signals(series, outputs, units, parts.train),
            calendar=calendar,
        )
    except ValueError as error:
        raise TrainingError(str(error)) from error


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises TrainingError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise TrainingError(f"device {name!r} can't be used: {str(error).splitlines()[0]}") from error
    return device


def _train(
    spec: ModelSpec,
    data: TrainingData,
    source: Series | Text,
    parts: Split,
    job: Job,
    device: torch.device,
    extra: dict[str, Any],
    fitted: _Fitted | None = None,
) -> Bundle:
    """What both tasks share. extra: facts of the data that `evaluate` needs again."""
    began = time.monotonic()
    torch.manual_seed(job.options.seed)
    network = Network(spec, job.options.forget_bias, job.options.chrono).to(device)
    if fitted is not None:
        fitted.before(network)
    fitting = time.monotonic() - began
    if not (job.options.epochs or network.held_units):
        raise TrainingError("epochs must be at least 1: without a memory nothing is fitted before the first")
    say = job.report.say
    sizes = dict(zip(("train", "validation", "test"), parts.sizes(), strict=True))
    say(f"{job.name}: {spec.architecture.parameters:,} parameters on {device}; rows {sizes}")
    facts = {"data": asdict(source.source), "split": sizes, "architecture": asdict(spec.architecture)}
    if spec.calendar is not None:
        facts["calendar"] = asdict(spec.calendar)
    trainer = Trainer(network, data, job.options, job.run, job.report, facts)
    if job.resume:
        trainer.resume()
        say(f"resumed after epoch {trainer.progress.epoch} from {job.run}")
    progress = trainer.fit()
    began = time.monotonic()
    if fitted is not None:
        fitted.behind(network)
    fitting += time.monotonic() - began
    curve = job.run / "curve.png"
    if progress.history:
        drawn = draw_curve(curve, progress.history, f"{job.name}: loss of each epoch")
        say(f"curve: {curve}" if drawn else "no curve: matplotlib is missing")
    training = {
        "command": job.command,
        "data": {**asdict(source.source), **extra},
        "split": sizes,
        **_told(job, progress, progress.seconds + fitting, device),
    }
    return _save(spec, network, source, parts, job, training, int(extra.get("season") or 0))


def _told(job: Job, progress: Progress, seconds: float, device: torch.device) -> dict[str, Any]:
    """What a manifest says of the training itself."""
    return {
        "options": asdict(job.options),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_validation_loss": progress.best,
        "seconds": round(seconds),
        "seed": job.options.seed,
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _save(
    spec: ModelSpec,
    network: Network,
    source: Series | Text,
    parts: Split,
    job: Job,
    training: dict[str, Any],
    season: int,
) -> Bundle:
    """Measures the weights as they will be stored, rounded perhaps, and saves them."""
    stored = rounded(network.state_dict(), job.dtype)
    network.load_state_dict(stored)
    job.report.say(f"measuring on the {parts.measured[0]} part")
    quality = measure(spec, network, source, parts, season)
    bundle = Bundle(job.name, job.version, spec, stored, job.description, training=training, quality=quality)
    return bundles.save(bundle, job.out, job.dtype)
