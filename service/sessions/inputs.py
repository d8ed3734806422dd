"""From what a client sends to what the engine runs, checked: the last gate before a session can move."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.calendar import MOST_TIME
from model.config import ModelSpec
from model.network import Scaler
from service.engine.jobs import Prepared
from service.errors import InvalidValue, TooLarge


@dataclass(slots=True)  # frozen would double the cost of making one
class Steps:
    """T steps: `prepared` for the engine, `raw` as the client meant them (float64 [T, I], or int32 tokens),
    by which a retry is recognised. spec: of the model they were read for."""

    prepared: Prepared
    raw: bytes
    spec: ModelSpec | None = None

    def __len__(self) -> int:
        return len(self.prepared)


def joined(parts: list[Steps]) -> Steps:
    """Steps that follow each other, as one."""
    prepared: NDArray[Any] = np.concatenate([steps.prepared for steps in parts])
    return Steps(prepared, b"".join([steps.raw for steps in parts]), parts[0].spec)


def same_time(a: ModelSpec, b: ModelSpec) -> bool:
    """Whether the rows of one model may be the other's as far as a time among them goes."""
    return (a.time and a.time.name) == (b.time and b.time.name)


def _largest(numbers: NDArray[np.float64]) -> float:
    return float(np.abs(numbers).max())


