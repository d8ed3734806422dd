"""The loop: truncated back-propagation through time, with the state carried across the windows.

Within a window gradients flow from step to step (Werbos 1990); between windows only the state's value goes
on (Williams & Peng 1990), so a window costs bounded memory and the network still learns from states as old as
its stream, which is what it meets when it is served.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.dropout import Dropout
from model.errors import TrainingError
from model.network import Network
from model.train import checkpoint
from model.train.clipping import check_finite, clip
from model.train.options import Options
from model.train.report import Epoch, Report
from model.train.schedules import Drops
from model.train.streams import TrainingData


@dataclass
class Progress:
    """How far a training has come: the plain facts of its checkpoint."""

    epoch: int = 0  # whole epochs done
    update: int = 0
    best: float = math.inf  # lowest validation loss, and the epoch (from 1) it came after
    best_epoch: int = 0
    seconds: float = 0.0
    drops: Drops = field(default_factory=Drops)
    history: list[Epoch] = field(default_factory=list)


class Trainer:
    """Trains one network. After `fit` the network holds the best weights by validation loss."""

    def __init__(
        self,
        network: Network,
        data: TrainingData,
        options: Options,
        directory: Path | None = None,
        report: Report | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """directory: where checkpoints go, if anywhere. facts: what a checkpoint must share with this
        training to be resumed by it, beside the options (the data's digest, the architecture).
        """
        self.network, self.data, self.options = network, data, options
        self.directory, self.report = directory, report or Report()
        self.facts = {**(facts or {}), "options": asdict(options)}
        self.progress = Progress(drops=Drops(options.schedule, options.drop_after))
        self.device = next(network.parameters()).device
        o = options
        self.dropout = Dropout(o.dropout, o.dropout_mask == "window", o.weight_dropout, o.symbol_dropout)
        fused = self.device.type in ("cpu", "cuda")
        self.adam = torch.optim.AdamW(
            network.parameters(),
            lr=options.learning_rate,
            betas=(0.9, 0.99),  # trainings here are a few thousand updates: 0.999 would remember the first
            weight_decay=options.weight_decay,
            fused=fused,
        )
        self.updates = options.epochs * data.windows
        self.held = network.held_weights()
        self.best = self._copy()
        self.mean = self._copy()

    def fit(self) -> Progress:
        """Trains until the epochs are done or the validation loss has stopped falling."""
        p = self.progress
        if self.held and not p.epoch:  # what is there before the first epoch is a model, too
            p.best = self._validate()
            self.report.say(f"before the first epoch: validation {p.best:.4f}")
        while p.epoch < self.options.epochs and p.epoch - p.best_epoch < self.options.patience:
            began = time.monotonic()
            train, rate = self._train_epoch()
            validation = self._validate()
            p.epoch += 1
            p.seconds += time.monotonic() - began
            p.drops.see(validation)
            better = validation < p.best
            if better:
                p.best, p.best_epoch = validation, p.epoch
                self.best = self._copy(self._kept())
            entry = {"epoch": p.epoch, "train": train, "validation": validation, "rate": rate}
            p.history.append({**entry, "seconds": round(p.seconds, 1)})
            self.report.end(p.history[-1], self.options.epochs, better)
            self._checkpoint()
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(self.best[name])
        return p

    def resume(self) -> None:
        """Goes on from the checkpoint in the directory. Raises TrainingError if it is of another training."""
        if self.directory is None:
            raise TrainingError("nothing to resume: this training keeps no checkpoints")
        tensors, facts = checkpoint.read(self.directory)
        checkpoint.check_same(self.directory, facts, self.facts)
        try:
            self._restore(tensors, facts)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(f"{self.directory}: the checkpoint is incomplete: {error!r}") from error

    def _train_epoch(self) -> tuple[float, float]:
        """One pass. Returns the mean loss and the last learning rate."""
        o, p = self.options, self.progress
        # The order depends on seed and epoch alone, so a resumed training sees what it would have seen.
        generator = torch.Generator().manual_seed(o.seed * 1_000_003 + p.epoch)
        self.network.train()
        self.report.begin(p.epoch, o.epochs, self.data.windows)
        state, total, rate = None, 0.0, 0.0
        for x, target in self.data.epoch(generator):
            if not target.numel():  # rows before the streams
                with torch.no_grad(), self._autocast():
                    state = self.network.lstm(self.network.embed(x), state)[1]
                continue
            with self._autocast():
                y, (h, c) = self.network(x, state, self.dropout)
            state = (h.detach(), c.detach())
            loss = self.data.loss(y, target)
            value = loss.item()
            check_finite(value, p.update)
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter, rows, _ in self.held:
                if parameter.grad is not None:
                    parameter.grad[rows] = 0
            usable = clip(self.network.parameters(), o.clip_by, o.clip)
            rate = o.rate(p.update, self.updates, p.drops.drops)
            for group in self.adam.param_groups:
                group["lr"] = rate
            if usable:
                self.adam.step()
            with torch.no_grad():
                for parameter, rows, values in self.held:
                    parameter[rows] = values
            self.adam.zero_grad(set_to_none=True)
            p.update += 1
            self._average()
            total += value
            self.report.update(value)
        return total / self.data.windows, rate

    def _average(self) -> None:
        """A running mean of the weights (Polyak & Juditsky 1992), short at first so that it follows."""
        if not self.options.average:
            return
        k = self.progress.update
        share = 1 - min(self.options.average, k / (k + 9))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                self.mean[name].lerp_(parameter, share)

    def _kept(self) -> dict[str, Tensor]:
        """The weights that count: the running mean if there is one."""
        return self.mean if self.options.average else dict(self.network.named_parameters())

    def _validate(self) -> float:
        trained = self._copy()
        parameters = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, tensor in self._kept().items():
                parameters[name].copy_(tensor)
            with self._autocast():
                loss = self.data.validate(self.network)
            for name, tensor in trained.items():
                parameters[name].copy_(tensor)
        return loss

    def _autocast(self) -> torch.autocast:
        enabled = self.options.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _copy(self, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        source = dict(self.network.named_parameters()) if weights is None else weights
        return {name: tensor.detach().clone() for name, tensor in source.items()}

    def _checkpoint(self) -> None:
        if self.directory is None:
            return
        groups = {"weights": self._copy(), "best": self.best, "mean": self.mean}
        tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
        tensors |= checkpoint.of_optimizer(self.adam)
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint.write(
            self.directory, self.progress.epoch, tensors, {**self.facts, **asdict(self.progress)}
        )

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        told = {name: facts[name] for name in asdict(self.progress)}
        self.progress = Progress(**{**told, "drops": Drops(**told["drops"])})
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(tensors[f"weights/{name}"])
                self.best[name].copy_(tensors[f"best/{name}"])
                self.mean[name].copy_(tensors[f"mean/{name}"])
        checkpoint.restore_optimizer(self.adam, tensors)
        torch.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
