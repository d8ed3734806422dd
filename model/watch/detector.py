"""One series watched in this process, a value at a time: what a served session does, without a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle import Bundle
from model.errors import DataError
from model.streaming import Predictor
from model.watch.rules import ALARM, SAYS
from model.watch.watcher import Watcher

#: Steps of the network in one go: bounds the memory, changes no result
CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """What is said of a value, and of the next one: see `rules.OUTPUTS`."""

    expected: float
    low: float
    high: float
    score: float
    likelihood: float

    @property
    def alarm(self) -> bool:
        return self.likelihood >= ALARM


class Detector:
    """Watches one series from its first value on. The memory is h, c and a vector of fixed length."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DataError for a bundle of another task."""
        self._watcher, self._network = watcher_of(bundle), bundle.network()
        self._state = self._network.lstm.zero_state(1)
        self._carry = self._watcher.fresh()

    @torch.no_grad()
    def step(self, value: float) -> Reading:
        """The next value of the series. Raises DataError if it is not finite."""
        if not abs(value) < float("inf"):
            raise DataError(f"a value must be a finite number, not {value!r}")
        inputs, draft = self._watcher.before(self._carry, [value])
        said, self._state = self._network(torch.from_numpy(inputs)[:, None], self._state)
        outputs, self._carry = self._watcher.after(draft, said.reshape(1, SAYS).numpy())
        return Reading(*outputs[0].tolist())


def watcher_of(bundle: Bundle) -> Watcher:
    """Raises DataError for a bundle of another task."""
    if bundle.spec.rules is None:
        raise DataError(f"{bundle.name} is a {bundle.spec.architecture.task} model; it watches nothing")
    return Watcher(bundle.spec.rules)


@torch.no_grad()
def judged(watcher: Watcher, network: Predictor, values: Sequence[float]) -> NDArray[np.float64]:
    """Score and likelihood of each value of a whole series [N, 2]: what `Detector` says, at less cost."""
    state = None
    inputs, draft = watcher.before(watcher.fresh(), values)
    said: list[list[float]] = []
    for t in range(0, len(inputs), CHUNK):
        y, state = network(torch.from_numpy(inputs[t : t + CHUNK])[:, None], state)
        said += y.reshape(-1, SAYS).tolist()
    verdicts, _ = watcher.judged(draft, said)
    return np.array(verdicts).reshape(-1, 2)
