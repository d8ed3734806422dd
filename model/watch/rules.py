"""What a watch model reads, says, and judges by: names and numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

#: Numbers that the network reads of a step, and says of the next one
READS, SAYS = 4, 9

INPUTS = ("value",)
#: expected, low and high: the median of the next value and the bounds of the middle 98 %, in the value's
#: unit. score: -log10 of the share of the distribution expected before this value that is as far out or
#: farther. likelihood: of an anomaly at this value, 0 to 1; from `ALARM` on it is one.
OUTPUTS = ("expected", "low", "high", "score", "likelihood")
ALARM = 0.5


@dataclass(frozen=True, slots=True)
class Rules:
    """How surprises become likelihoods; one set for every series.

    short, long: steps that the two means of the value go over. surprise: steps that the mean of the score
    goes over. warm: steps before a range is one. hold: steps after a novelty in which only a higher one is
    told. forget: share of its width by which either end of a range comes back in a step, so that what was
    seen long ago is new again. novel: the novelty of which the likelihood is a half.
    """

    short: float = 5.0
    long: float = 20.0
    surprise: float = 40.0
    warm: float = 50.0
    hold: float = 100.0
    forget: float = 3e-5
    novel: float = 0.02

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            least = 0.0 if f.name in ("warm", "forget", "novel") else 1.0
            if not number or not math.isfinite(value) or value < least:
                raise ValueError(f"rules.{f.name} must be a number of at least {least:g}, not {value!r}")
        if self.novel == 0 or self.forget > 0.5:
            raise ValueError("rules.novel must be above 0, and rules.forget at most 0.5")