class InputReader:
    """Reads one model's inputs. Errors name the place as a path below `inputs` or `text`."""

    def __init__(self, spec: ModelSpec, max_steps: int) -> None:
        self.spec, self.max_steps = spec, max_steps
        self.vocabulary = {character: token for token, character in enumerate(spec.vocabulary)}
        self.takes_text = bool(self.vocabulary)
        self._width, self._most = len(spec.inputs), spec.most
        #: Of a step in its raw form
        self.step_bytes = 4 if self.takes_text else 8 * self._width
        self._scaler = Scaler(spec)
        self._scales = [(signal.mean, signal.std) for signal in spec.measured]
        self._calendar = spec.calendar
        self._row = self._one_row if spec.calendar is None else self._one_timed_row
        self._pack = struct.Struct(f"={self._width}d").pack

    def series(self, inputs: list[list[float]]) -> Steps:
        """Rows of finite numbers, one a step, in the manifest's order and units."""
        if self.takes_text:
            raise InvalidValue("this model takes text, not inputs", field="inputs")
        self._check_count(len(inputs), "inputs")
        width = self._width
        for t, row in enumerate(inputs):
            if len(row) != width:
                raise InvalidValue(
                    f"inputs[{t}] has {len(row)} numbers, must have {width}", field=f"inputs[{t}]"
                )
        if len(inputs) == 1:
            return self._row(inputs[0])
        raw = np.array(inputs, np.float64)
        if self._calendar is not None and _largest(raw[:, -1]) > MOST_TIME:
            t = int(np.argmax(np.abs(raw[:, -1]) > MOST_TIME))
            raise self._no_time(t, inputs[t][-1])
        with np.errstate(over="ignore"):  # what overflows is refused below, by its place
            normalised = self._scaler.normalise(raw)
        # Both bounds in two passes over small arrays; a huge number that overflowed to inf fails them too
        if normalised.max() > self._most or normalised.min() < -self._most:
            t, i = np.argwhere(np.abs(normalised) > self._most)[0].tolist()
            raise self._far_off(t, i, inputs[t][i])
        return Steps(normalised.astype(np.float32), raw.tobytes(), self.spec)

    def _one_row(self, row: list[float]) -> Steps:
        """The same for a single step, which most requests are: five calls of numpy cost more than the rest
        of the way to the engine."""
        normalised = [(value - mean) / std for value, (mean, std) in zip(row, self._scales, strict=True)]
        if max(normalised) > self._most or min(normalised) < -self._most:
            i = next(i for i, value in enumerate(normalised) if abs(value) > self._most)
            raise self._far_off(0, i, row[i])
        return Steps(np.array([normalised], np.float32), self._pack(*row), self.spec)

    def _one_timed_row(self, row: list[float]) -> Steps:
        """The same for a model with a calendar."""
        assert self._calendar is not None  # noqa: S101  chosen for one
        time = row[-1]
        if not -MOST_TIME <= time <= MOST_TIME:
            raise self._no_time(0, time)
        normalised = [(value - mean) / std for value, (mean, std) in zip(row, self._scales, strict=False)]
        for i, value in enumerate(normalised):
            if abs(value) > self._most:
                raise self._far_off(0, i, row[i])
        normalised += self._calendar.of_one(time)
        return Steps(np.array([normalised], np.float32), self._pack(*row), self.spec)

    def single_rows(self, rows: list[list[float]]) -> list[Steps] | None:
        """A step of each of many sessions, all at once; None if one of them is not as it must be."""
        if self.takes_text or any(len(row) != self._width for row in rows):
            return None
        raw = np.array(rows, np.float64)
        if self._calendar is not None and _largest(raw[:, -1]) > MOST_TIME:
            return None
        with np.errstate(over="ignore"):
            normalised = self._scaler.normalise(raw)
        if normalised.max() > self._most or normalised.min() < -self._most:
            return None
        prepared, all_, size = normalised.astype(np.float32)[:, None], raw.tobytes(), self.step_bytes
        return [Steps(row, all_[n * size : (n + 1) * size], self.spec) for n, row in enumerate(prepared)]

    def prepared(self, raw: bytes) -> Prepared:
        """Steps that were read before, from their raw form. Raises ValueError for those of another width."""
        if self.takes_text:
            tokens = np.frombuffer(raw, np.int32).astype(np.int64)
            if len(tokens) and not 0 <= tokens.min() <= tokens.max() < len(self.vocabulary):
                raise ValueError("a token is not in the model's vocabulary")
            return tokens
        numbers = np.frombuffer(raw, np.float64).reshape(-1, self._width)
        return self._scaler.normalise(numbers).astype(np.float32)

    def again(self, steps: Steps) -> Steps:
        """Steps that were read for another version of the model. Raises InvalidValue or TooLarge."""
        if steps.spec is None or bool(steps.spec.vocabulary) != self.takes_text:
            raise InvalidValue("the inputs are of another kind of model", field="inputs")
        if not same_time(steps.spec, self.spec):
            raise InvalidValue("the inputs are of a model with another time", field="inputs")
        if self.takes_text:
            known = steps.spec.vocabulary
            return self.text("".join(known[token] for token in np.frombuffer(steps.raw, np.int32)))
        rows: list[list[float]] = np.frombuffer(steps.raw).reshape(len(steps), -1).tolist()
        return self.series(rows)

    def _far_off(self, t: int, i: int, value: float) -> InvalidValue:
        watched = self.spec.rules is not None
        told = f"{self._most:g}" + ("" if watched else " standard deviations from the mean")
        return InvalidValue(
            f"inputs[{t}][{i}] ({self.spec.inputs[i].name}) is {value:g}, more than {told}",
            field=f"inputs[{t}][{i}]",
        )

    def _no_time(self, t: int, value: float) -> InvalidValue:
        i = self._width - 1
        return InvalidValue(
            f"inputs[{t}][{i}] ({self.spec.inputs[i].name}) is {value:g}: a time in seconds since 1970 is"
            f" wanted, of a magnitude of at most {MOST_TIME:g}; are these milliseconds?",
            field=f"inputs[{t}][{i}]",
        )

    def text(self, text: str) -> Steps:
        """Characters of the model's vocabulary, one a step."""
        if not self.takes_text:
            raise InvalidValue("this model takes inputs, not text", field="text")
        self._check_count(len(text), "text")
        try:
            tokens: NDArray[Any] = np.array([self.vocabulary[character] for character in text], np.int64)
        except KeyError as error:
            at = text.index(error.args[0])
            raise InvalidValue(
                f"text[{at}] is {error.args[0]!r}, which is not in the model's vocabulary",
                field=f"text[{at}]",
            ) from None
        return Steps(tokens, tokens.astype(np.int32).tobytes(), self.spec)

    def _check_count(self, count: int, what: str) -> None:
        if not count:
            raise InvalidValue(f"{what} is empty; a request carries at least one step", field=what)
        if count > self.max_steps:
            raise TooLarge(
                f"{what} has {count} steps, the most in one request is {self.max_steps}", limit=self.max_steps
            )
