"""What a watch model keeps of a session beside h and c, and how it goes from a value to what is said of it.

The *carry* is a float64 vector: the running scale, the tracks, and the distribution expected of the next
value. `before` makes the network's inputs of a request's values, `after` its outputs of what the network
said; both are pure, and a sequence gives the same in one request as in many. Bounded: `CARRY` numbers,
whatever came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.watch import judge, mixture, scale
from model.watch.rules import OUTPUTS, READS, SAYS, Rules

Rows = NDArray[np.float64]

#: Largest magnitude in a carry: the square of a value far off
MOST = 1e63
#: Of the next value's distribution: expected, low and high
SHARES = (0.5, 0.01, 0.99)
#: Numbers in a carry
CARRY = scale.SIZE + judge.SIZE + SAYS


def check_carry(carry: Rows) -> None:
    """Raises ValueError for one that no series leads to, and that would stop the next step."""
    if carry.shape != (CARRY,):
        raise ValueError(f"it has {carry.shape} numbers, must have {CARRY}")
    if not np.abs(carry).max() <= MOST:
        raise ValueError(f"a number is beyond {MOST:g}, or is none")
    seen, _, variance, _, change = carry[: scale.SIZE]
    if min(seen, variance, change) < 0:
        raise ValueError("a count, a variance or a mean change is below 0")


@dataclass(frozen=True, slots=True)
class Draft:
    """Of a request between `before` and `after`. scales: what is kept of the series before its first value,
    and after each."""

    values: list[float]
    scales: list[list[float]]
    judged: list[float]
    head: list[float]


@dataclass(frozen=True, slots=True)
class Watcher:
    """Of one model."""

    rules: Rules

    @staticmethod
    def fresh() -> Rows:
        """The carry of a series that has not begun."""
        return np.zeros(CARRY)

    def before(self, carry: Rows, values: Sequence[float]) -> tuple[NDArray[np.float32], Draft]:
        """The network's inputs [T, READS] for T values that follow."""
        kept = carry.tolist()
        at = scale.SIZE + judge.SIZE
        draft = Draft(list(values), [kept[: scale.SIZE]], kept[scale.SIZE : at], kept[at:])
        inputs = []
        for value in draft.values:
            features, after = scale.advance(draft.scales[-1], value)
            inputs.append(features)
            draft.scales.append(after)
        return np.array(inputs, np.float32).reshape(-1, READS), draft

    def after(self, draft: Draft, said: NDArray[np.floating]) -> tuple[Rows, Rows]:
        """The outputs [T, 5], `rules.OUTPUTS`, of what the network said [T, SAYS], and the carry after
        them."""
        heads: list[list[float]] = said.tolist()
        verdicts, carry = self.judged(draft, heads)
        if len(heads) == 1:
            of = mixture.parts(heads[0])
            changes = [[mixture.quantile(of, share) for share in SHARES]]
        else:
            changes = mixture.quantiles(said.astype(np.float64), SHARES).tolist()
        foretold = [
            [scale.value_at(kept, change) for change in row]
            for kept, row in zip(draft.scales[1:], changes, strict=True)
        ]
        outputs = [(*expected, *verdict) for expected, verdict in zip(foretold, verdicts, strict=True)]
        return np.array(outputs, np.float64).reshape(-1, len(OUTPUTS)), carry

    def judged(self, draft: Draft, heads: list[list[float]]) -> tuple[list[tuple[float, float]], Rows]:
        """Score and likelihood of each value, and the carry after the last: each by what was said before
        it."""
        verdicts, kept = [], draft.judged
        for value, scales, head in zip(draft.values, draft.scales, [draft.head, *heads], strict=False):
            seen = scales[0]
            below, above = 0.5, 0.5
            if seen:
                below, above = mixture.tails(mixture.parts(head), scale.change_to(scales, value))
            score = judge.score_of(below, above)
            likelihood, kept = judge.judge(self.rules, kept, seen, value, score)
            verdicts.append((score, likelihood))
        carry = np.array([*draft.scales[-1], *kept, *(heads[-1] if heads else draft.head)])
        carry.setflags(write=False)  # sessions that were forked share it
        return verdicts, carry
