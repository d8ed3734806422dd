"""The figures of a network on a task: on sequences drawn again from the seed of its training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model.bundle import Bundle
from model.data import Source
from model.errors import BundleMalformed, TaskError
from model.tasks.catalogue import make
from model.tasks.task import Batch, Task

TEST = 2**33  # where the seeds of tests begin, far beyond those of any training sequence
SIDE_BY_SIDE = 256  # sequences at once


class Stepped(Protocol):
    """What can be measured on a task: of `streaming.Predictor` the part that a task needs."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, x: Tensor, state: Any, /) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Trial:
    """What a bundle of a task is measured on: its task, and the seed of its training."""

    task: Task
    seed: int

    def batches(self, count: int | None = None) -> Iterator[Batch]:
        """The test sequences, `count` of them, as many as the task's criterion says unless given."""
        count = self.task.criterion.tested if count is None else count
        generator = np.random.default_rng((self.seed, TEST))
        for first in range(0, count, SIDE_BY_SIDE):
            yield self.task.test(generator, min(SIDE_BY_SIDE, count - first))


def trial_of(bundle: Bundle) -> Trial | None:
    """The trial of a bundle that was trained on a task; None if it was trained on data. Raises
    BundleMalformed."""
    told = bundle.training.get("task")
    if told is None:
        return None
    try:
        seed = int(told["seed"])
        return Trial(make(str(told["name"]), int(told["length"]), seed), seed)
    except (KeyError, TypeError, ValueError, TaskError) as error:
        raise BundleMalformed(
            f"the manifest of {bundle.name} names no task that can be set: {error}"
        ) from error


@torch.no_grad()
def measure_task(trial: Trial, network: Stepped, precision: str = "float32") -> tuple[dict[str, Any], Source]:
    """The quality figures as they stand in a manifest, and the SHA-256 of the sequences. precision: what the
    network computes in, to be told with the figures.
    """
    task, digest = trial.task, hashlib.sha256()
    wrong, whole, count = 0.0, 0, 0
    if isinstance(network, nn.Module):
        network.eval()
    for drawn in trial.batches():
        digest.update(drawn.x.numpy().tobytes())
        batch = drawn.to(network.device)
        y, _ = network(batch.x, None)
        shares = task.wrong(y[batch.step, batch.row, 0].float(), batch)
        wrong += shares.sum().item()
        whole += int((shares == 0).sum())
        count += len(batch)
    quality = {
        "part": "test",
        "task": task.name,
        "length": task.length,
        "sequences": count,
        "seed": trial.seed,
        "state": f"from zeros at each sequence's first step, {precision}",
        "table": {"model": {"right": 1 - wrong / count, "sequences_right": whole / count}},
        "solved": wrong / count <= task.criterion.tested_wrong,
    }
    return quality, Source(f"{count} sequences of {task.name} {task.length}", digest.hexdigest())
