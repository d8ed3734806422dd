"""How a long-memory task is trained: every choice of the loop, in one frozen value that checkpoints carry."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.train import clipping, schedules
from model.train.options import PRECISIONS, check, choice, option

CELLS = ("lstm", "rnn")
ANEW = ("rate", "warmup", "nothing")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The command's flags are made of these fields: name, default, help."""

    cell: str = choice("lstm", CELLS, "rnn: a plain tanh network of the same size, to compare; no bundle")
    hidden: int = option(32, "hidden size", least=1)
    batch: int = option(32, "sequences an update", least=1)
    sequences: int = option(1_000_000, "training sequences, at most, over all lengths", least=1)
    start: int = option(0, "curriculum: the first length; 0: the full length from the beginning")
    growth: float = option(2.0, "curriculum: the next length is this many times longer", least=1.01)
    passed: float = option(0.02, "curriculum: a length is done with this share of wrong answers", most=1)
    learning_rate: float = option(3e-3, "highest learning rate (Adam)", least=1e-9)
    warmup: int = option(50, "updates over which the learning rate rises from 0")
    schedule: str = choice("plateau", schedules.KINDS, "how the learning rate falls")
    anew: str = choice(
        "rate", ANEW, "what begins anew at each length: the learning rate, only its warm-up, or nothing"
    )
    fade: float = option(
        0.0, "curriculum: the rate is divided by (length / first length) to the power of this"
    )
    mixed: float = option(
        0.0, "curriculum: share of updates on a shorter length, drawn evenly from the first one on", most=1
    )
    drop: float = option(0.5, "step, plateau: what the learning rate is multiplied by", least=1e-3, most=1)
    drop_after: int = option(
        8, "step, plateau: rounds of 20 updates (without a better loss) to a drop", least=1
    )
    final_rate: float = option(0.02, "least share of the learning rate", most=1)
    clip: float = option(1.0, "largest norm of a gradient, or what --clip-by makes of it", least=1e-9)
    clip_by: str = choice("norm", clipping.TASK_KINDS, "how gradients are clipped")
    average: float = option(
        0.98, "decay of the running mean of the weights that is kept; 0: none", most=0.9999
    )
    forget_bias: float = option(1.0, "first bias of the forget gates", least=-math.inf)
    chrono: int = option(
        -1, "longest time to be kept, for the first biases of the gates; -1: the length; 0: none", least=-1
    )
    seed: int = option(0, "of the first weights and of all sequences", most=2**31 - 1)
    precision: str = choice("float32", PRECISIONS, "of the arithmetic while training")

    def __post_init__(self) -> None:
        check(self)

    def lengths(self, full: int) -> list[int]:
        """The lengths in turn, up to the full one."""
        lengths = [min(self.start, full)] if self.start else [full]
        while lengths[-1] < full:
            lengths.append(min(full, math.ceil(lengths[-1] * self.growth)))
        # A last step that is much shorter than the others would cost a length and teach little.
        if len(lengths) > 2 and lengths[-1] < lengths[-2] * math.sqrt(self.growth):
            del lengths[-2]
        return lengths
