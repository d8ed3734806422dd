"""Experiment 6 of Hochreiter & Schmidhuber 1997: in which order did two, or three, rare symbols come?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.config import Signal
from model.tasks.task import Batch, Criterion, Task, at_the_end, cross_entropy, largest_error, one_hot

SYMBOLS = "EBabcdXY"
TOLERANCE = 0.3  # largest absolute error of an output unit of a right answer


class TemporalOrder(Task):
    """E, then a, b, c and d at random, then B, the trigger; X or Y stand at two or three places drawn from
    given spans. The answer after B is the class: the X and Y read as a binary number, X = 0. Places and
    lengths (T to T + T/10) are those of the paper at T = 100, scaled.
    """

    inputs = tuple(Signal(f"symbol_{s}") for s in SYMBOLS)
    criterion = Criterion(recent=2000, recent_wrong=0, tested=2560, tested_wrong=0.001)
    spans: tuple[tuple[float, float], ...]  # of the places, as shares of T

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        T = self.length
        lengths = generator.integers(T, T + T // 10, count, endpoint=True)
        longest, every = int(lengths.max()), np.arange(count)
        symbols = generator.integers(2, 6, (longest, count))
        label = np.zeros(count, np.int64)
        for low, high in self.spans:
            place = generator.integers(round(low * T), round(high * T), count, endpoint=True)
            bit = generator.integers(0, 2, count)
            symbols[place, every] = 6 + bit
            label = 2 * label + bit
        symbols[0] = SYMBOLS.index("E")
        symbols[lengths - 1, every] = SYMBOLS.index("B")
        symbols[np.arange(longest)[:, None] >= lengths] = -1
        target = torch.nn.functional.one_hot(torch.from_numpy(label), len(self.outputs)).float()
        return at_the_end(one_hot(symbols, len(SYMBOLS)), lengths, target)

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(y, batch)

    def wrong(self, y: Tensor, batch: Batch) -> Tensor:
        return (largest_error(y, batch) >= TOLERANCE).float()


class TwoSymbols(TemporalOrder):
    name = "order-2"
    about = "the order of two symbols among distractors (experiment 6a)"
    outputs = tuple(Signal(f"class_{s}", "logit") for s in ("XX", "XY", "YX", "YY"))
    spans = ((0.1, 0.2), (0.5, 0.6))


class ThreeSymbols(TemporalOrder):
    name = "order-3"
    about = "the order of three symbols among distractors (experiment 6b)"
    outputs = tuple(Signal(f"class_{a}{b}{c}", "logit") for a in "XY" for b in "XY" for c in "XY")
    spans = ((0.1, 0.2), (0.33, 0.43), (0.66, 0.76))
