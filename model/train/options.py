"""How a network is trained: every choice of the loop, in one frozen value that checkpoints carry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from model.errors import TrainingError
from model.train import clipping, schedules

PRECISIONS = ("float32", "bfloat16")
LOSSES = ("mse", "mae", "huber")
MASKS = ("step", "window")


def option(default: Any, help: str, least: float = 0.0, most: float = math.inf) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


def choice(default: str, choices: tuple[str, ...], help: str) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


def check(options: Any) -> None:
    """Raises TrainingError for a field of an options' value that is not what `option` or `choice` allow."""
    for f in fields(options):
        value = getattr(options, f.name)
        if "least" in f.metadata and not f.metadata["least"] <= value <= f.metadata["most"]:
            least, most = f.metadata["least"], f.metadata["most"]
            bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise TrainingError(f"{f.name.replace('_', '-')} must be {bounds}, not {value!r}")
        if "choices" in f.metadata and value not in f.metadata["choices"]:
            choices = ", ".join(f.metadata["choices"])
            raise TrainingError(f"{f.name.replace('_', '-')} must be one of {choices}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Options:
    """The command's flags are made of these fields: name, default, help."""

    epochs: int = option(
        50, "passes over the training part, at most; 0: none, if a memory has a head", least=0
    )
    window: int = option(96, "steps of back-propagation; the state is carried across windows", least=1)
    streams: int = option(16, "contiguous pieces of the data that are learnt side by side", least=1)
    learning_rate: float = option(2e-3, "highest learning rate (AdamW)", least=1e-9)
    warmup: int = option(100, "updates over which the learning rate rises from 0", least=0)
    final_rate: float = option(0.02, "least share of the learning rate: the cosine ends there", most=1)
    schedule: str = choice("cosine", schedules.KINDS, "how the learning rate falls")
    drop: float = option(0.3, "step, plateau: what the learning rate is multiplied by", least=1e-3, most=1)
    drop_after: int = option(5, "epochs until it is; plateau: without a better validation loss", least=1)
    weight_decay: float = option(0.01, "decay of the weights (AdamW)")
    dropout: float = option(0.1, "between layers and before the head", most=0.95)
    dropout_mask: str = choice(
        "step", MASKS, "how long a draw of it holds: a step, or a window (variational dropout)"
    )
    weight_dropout: float = option(0.0, "of the weights from step to step, drawn once a window", most=0.95)
    symbol_dropout: float = option(0.0, "text: of the vocabulary, drawn once a window", most=0.95)
    clip: float = option(1.0, "largest norm of a gradient, or what --clip-by makes of it", least=1e-9)
    clip_by: str = choice("norm", clipping.KINDS, "how gradients are clipped")
    average: float = option(
        0.0, "decay of the running mean of the weights that is kept; 0: none", most=0.9999
    )
    noise: float = option(0.0, "series: deviation of noise on the inputs, in normalised units")
    shift: float = option(0.0, "series: deviation of a level added to each signal of a stream, normalised")
    past: int = option(0, "rows that each stream runs over before it learns", least=0)
    scale: float = option(0.0, "series: deviation of the logarithm of a factor on each signal of a stream")
    forget_bias: float = option(1.0, "first bias of the forget gates", least=-math.inf)
    chrono: int = option(0, "longest time to be kept, for the first biases of the gates; 0: --forget-bias")
    patience: int = option(10, "epochs without a better validation loss before training stops", least=1)
    seed: int = option(0, "of the first weights, of the order, and of dropout", least=0, most=2**31 - 1)
    loss: str = choice("mse", LOSSES, "series: squared error, absolute error, or absolute above 1 (huber)")
    precision: str = choice("float32", PRECISIONS, "of the arithmetic while training")

    def __post_init__(self) -> None:
        check(self)

    def rate(self, update: int, updates: int, drops: int = 0) -> float:
        """The learning rate of one update of `updates` in all, after so many drops: a straight rise, times
        the schedule's share.
        """
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        done = update / max(1, updates)
        return (
            self.learning_rate
            * rise
            * schedules.share(self.schedule, done, drops, self.drop, self.final_rate)
        )
