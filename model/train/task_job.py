"""From a task's name to a bundle: set it, train until it is solved, measure, save."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from model import bundle as bundles
from model.bundle import Bundle
from model.config import Architecture, ModelSpec
from model.errors import TrainingError
from model.network import Network
from model.tasks.catalogue import make
from model.tasks.measuring import Trial, measure_task
from model.tasks.task import Task
from model.train.jobs import pick_device
from model.train.plain import PlainNetwork
from model.train.report import Report, draw_solving
from model.train.solver import Progress, Solver
from model.train.task_options import TaskOptions

RESULT = "result.json"


@dataclass(frozen=True)
class TaskJob:
    """One training on a task. out: the bundle's directory. run: that of checkpoints, curve and result.
    command: as it goes into the manifest.
    """

    task: str
    length: int
    name: str
    out: Path
    run: Path
    options: TaskOptions
    version: str = "1"
    device: str = "auto"
    resume: bool = False
    command: str = ""
    report: Report = field(default_factory=Report)


@dataclass(frozen=True)
class Outcome:
    """What a training came to. bundle: None for a plain recurrent network, which is none."""

    progress: Progress
    quality: Mapping[str, Any]
    bundle: Bundle | None

    @property
    def solved(self) -> bool:
        """By the training's criterion, and by the test."""
        return self.progress.solved and bool(self.quality["solved"])


def spec_of(task: Task, hidden: int) -> ModelSpec:
    """A series model with the task's inputs and outputs, as they are. Raises TrainingError."""
    try:
        architecture = Architecture("series", len(task.inputs), hidden, 1, len(task.outputs))
        return ModelSpec(architecture, task.inputs, task.outputs)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def train_task(job: TaskJob) -> Outcome:
    """Trains until the task is solved or the sequences are used up, and saves the bundle, solved or not.
    Raises TaskError, TrainingError."""
    o = job.options
    tasks = [make(job.task, length, o.seed) for length in o.lengths(job.length)]
    _check_same_signals(tasks)
    spec = spec_of(tasks[-1], o.hidden)
    device = pick_device(job.device)
    torch.manual_seed(o.seed)
    chrono = job.length if o.chrono < 0 else o.chrono
    network = Network(spec, o.forget_bias, chrono) if o.cell == "lstm" else PlainNetwork(spec)
    network.to(device)
    lengths = [task.length for task in tasks]
    job.report.say(f"{job.name}: {o.cell} of {o.hidden} on {device}; lengths {lengths}")
    facts = {"task": {"name": job.task, "length": job.length}, "architecture": asdict(spec.architecture)}
    solver = Solver(network, tasks, o, job.run, job.report, facts)
    if job.resume:
        solver.resume()
        job.report.say(f"resumed after {solver.progress.sequences:,} sequences from {job.run}")
    progress = solver.fit()
    quality, source = measure_task(Trial(tasks[-1], o.seed), network)
    training = _training(job, tasks, progress) | {"data": asdict(source)}
    job.run.mkdir(parents=True, exist_ok=True)
    told = json.dumps({**training, "quality": quality}, indent=2) + "\n"
    bundles.write_whole(job.run / RESULT, told.encode())
    draw_solving(job.run / "curve.png", progress.history, f"{job.name}: share of wrong answers")
    if not isinstance(network, Network):
        return Outcome(progress, quality, None)
    bundle = Bundle(
        job.name,
        job.version,
        spec,
        network.state_dict(),
        f"{tasks[-1].about[0].upper()}{tasks[-1].about[1:]}; length {job.length}.",
        training=training,
        quality=quality,
    )
    return Outcome(progress, quality, bundles.save(bundle, job.out))


def _check_same_signals(tasks: list[Task]) -> None:
    """A curriculum needs one network for every length."""
    if len({(task.inputs, task.outputs) for task in tasks}) > 1:
        raise TrainingError(f"{tasks[0].name}: its inputs depend on the length: no curriculum (--start 0)")


def _training(job: TaskJob, tasks: list[Task], progress: Progress) -> dict[str, Any]:
    o = job.options
    return {
        "command": job.command,
        "task": {"name": job.task, "length": job.length, "seed": o.seed},
        "criterion": asdict(tasks[-1].criterion),
        "solved": progress.solved,
        "sequences": progress.sequences,
        "updates": progress.update,
        "seconds": round(progress.seconds, 1),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "lengths": progress.passed,
        "curve": _thinned(progress.history),
        "options": asdict(o),
        "seed": o.seed,
        "torch": torch.__version__,
        "device": pick_device(job.device).type,
        "threads": torch.get_num_threads(),
    }


def _thinned(history: list[dict[str, float]], most: int = 60) -> list[dict[str, float]]:
    """The history in at most so many entries, evenly chosen, the last among them."""
    every = -(-len(history) // most) or 1
    return history[::-1][::every][::-1]
