"""How the learning rate falls: the share of it that is in force."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("cosine", "constant", "step", "plateau")
#: A loss counts as better if it is below this share of the best.
BETTER = 0.99


def share(kind: str, done: float, drops: int, drop: float, final: float) -> float:
    """cosine: half a cosine from 1 to `final` (Loshchilov & Hutter 2017), by `done`, the part of the training
    that is done. step and plateau: `drop` to the power of `drops`, at least `final`. constant: 1.
    """
    if kind == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0 if kind == "constant" else max(final, drop**drops)


@dataclass
class Drops:
    """How often the rate has dropped. see() is told each loss in turn: step drops after every `after` losses,
    plateau when `after` losses in a row were no better than the best before them.
    """

    kind: str = "constant"
    after: int = 1
    drops: int = 0
    waited: int = 0
    best: float = math.inf

    def see(self, loss: float) -> None:
        better = loss < BETTER * self.best
        if better:
            self.best = loss
        self.waited = 0 if better and self.kind == "plateau" else self.waited + 1
        if self.kind in ("step", "plateau") and self.waited >= self.after:
            self.drops, self.waited = self.drops + 1, 0
