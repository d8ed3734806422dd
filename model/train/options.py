"""How a network is trained: every choice of the loop, in one frozen value that checkpoints carry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from model.errors import TrainingError

PRECISIONS = ("float32", "bfloat16")
LOSSES = ("mse", "mae", "huber")
MASKS = ("step", "window")


def _option(default: Any, help: str, least: float = 0.0, most: float = math.inf) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


def _choice(default: str, choices: tuple[str, ...], help: str) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, slots=True)
class Options:
    """The command's flags are made of these fields: name, default, help."""

    epochs: int = _option(
        50, "passes over the training part, at most; 0: none, if a memory has a head", least=0
    )
    window: int = _option(96, "steps of back-propagation; the state is carried across windows", least=1)
    streams: int = _option(16, "contiguous pieces of the data that are learnt side by side", least=1)
    learning_rate: float = _option(2e-3, "highest learning rate (AdamW)", least=1e-9)
    warmup: int = _option(100, "updates over which the learning rate rises from 0", least=0)
    final_rate: float = _option(0.02, "share of the learning rate that the cosine ends at", most=1)
    weight_decay: float = _option(0.01, "decay of the weights (AdamW)")
    dropout: float = _option(0.1, "between layers and before the head", most=0.95)
    dropout_mask: str = _choice(
        "step", MASKS, "how long a draw of it holds: a step, or a window (variational dropout)"
    )
    weight_dropout: float = _option(0.0, "of the weights from step to step, drawn once a window", most=0.95)
    symbol_dropout: float = _option(0.0, "text: of the vocabulary, drawn once a window", most=0.95)
    clip: float = _option(1.0, "largest norm of a gradient", least=1e-9)
    average: float = _option(
        0.0, "decay of the running mean of the weights that is kept; 0: none", most=0.9999
    )
    noise: float = _option(0.0, "series: deviation of noise on the inputs, in normalised units")
    shift: float = _option(0.0, "series: deviation of a level added to each signal of a stream, normalised")
    past: int = _option(0, "rows that each stream runs over before it learns", least=0)
    scale: float = _option(0.0, "series: deviation of the logarithm of a factor on each signal of a stream")
    patience: int = _option(10, "epochs without a better validation loss before training stops", least=1)
    seed: int = _option(0, "of the first weights, of the order, and of dropout", least=0, most=2**31 - 1)
    loss: str = _choice("mse", LOSSES, "series: squared error, absolute error, or absolute above 1 (huber)")
    precision: str = _choice("float32", PRECISIONS, "of the arithmetic while training")

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if "least" in f.metadata and not f.metadata["least"] <= value <= f.metadata["most"]:
                least, most = f.metadata["least"], f.metadata["most"]
                bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise TrainingError(f"{f.name.replace('_', '-')} must be {bounds}, not {value!r}")
            if "choices" in f.metadata and value not in f.metadata["choices"]:
                choices = ", ".join(f.metadata["choices"])
                raise TrainingError(f"{f.name.replace('_', '-')} must be one of {choices}, not {value!r}")

    def rate(self, update: int, updates: int) -> float:
        """The learning rate of one update of `updates` in all: a straight rise, then half a cosine
        (Loshchilov & Hutter 2017) down to its final share.
        """
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, update / max(1, updates))))
        return self.learning_rate * rise * (self.final_rate + (1 - self.final_rate) * cosine)
