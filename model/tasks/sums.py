"""Experiments 4 and 5 of Hochreiter & Schmidhuber 1997: keep two numbers for long, then add or multiply."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import Signal
from model.tasks.task import Batch, Criterion, Task, at_the_end

TOLERANCE = 0.04  # largest absolute error of a right answer


class Marked(Task):
    """Pairs of a value and a marker; two values are marked with 1. One is among the first ten pairs, the
    other among the first T/2, so that at least T/2 steps pass before the answer. The first and the last pair
    have the marker -1. Lengths are uniform from T to T + T/10.
    """

    inputs = (Signal("value"), Signal("marker"))
    lowest: float  # of the values, which reach to 1
    neutral: float  # what the first pair counts as if it is one of the two: its marker does not show it

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        T = self.length
        lengths = generator.integers(T, T + T // 10, count, endpoint=True)
        longest, every = int(lengths.max()), np.arange(count)
        values = generator.uniform(self.lowest, 1, (longest, count)).astype(np.float32)
        markers = np.zeros((longest, count), np.float32)
        first = generator.integers(0, 10, count)
        second = generator.integers(0, T // 2 - 1, count)
        second += second >= first  # of those not marked yet
        x1, x2 = (np.where(k == 0, self.neutral, values[k, every]) for k in (first, second))
        markers[first, every] = markers[second, every] = 1
        markers[0] = markers[lengths - 1, every] = -1
        beyond = np.arange(longest)[:, None] >= lengths
        values[beyond] = 0
        x = torch.from_numpy(np.stack((values, markers), -1))
        target = torch.from_numpy(self.answer(x1, x2).astype(np.float32))[:, None]
        return at_the_end(x, lengths, target)

    def answer(self, x1: NDArray[np.float64], x2: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the network should say after the last pair."""
        raise NotImplementedError

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return (y - batch.target).square().mean()

    def wrong(self, y: Tensor, batch: Batch) -> Tensor:
        return ((y - batch.target).abs()[:, 0] >= TOLERANCE).float()


class Adding(Marked):
    name = "adding"
    about = "the sum of two marked numbers of a long row, scaled to [0, 1]"
    outputs = (Signal("sum"),)
    criterion = Criterion(recent=2000, recent_wrong=0, tested=2560, tested_wrong=0.001)
    lowest, neutral = -1.0, 0.0

    def answer(self, x1: NDArray[np.float64], x2: NDArray[np.float64]) -> NDArray[np.float64]:
        return 0.5 + (x1 + x2) / 4


class Multiplication(Marked):
    name = "multiplication"
    about = "the product of two marked numbers of a long row"
    outputs = (Signal("product"),)
    criterion = Criterion(recent=2000, recent_wrong=13 / 2000, tested=2560, tested_wrong=14 / 2560)
    lowest, neutral = 0.0, 1.0

    def answer(self, x1: NDArray[np.float64], x2: NDArray[np.float64]) -> NDArray[np.float64]:
        return x1 * x2
