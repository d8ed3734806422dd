"""The copying problem (Hochreiter & Schmidhuber's 1997 idea in the form of Arjovsky, Shah & Bengio 2016)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.config import Signal
from model.tasks.task import Batch, Criterion, Task, cross_entropy, one_hot

ALPHABET, ITEMS = 8, 10
BLANK, DELIMITER = ALPHABET, ALPHABET + 1


class Copying(Task):
    """Ten symbols of eight, T - 1 blanks, a delimiter, ten blanks: T + 20 steps. The answer is blank until
    the delimiter was read; then, over ten steps, the ten symbols in their order.

    In the loss the ten symbols count half, and all the blanks together the other half: at a mean over all
    steps the ten would vanish as T grows.
    """

    name = "copying"
    about = "ten symbols again, after a long gap of blanks"
    least = 1
    inputs = tuple(Signal(f"symbol_{s}") for s in (*range(ALPHABET), "blank", "delimiter"))
    outputs = tuple(Signal(f"says_{s}", "logit") for s in (*range(ALPHABET), "blank"))
    criterion = Criterion(recent=500, recent_wrong=0.01, tested=2560, tested_wrong=0.01, margin=0.75)

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        T = self.length + 2 * ITEMS
        items = generator.integers(0, ALPHABET, (ITEMS, count))
        symbols = np.full((T, count), BLANK)
        symbols[:ITEMS] = items
        symbols[T - ITEMS - 1] = DELIMITER
        says = np.full((T, count), BLANK)
        says[-ITEMS:] = items
        weight = torch.full((T, count), 0.5 / (T - ITEMS))
        weight[-ITEMS:] = 0.5 / ITEMS
        return Batch(
            one_hot(symbols, len(self.inputs)),
            torch.full((count,), T),
            torch.arange(T).repeat_interleave(count),
            torch.arange(count).repeat(T),
            one_hot(says, len(self.outputs)).reshape(T * count, -1),
            weight.reshape(-1),
        )

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(y, batch)

    def wrong(self, y: Tensor, batch: Batch) -> Tensor:
        """The share of the ten symbols: a blank that is no blank does not count."""
        last = slice(-ITEMS * len(batch), None)
        differs = y[last].argmax(-1) != batch.target[last].argmax(-1)
        return differs.float().view(ITEMS, len(batch)).mean(0)
