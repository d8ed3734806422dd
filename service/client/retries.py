"""How long to wait, how often to try, and when to give up. No clock of its own, and no sleep."""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.client.errors import ClientError, DeadlineExceeded, Fault


@dataclass(frozen=True, slots=True)
class Retries:
    """timeout_s: of one call, all its attempts included; None: for ever. attempt_timeout_s: of the first
    attempt; it doubles each time one runs out, for what takes long by itself. The wait before the n-th retry
    is drawn evenly from 0 to first_delay_s * 2**n, at most max_delay_s: full jitter, so that the clients of
    a service that was away do not come back all at once. A wait that the service asks for is kept in full.
    """

    timeout_s: float | None = 60.0
    attempt_timeout_s: float = 10.0
    first_delay_s: float = 0.05
    max_delay_s: float = 2.0
    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        for name in ("attempt_timeout_s", "first_delay_s", "max_delay_s"):
            value: float = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be more than 0 and finite, not {value}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, or None for no deadline, not {self.timeout_s}")

    def begin(self) -> Tries:
        return Tries(self)


class Tries:
    """The attempts of one call. attempts: made so far. uncertain: one of them may have been executed.
    request_id: by which the service knows that they belong together."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._limit = math.inf if retries.timeout_s is None else retries.timeout_s
        self._end = retries.clock() + self._limit
        self._delay = retries.first_delay_s
        self._patience = retries.attempt_timeout_s
        self._last = Fault("there was no time for an attempt", executed=False)
        self._cut_short = False
        self.request_id = secrets.token_hex(8)
        self.attempts = 0
        self.uncertain = False

    @property
    def left_s(self) -> float:
        return self._end - self._retries.clock()

    def attempt(self) -> float:
        """Begins an attempt: the time it may take. Raises DeadlineExceeded if there is none left."""
        timeout_s = self.patience()
        self.attempts += 1
        return timeout_s

    def patience(self) -> float:
        """How long to wait for one answer. Raises DeadlineExceeded if there is no time left."""
        left_s = self.left_s
        if left_s <= 0:
            raise self._deadline()
        self._cut_short = left_s < self._patience
        return min(self._patience, left_s)

    def note(self, fault: Fault) -> None:
        """What became of the attempt."""
        if self.attempts < 2 or not (fault.timed_out and self._cut_short):
            self._last = fault  # that the deadline came is no reason: the fault before it is
        self.uncertain |= fault.executed
        if fault.timed_out:
            self._patience *= 2

    def delay(self) -> float:
        """How long to wait before the next attempt. Raises DeadlineExceeded if that is past the deadline."""
        wait_s = self._retries.random() * self._delay + (self._last.wait_s or 0.0)
        self._delay = min(2 * self._delay, self._retries.max_delay_s)
        if wait_s >= self.left_s:
            raise self._deadline()
        return wait_s

    def progress(self) -> None:
        """Something went right: the next fault is a first one again."""
        self._delay, self._patience = self._retries.first_delay_s, self._retries.attempt_timeout_s

    def sign(self, error: ClientError) -> ClientError:
        """The error, with what it must know of the attempts."""
        error.attempts, error.uncertain = self.attempts, self.uncertain
        error.request_id = str(error.problem.get("request_id") or self.request_id)
        return error

    def _deadline(self) -> ClientError:
        return self.sign(DeadlineExceeded(self._limit, self._last, self.attempts))
