"""What a task is: seeded sequences, where an answer is due, what it should be, when it is solved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import Signal
from model.errors import TaskError


@dataclass(frozen=True)
class Batch:
    """B sequences, and the N places in them where an answer is due.

    x [T, B, I] float32, zeros behind the end of a shorter sequence; lengths [B].
    step, row [N]: the place, after `step` of sequence `row`. target [N, O] float32: what training aims at.
    weight [N]: of each place in the loss; they add up to 1 a sequence. allowed [N, O]: where more answers
    than the target are right, all of them, as ones.
    """

    x: Tensor
    lengths: Tensor
    step: Tensor
    row: Tensor
    target: Tensor
    weight: Tensor
    allowed: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[1]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: t.to(device) for k, t in tensors.items() if t is not None})


@dataclass(frozen=True)
class Criterion:
    """A task is solved when of the `recent` newest training sequences at most the share `recent_wrong` was
    wrong, and then, of `tested` new ones, at most the share `tested_wrong`. Training ends when of as many
    other ones no more than `margin` of that share is wrong: what is just good enough on one draw is often not
    on the next, the more so the fewer wrong answers there may be.
    """

    recent: int
    recent_wrong: float
    tested: int
    tested_wrong: float
    margin: float = 0.25


class Task(ABC):
    """One task at one length. Sequences depend on the generator that is handed in, and on nothing else."""

    name: ClassVar[str]
    about: ClassVar[str]
    least: ClassVar[int] = 20  # shortest length that the task can be set at
    usual: ClassVar[int] = 100  # length if none is asked for
    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    criterion: Criterion

    def __init__(self, length: int) -> None:
        if not self.least <= length <= 1_000_000:
            raise TaskError(f"{self.name}: length must be from {self.least} to 1000000, not {length}")
        self.length = length

    @abstractmethod
    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        """New training sequences."""

    @abstractmethod
    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        """What training makes small. y [N, O]: the head's output at the batch's places."""

    @abstractmethod
    def wrong(self, y: Tensor, batch: Batch) -> Tensor:
        """For each sequence [B] which share of its answers is wrong; where they count as one: 0 or 1."""

    def test(self, generator: np.random.Generator, count: int) -> Batch:
        """New test sequences; drawn as those of the training are, if the task has no separate ones."""
        return self.draw(generator, count)


def one_hot(symbols: NDArray[np.int64], size: int) -> Tensor:
    """Symbols [T, B], below 0 behind a sequence's end, as float32 [T, B, size]; zeros behind the end."""
    x = torch.zeros(*symbols.shape, size)
    there = torch.from_numpy(symbols).clamp(min=0)[..., None]
    return x.scatter_(2, there, torch.from_numpy(symbols >= 0).float()[..., None])


def at_the_end(x: Tensor, lengths: NDArray[np.int64], target: Tensor) -> Batch:
    """A batch whose sequences have one answer each, after their last step."""
    ends = torch.from_numpy(lengths)
    count = len(ends)
    return Batch(x, ends, ends - 1, torch.arange(count), target, torch.ones(count))


def any_of(wrong: Tensor, batch: Batch) -> Tensor:
    """1 for each sequence [B] with a wrong answer among its places; wrong [N] bool."""
    zeros = wrong.new_zeros(len(batch), dtype=torch.float32)
    return zeros.index_put((batch.row,), wrong.float(), accumulate=True).clamp(max=1)


def cross_entropy(y: Tensor, batch: Batch) -> Tensor:
    """Nats a sequence of the target's symbol, under the softmax of y [N, O]."""
    nats = -(batch.target * y.log_softmax(-1)).sum(-1)
    return (nats * batch.weight).sum() / len(batch)


def largest_error(y: Tensor, batch: Batch) -> Tensor:
    """Of each answer [N] the largest absolute error of an output unit, after the softmax of y [N, O]."""
    return (y.softmax(-1) - batch.target).abs().amax(-1)
