"""What goes on from a model's own predictions: a forecast of a series, or generated text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.config import MAX_NORMALISED, ModelSpec
from model.network import Scaler
from service.engine.jobs import Prepared


class Forecast:
    """The next `horizon` values of every output. The head's leads first; beyond them closed loop: the
    predictions are fed back as inputs, a head's worth at a time. Quantiles are of the first leads alone:
    what a prediction that was fed back adds to the error, nothing has measured.

    time: of the newest input, in Unix seconds, for a model with a calendar: what is fed back has the times
    after it."""

    def __init__(self, spec: ModelSpec, horizon: int, time: float | None = None) -> None:
        self.horizon = horizon
        self.steps = max(0, horizon - spec.architecture.leads)
        if self.steps and spec.calendar is not None and time is None:
            raise ValueError("a forecast beyond the leads of a model with a calendar needs the time")
        self._calendar, self._time = spec.calendar, time
        self._scaler = Scaler(spec)
        columns = spec.output_columns
        self._order = None if columns is None else np.argsort(columns)  # from outputs to input columns
        self._levels = spec.architecture.quantiles
        self._leads: list[NDArray[np.float32]] = []
        self._quantiles: NDArray[np.float32] | None = None
        self._have = 0

    def feed(
        self, head: NDArray[np.float32], quantiles: NDArray[np.float32] | None = None
    ) -> Prepared | None:
        if not self._leads:
            self._quantiles = quantiles
        self._leads.append(head)
        self._have += len(head)
        if self._have >= self.horizon:
            return None
        # Normalised by the outputs' scale, wanted by the inputs'
        rows = self._scaler.denormalise(head)[:, self._order]
        if self._calendar is not None and self._time is not None:
            ahead = np.arange(self._have - len(head), self._have) + 1
            rows = np.column_stack((rows, self._time + ahead * self._calendar.spacing_s))
        inputs = self._scaler.normalise(rows)
        # A loop may run away; held to what an input may be, it stays finite, as JSON must
        return inputs.clip(-MAX_NORMALISED, MAX_NORMALISED).astype(np.float32, order="C")

    @property
    def result(self) -> NDArray[np.float64]:
        """[horizon, outputs] in their units."""
        return self._scaler.denormalise(np.concatenate(self._leads)[: self.horizon])

    @property
    def quantiles(self) -> dict[str, NDArray[np.float64]] | None:
        """By level [min(horizon, leads), outputs] in their units; None if the model has none."""
        if self._quantiles is None:
            return None
        rows = self._scaler.denormalise(self._quantiles[:, : self.horizon])
        return {f"{level:g}": of_level for level, of_level in zip(self._levels, rows, strict=True)}


class Generation:
    """`length` tokens, each drawn from the prediction and fed back.

    temperature divides the log-probabilities (0: always the likeliest); top_k keeps the k likeliest (0: all);
    the same seed gives the same text.
    """

    def __init__(self, length: int, temperature: float, top_k: int, seed: int | None) -> None:
        self.length, self.temperature, self.top_k = length, temperature, top_k
        self.steps = length - 1
        self._random = np.random.default_rng(seed)
        self.tokens: list[int] = []

    def feed(
        self, head: NDArray[np.float32], quantiles: NDArray[np.float32] | None = None
    ) -> Prepared | None:
        self.tokens.append(self._draw(head[0].astype(np.float64)))
        if len(self.tokens) == self.length:
            return None
        return np.array([self.tokens[-1]], np.int64)

    def _draw(self, log_probabilities: NDArray[np.float64]) -> int:
        if self.temperature == 0:
            return int(log_probabilities.argmax())
        # The largest is 0 at any temperature; beside it a tiny one makes -inf of the rest, which is right
        with np.errstate(over="ignore"):
            logits = (log_probabilities - log_probabilities.max()) / self.temperature
        if 0 < self.top_k < len(logits):
            logits[logits < np.partition(logits, -self.top_k)[-self.top_k]] = -np.inf
        # Gumbel's trick: the largest of logits plus noise is a draw from their softmax
        return int((logits + self._random.gumbel(size=len(logits))).argmax())
