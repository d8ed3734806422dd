"""The steps of several sessions of different length, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.jobs import Prepared

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Steps `first` to `last` of a chunk, whose rows begin at `row`."""

    first: int
    last: int
    row: int
    rows: int


class Chunk:
    """One step's rows behind the other's, a step's rows being those of the sessions that still run. Sessions
    come in falling length, so these are a prefix, and nothing is computed behind an end."""

    __slots__ = ("counts", "firsts", "indices", "rows")

    def __init__(self, inputs: Sequence[Prepared]) -> None:
        B, steps = len(inputs), np.arange(len(inputs[0]))
        if len(inputs[-1]) == len(steps):  # all have the same: most ticks, and every step's rows are all
            self.counts: Index = np.full(len(steps), B)
            self.firsts: Index = steps * B
            self.indices: list[Index | slice] = [slice(b, None, B) for b in range(B)]
            self.rows = B * len(steps)
            return
        lengths = np.array([len(x) for x in inputs])
        self.counts = np.searchsorted(-lengths, -steps, "left").astype(np.int64)
        self.firsts = np.concatenate(([0], np.cumsum(self.counts[:-1])))
        self.indices = [self.firsts[: len(x)] + b for b, x in enumerate(inputs)]
        self.rows = int(lengths.sum())

    def flat(self, inputs: Sequence[Prepared]) -> Prepared:
        """All rows [rows, I], or tokens [rows]."""
        flat = np.empty((self.rows, *inputs[0].shape[1:]), inputs[0].dtype)
        for index, x in zip(self.indices, inputs, strict=True):
            flat[index] = x
        return flat

    def blocks(self, most: int) -> list[Block]:
        """As many steps at a time as have at most so many rows; one at least."""
        ends = self.firsts + self.counts
        blocks, t = [], 0
        while t < len(ends):
            row = int(self.firsts[t])
            last = max(t + 1, int(np.searchsorted(ends, row + most, "right")))
            blocks.append(Block(t, last, row, int(ends[last - 1]) - row))
            t = last
        return blocks
