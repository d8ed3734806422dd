"""Experiments 2a and 2c of Hochreiter & Schmidhuber 1997: one early symbol decides the last one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.config import Signal
from model.tasks.task import (
    Batch,
    Criterion,
    Task,
    any_of,
    at_the_end,
    cross_entropy,
    largest_error,
    one_hot,
)

DISTRACTORS = 50  # of 2c: the fewest of the paper's table, which makes its hardest row


class NoiseFree(Task):
    """2a: x or y, then the same T - 1 symbols in the same order, then the first symbol again. Every next
    symbol is to be predicted; only the last needs the memory.
    """

    name = "lag-2a"
    about = "predict every next symbol of one of two rows; the first decides the last (experiment 2a)"
    least = 2
    criterion = Criterion(recent=500, recent_wrong=0, tested=10_000, tested_wrong=0)
    tolerance = 0.25

    def __init__(self, length: int) -> None:
        super().__init__(length)
        names = [*(f"a{k}" for k in range(1, length)), "x", "y"]
        self.inputs = tuple(Signal(f"symbol_{name}") for name in names)
        self.outputs = tuple(Signal(f"next_{name}", "logit") for name in names)

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        T, size = self.length, len(self.inputs)
        row = np.empty((T + 1, count), np.int64)
        row[0] = row[T] = T - 1 + generator.integers(0, 2, count)
        row[1:T] = np.arange(T - 1)[:, None]
        target = one_hot(row[1:], size).reshape(T * count, size)
        step = torch.arange(T).repeat_interleave(count)
        lengths = torch.full((count,), T)
        weight = torch.full((T * count,), 1 / T)
        return Batch(one_hot(row[:T], size), lengths, step, torch.arange(count).repeat(T), target, weight)

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(y, batch)

    def wrong(self, y: Tensor, batch: Batch) -> Tensor:
        return any_of(largest_error(y, batch) >= self.tolerance, batch)


class Noisy(Task):
    """2c: b, then x or y, then at least T distractors at random, then e, the trigger: after it the second
    symbol again is to be predicted. After T distractors each next symbol is e with probability 1/10.
    """

    name = "lag-2c"
    about = "predict x or y behind a long row of distractors and a trigger (experiment 2c)"
    least = 1
    criterion = Criterion(recent=2000, recent_wrong=0, tested=10_000, tested_wrong=0)
    tolerance = 0.2
    inputs = tuple(Signal(f"symbol_{s}") for s in (*(f"a{k + 1}" for k in range(DISTRACTORS)), *"ebxy"))
    outputs = (Signal("next_x", "logit"), Signal("next_y", "logit"))

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        lengths = self.length + generator.geometric(0.1, count) - 1 + 3
        longest, every = int(lengths.max()), np.arange(count)
        symbols = generator.integers(0, DISTRACTORS, (longest, count))
        which = generator.integers(0, 2, count)
        symbols[0] = DISTRACTORS + 1
        symbols[1] = DISTRACTORS + 2 + which
        symbols[lengths - 1, every] = DISTRACTORS
        symbols[np.arange(longest)[:, None] >= lengths] = -1
        target = torch.nn.functional.one_hot(torch.from_numpy(which), 2).float()
        return at_the_end(one_hot(symbols, len(self.inputs)), lengths, target)

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(y, batch)

    def wrong(self, y: Tensor, batch: Batch) -> Tensor:
        return (largest_error(y, batch) >= self.tolerance).float()
