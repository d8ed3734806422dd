"""How a watch model is trained: numbers alone."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _number(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Plan:
    """Each batch is of new series, learnt in windows by truncated back-propagation through time."""

    hidden: int = _number(64, "hidden size")
    layers: int = _number(1, "LSTM layers")
    batches: int = _number(400, "batches of new series")
    streams: int = _number(64, "series in a batch")
    rows: int = _number(1536, "rows of a series")
    window: int = _number(256, "steps of back-propagation")
    rate: float = _number(4e-3, "AdamW's highest learning rate")
    average: float = _number(0.995, "decay of the running mean of the weights, which is saved")
    seed: int = _number(0, "of the first weights and of the series")

    def __post_init__(self) -> None:
        for f in fields(self):
            least = 2 if f.name == "rows" else 0 if f.name in ("seed", "average") else 1e-9
            if not getattr(self, f.name) >= least:
                raise ValueError(f"{f.name} must be at least {least:g}, not {getattr(self, f.name)!r}")
