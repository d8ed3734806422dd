"""The embedded Reber grammar: experiment 1 of Hochreiter & Schmidhuber 1997, after Smith & Zipser 1989."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.config import Signal
from model.tasks.task import Batch, Criterion, Task, any_of, cross_entropy, one_hot

SYMBOLS = "BTSXVPE"
STRINGS = 256  # of the training set, and of the test set
END = 6
#: Which symbols lead from a state of the inner grammar, and where to.
GRAMMAR: dict[int, tuple[tuple[str, int], ...]] = {
    0: (("B", 1),),
    1: (("T", 2), ("P", 3)),
    2: (("S", 2), ("X", 4)),
    3: (("T", 3), ("V", 5)),
    4: (("X", 3), ("S", END)),
    5: (("P", 4), ("V", END)),
    END: (("E", -1),),
}


def string(generator: np.random.Generator) -> tuple[str, list[str]]:
    """One embedded string, and the legal next symbols after each of its symbols but the last."""
    outer = "TP"[generator.integers(2)]
    text, legal, state = "B" + outer, ["TP"], 0
    while state >= 0:
        ways = GRAMMAR[state]
        legal.append("".join(symbol for symbol, _ in ways))
        symbol, state = ways[generator.integers(len(ways))]
        text += symbol
    return text + outer + "E", [*legal, outer, "E"]


class EmbeddedReber(Task):
    """Strings of the grammar, B T <Reber string> T E or B P <Reber string> P E: every next symbol is to be
    predicted. A string is right if after each of its symbols every legal next one is more active than every
    other. 256 training strings and 256 others for the test are drawn from `seed`.

    The test asks for all of both sets. The task has no length.
    """

    name = "reber"
    about = "predict the next symbols of strings of the embedded Reber grammar (experiment 1)"
    least, usual = 1, 1
    inputs = tuple(Signal(f"symbol_{s}") for s in SYMBOLS)
    outputs = tuple(Signal(f"next_{s}", "logit") for s in SYMBOLS)
    criterion = Criterion(recent=512, recent_wrong=0, tested=2 * STRINGS, tested_wrong=0)

    def __init__(self, length: int = 1, seed: int = 0) -> None:
        super().__init__(length)
        generator = np.random.default_rng((seed, 1997))
        found: dict[str, list[str]] = {}
        while len(found) < 2 * STRINGS:
            text, legal = string(generator)
            found[text] = legal
        self.strings = list(found.items())

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        return self._batch(generator.integers(0, STRINGS, count).tolist())

    def test(self, generator: np.random.Generator, count: int) -> Batch:
        """Strings of both sets, from the first on; the generator is not used."""
        return self._batch([k % (2 * STRINGS) for k in range(count)])

    def _batch(self, chosen: list[int]) -> Batch:
        texts = [self.strings[k][0] for k in chosen]
        lengths = np.array([len(text) - 1 for text in texts])
        symbols = np.full((lengths.max() + 1, len(texts)), -1)
        for place, text in enumerate(texts):
            symbols[: len(text), place] = [SYMBOLS.index(s) for s in text]
        step, row = np.nonzero(symbols[1:] >= 0)
        target = one_hot(symbols, len(SYMBOLS))[1:][step, row]
        weight = torch.from_numpy(1 / lengths[row]).float()
        x = one_hot(np.where(symbols[1:] >= 0, symbols[:-1], -1), len(SYMBOLS))
        allowed = torch.zeros_like(target)
        for place, (t, b) in enumerate(zip(step, row, strict=True)):
            allowed[place, [SYMBOLS.index(s) for s in self.strings[chosen[b]][1][t]]] = 1
        places = (torch.from_numpy(step), torch.from_numpy(row))
        return Batch(x, torch.from_numpy(lengths), *places, target, weight, allowed)

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(y, batch)

    def wrong(self, y: Tensor, batch: Batch) -> Tensor:
        assert batch.allowed is not None  # noqa: S101  every batch of this task has it
        legal = batch.allowed > 0
        least = y.masked_fill(~legal, torch.inf).amin(-1)
        return any_of(least <= y.masked_fill(legal, -torch.inf).amax(-1), batch)
