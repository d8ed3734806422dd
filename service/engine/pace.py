"""How much a tick takes on, so that it is over in time. Counts and seconds only, no tensors.

A tick can't be interrupted: whoever comes while it runs waits for its end. So its size is chosen by what the
ticks before it took.
"""

from __future__ import annotations

#: Steps of each ticket while nothing is known of a tick's cost
FIRST = 4
#: What a tick takes beside its steps, as so many steps. Roughly: ticks near the target correct what it is
#: wrong by; without it, ticks of few steps would look so dear that they stayed as small as they are.
BASE = 2
#: Of what a tick took, this part enters what is known
WEIGHT = 1 / 8
#: A tick counts at most as so many times what was expected: the machine may have stood still meanwhile
OUTLIER = 2.0


class Pace:
    """What a step of a batch takes, learnt by the batch's size; a bucket for each power of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of one step of all, by the bit length of the batch

    def learn(self, batch: int, steps: int, seconds: float) -> None:
        """A tick of so many tickets and so many steps of each took so long."""
        bucket, each = batch.bit_length(), seconds / (steps + BASE)
        known = self._seconds.get(bucket)
        if known is None:
            self._seconds[bucket] = each
        else:
            self._seconds[bucket] = known + WEIGHT * (min(each, OUTLIER * known) - known)

    def expected(self, batch: int) -> float | None:
        """Seconds of one step of so many tickets; what is not known is taken from another size, from which it
        can only be less. None if nothing is known."""
        bucket = batch.bit_length()
        if bucket in self._seconds:
            return self._seconds[bucket]
        smaller = max((known for known in self._seconds if known < bucket), default=None)
        if smaller is not None:
            return self._seconds[smaller] * 2.0 ** (bucket - smaller)
        larger = min(self._seconds, default=None)
        return None if larger is None else self._seconds[larger]

    def steps(self, batch: int, target: float, most: int) -> int:
        """Steps of each of so many tickets that are done in `target` seconds: at least 1, at most `most`."""
        expected = self.expected(batch)
        if expected is None:
            return max(1, min(FIRST, most))
        if expected * (most + BASE) <= target:
            return max(1, most)
        # rounded down: from ticks of one step, two look cheaper than they are
        return max(1, min(most, int(target / expected) - BASE))

    def widest(self, target: float, most: int) -> int:
        """How many tickets one step of which is done in `target` seconds: at least 1, at most `most`."""
        batch = most
        while batch > 1 and (self.expected(batch) or 0.0) * (1 + BASE) > target:
            batch = 2 ** (batch.bit_length() - 1) - 1  # the largest of the next smaller size
        return batch
