"""The loop for a task of whole sequences: back-propagation through every step of each, until it is solved.

The gradient of an answer flows to the first step (Werbos 1990): nothing is truncated. With a curriculum the
sequences are short at first and grow when they are mastered (Bengio et al. 2009); every sequence counts.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.errors import TrainingError
from model.network import Network
from model.tasks.catalogue import make
from model.tasks.measuring import SIDE_BY_SIDE
from model.tasks.task import Batch, Task
from model.train import checkpoint, schedules
from model.train.clipping import check_finite, clip, clip_to_median
from model.train.plain import PlainNetwork
from model.train.report import Report
from model.train.task_options import TaskOptions

ROUND = 20  # updates between two lines of the history, at which the schedule looks at the loss
FOUND = 0.2  # the rate does not fall while more answers are wrong: the way is still to be found
SAVE_S = 30.0  # seconds between two checkpoints
CHECK = 2**32  # what seeds of checks begin at, beyond every update's


def tops(network: Network | PlainNetwork, x: Tensor) -> Tensor:
    """The top layer's h at every step [T, B, H]."""
    return network.lstm(x)[0] if isinstance(network, Network) else network.tops(x)


def answers(network: Network | PlainNetwork, batch: Batch) -> Tensor:
    """The head's output at the places of a batch [N, O]."""
    y: Tensor = network.head(tops(network, batch.x)[batch.step, batch.row])
    return y.float().flatten(1)


@dataclass
class Progress:
    """How far it has come: the plain facts of its checkpoint."""

    update: int = 0
    sequences: int = 0
    stage: int = 0  # place among the lengths
    began: int = 0  # the update at which the rate began to rise
    solved: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    checks: int = 0
    # of the newest sequences the share of wrong answers, by the weights that are kept
    recent: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)  # of the newest gradients, if they are clipped by these
    passed: list[dict[str, float]] = field(default_factory=list)  # lengths that are done: when
    history: list[dict[str, float]] = field(default_factory=list)
    drops: schedules.Drops = field(default_factory=schedules.Drops)


