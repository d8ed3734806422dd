"""What a request asks for, and what it is answered."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.sessions.inputs import Steps


@dataclass(slots=True, frozen=True)
class Sampling:
    """How text is generated: see `Generation`."""

    length: int
    temperature: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(slots=True, frozen=True)
class Options:
    """What a reply holds beside its steps. Two requests with other options are different requests."""

    outputs: bool = True
    gates: bool = False
    state: bool = False
    horizon: int = 0
    generate: Sampling | None = None


PLAIN = Options()


@dataclass(slots=True)  # frozen would double the cost of making one
class StepCommand:
    """One request for one session, checked as far as it can be without the session."""

    session_id: str
    steps: Steps
    step: int | None = None  # the number of the first step; None: whatever is next
    options: Options = PLAIN
    timeout_s: float | None = None


@dataclass(slots=True)  # frozen would double the cost of making one
class Reply:
    """The answer to a request, as numbers.

    outputs [T, O] in user units, or log-probabilities; forecast [k, O]; quantiles by level [k or leads, O];
    gates: i, f, g, o, c, h [T, layers, 6, hidden]; state: h, c after the last step [2, layers, hidden].
    """

    session_id: str
    step: int
    next_step: int
    outputs: NDArray[np.floating]
    options: Options = PLAIN
    forecast: NDArray[np.float64] | None = None
    quantiles: dict[str, NDArray[np.float64]] | None = None
    generated: str | None = None
    gates: NDArray[np.float32] | None = None
    state: NDArray[np.float32] | None = None
    replayed: bool = False

    def again(self) -> Reply:
        """The same reply, said to be one that was given before."""
        return replace(self, replayed=True)