class Solver:
    """Trains one network on a task, length after length. After `fit` the network holds the kept weights."""

    def __init__(
        self,
        network: Network | PlainNetwork,
        tasks: list[Task],
        options: TaskOptions,
        directory: Path | None = None,
        report: Report | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """tasks: one at each length in turn, the last at the full one. directory: where checkpoints go, if
        anywhere. facts: what a checkpoint must share with this training to be resumed by it.
        """
        self.network, self.tasks, self.options = network, tasks, options
        self.directory, self.report = directory, report or Report()
        self.facts = {**(facts or {}), "options": asdict(options)}
        self.progress = Progress(drops=schedules.Drops(options.schedule, options.drop_after))
        self.device = next(network.parameters()).device
        self.adam = torch.optim.Adam(
            network.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), fused=True
        )
        # The network that counts: with the running mean of the weights, if there is one.
        self.kept = copy.deepcopy(network).requires_grad_(False) if options.average else network
        self.saved = time.monotonic()

    @property
    def task(self) -> Task:
        return self.tasks[self.progress.stage]

    def fit(self) -> Progress:
        """Trains until the task is solved at its full length, or the sequences are used up."""
        p = self.progress
        while not p.solved and p.sequences < self.options.sequences:
            wall, cpu = time.monotonic(), time.process_time()
            loss, wrong, rate = self._round()
            if wrong < FOUND:
                p.drops.see(loss)
            length, mastered = self.task.length, self._mastered()
            p.seconds += time.monotonic() - wall
            p.cpu_seconds += time.process_time() - cpu
            told = {"sequences": p.sequences, "length": length, "loss": loss, "wrong": wrong, "rate": rate}
            p.history.append({**told, "seconds": round(p.seconds, 1)})
            self._report(told)
            if mastered:
                self._advance()
            self._checkpoint()
        self._checkpoint(now=True)
        self.network.load_state_dict(self.kept.state_dict())
        return p

    def _round(self) -> tuple[float, float, float]:
        """Some updates. Returns their mean loss, share of wrong answers, and last learning rate."""
        total, wrongs, rate = 0.0, [], 0.0
        most = self.task.criterion.recent
        self.network.train()
        for _ in range(ROUND):
            loss, wrong, rate = self._update()
            total += loss
            wrongs += wrong
            self.progress.recent = (self.progress.recent + wrong)[-most:]
        # of all that were drawn at the full length, if any was
        return total / ROUND, sum(wrongs) / len(wrongs) if wrongs else math.nan, rate

    def _update(self) -> tuple[float, list[float], float]:
        o, p = self.options, self.progress
        # The sequences depend on seed and update alone, so a resumed training sees what it would have seen.
        generator = np.random.default_rng((o.seed, p.update))
        task = self._drawn(generator)
        batch = task.draw(generator, o.batch).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=o.precision == "bfloat16"):
            y = answers(self.network, batch)
            with torch.no_grad():  # before it is learnt from
                kept = answers(self.kept, batch) if o.average else y
                wrong: list[float] = task.wrong(kept, batch).tolist() if task is self.task else []
        loss = task.loss(y, batch)
        value = loss.item()
        check_finite(value, p.update)
        loss.backward()  # type: ignore[no-untyped-call]
        if o.clip_by == "median":
            usable = clip_to_median(self.network.parameters(), o.clip, p.norms)
        else:
            usable = clip(self.network.parameters(), o.clip_by, o.clip)
        rise = min(1.0, (p.update - p.began + 1) / o.warmup) if o.warmup else 1.0
        rise *= (self.tasks[0].length / self.task.length) ** o.fade
        done = p.sequences / o.sequences
        share = schedules.share(o.schedule, done, p.drops.drops, o.drop, o.final_rate)
        for group in self.adam.param_groups:
            group["lr"] = o.learning_rate * rise * share
        if usable:
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        p.update += 1
        p.sequences += len(batch)
        self._average()
        return value, wrong, o.learning_rate * rise * share

    def _drawn(self, generator: np.random.Generator) -> Task:
        """The task of an update: at the present length, or, `mixed` of the time, at a shorter one. A network
        that has seen one length at a time may count on it, and is lost at the next one."""
        first, p = self.tasks[0].length, self.progress
        if not self.options.mixed or not p.stage or generator.random() >= self.options.mixed:
            return self.task
        length = int(generator.integers(first, self.task.length))
        return make(self.task.name, length, self.options.seed)

    def _mastered(self) -> bool:
        """Whether the present length is done with."""
        o, p, criterion = self.options, self.progress, self.task.criterion
        if p.stage < len(self.tasks) - 1:
            newest = p.recent[-10 * o.batch :]
            return len(newest) == 10 * o.batch and sum(newest) <= o.passed * len(newest)
        if len(p.recent) < criterion.recent or sum(p.recent) > criterion.recent_wrong * len(p.recent):
            return False
        p.checks += 1
        p.solved = self._check() <= criterion.margin * criterion.tested_wrong
        p.recent = []
        return p.solved

    def _check(self) -> float:
        """The share of wrong answers of the kept weights, on sequences of no update."""
        generator = np.random.default_rng((self.options.seed, CHECK + self.progress.checks))
        wrong = test(self.kept, self.task, generator)
        return sum(wrong) / len(wrong)

    def _advance(self) -> None:
        """To the next length, if there is one; what the losses were before says nothing there."""
        p, o = self.progress, self.options
        times = {"seconds": round(p.seconds, 1), "cpu_seconds": round(p.cpu_seconds, 1)}
        p.passed.append({"length": self.task.length, "sequences": p.sequences, **times})
        p.recent = []
        p.stage = min(p.stage + 1, len(self.tasks) - 1)
        # Where a rate was too high once, it is the more so over more steps, and Adam divides by what it
        # remembers of gradients that had become small
        kept = 0 if o.anew == "rate" else p.drops.drops
        if o.anew == "warmup":
            p.began = p.update
        p.drops = schedules.Drops(o.schedule, o.drop_after, kept)

    def _average(self) -> None:
        """A running mean of the weights (Polyak & Juditsky 1992), short at first so that it follows."""
        k, most = self.progress.update, self.options.average
        if most:
            with torch.no_grad():
                for kept, parameter in zip(self.kept.parameters(), self.network.parameters(), strict=True):
                    kept.lerp_(parameter, 1 - min(most, k / (k + 9)))

    def _report(self, told: Mapping[str, float]) -> None:
        self.report.say(
            f"{int(told['sequences']):,} sequences  length {int(told['length'])}  loss {told['loss']:.5f}  "
            f"wrong {told['wrong']:.2%}  rate {told['rate']:.1e}  {self.progress.seconds:.0f} s"
        )

    def resume(self) -> None:
        """Goes on from the checkpoint in the directory. Raises TrainingError if it is of another training."""
        if self.directory is None:
            raise TrainingError("nothing to resume: this training keeps no checkpoints")
        tensors, facts = checkpoint.read(self.directory)
        checkpoint.check_same(self.directory, facts, self.facts)
        try:
            self.progress = Progress(**{name: facts[name] for name in asdict(self.progress)})
            self.progress.drops = schedules.Drops(**facts["drops"])
            with torch.no_grad():
                for name, parameter in self.network.named_parameters():
                    parameter.copy_(tensors[f"weights/{name}"])
                    self.kept.get_parameter(name).copy_(tensors[f"mean/{name}"])
            checkpoint.restore_optimizer(self.adam, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(f"{self.directory}: the checkpoint is incomplete: {error!r}") from error

    def _checkpoint(self, *, now: bool = False) -> None:
        if self.directory is None or not (now or time.monotonic() - self.saved > SAVE_S):
            return
        tensors: dict[str, Tensor] = {f"mean/{name}": p for name, p in self.kept.named_parameters()}
        tensors |= {f"weights/{name}": p for name, p in self.network.named_parameters()}
        tensors |= checkpoint.of_optimizer(self.adam)
        facts = {**self.facts, **asdict(self.progress)}
        checkpoint.write(self.directory, self.progress.update, tensors, facts)
        self.saved = time.monotonic()


@torch.no_grad()
def test(network: Network | PlainNetwork, task: Task, generator: np.random.Generator) -> list[float]:
    """The share of wrong answers of each test sequence, as many as the task's criterion says."""
    network.eval()
    wrong: list[float] = []
    for first in range(0, task.criterion.tested, SIDE_BY_SIDE):
        batch = task.test(generator, min(SIDE_BY_SIDE, task.criterion.tested - first)).to(network.device)
        wrong += task.wrong(answers(network, batch), batch).tolist()
    return wrong
