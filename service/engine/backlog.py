"""How long a request of several steps would wait: the work before it times what that was seen to take.

Counts and seconds only, no tensors. Requests take turns (`scheduler`), so a small one passes the large ones:
while n requests wait, one of s steps is over when about n * s steps were run, or all there are if those are
fewer. A step costs what the ticks before took; and as other things run between the ticks, all of it is
stretched by how much longer work that waited took by the clock than by its ticks.
"""

from __future__ import annotations

#: What one tick has to say is worth this part of what the one behind it has
MEMORY = 0.98
#: A tick counts at most as so many times what was expected, and what lies between two as so many ticks: the
#: machine may have stood still meanwhile
OUTLIER = 8.0


class Ratio:
    """Sums of two things that belong together, the newest counting most."""

    __slots__ = ("_above", "_below")

    def __init__(self) -> None:
        self._above, self._below = 0.0, 0.0

    def add(self, above: float, below: float) -> None:
        self._above = MEMORY * self._above + above
        self._below = MEMORY * self._below + below

    @property
    def value(self) -> float:
        """0 while nothing is known."""
        return self._above / self._below if self._below else 0.0


class Backlog:
    """The steps that were asked for and not run, of one kind of request."""

    def __init__(self) -> None:
        self.steps = 0
        self._cost, self._stretch = Ratio(), Ratio()
        self._since: float | None = None  # when the newest tick ended, if it left work behind

    def learn(self, steps: int, seconds: float, now: float) -> None:
        """A tick took so long for the steps of all its requests together, and is over now."""
        if not steps:
            return
        known = self._cost.value
        seen = min(seconds, OUTLIER * known * steps) if known else seconds
        self._cost.add(seen, steps)
        if self._since is not None and seconds > 0:
            self._stretch.add(min(now - self._since, OUTLIER * seconds), seconds)
        self._since = now if self.steps else None

    def seconds(self, steps: int) -> float:
        """What so many steps take by the clock, as far as is known; 0 if nothing is."""
        return steps * self._cost.value * max(1.0, self._stretch.value)

    def wait(self, steps: int, requests: int) -> float:
        """Seconds that others would add to a request of so many steps, if so many requests wait."""
        return self.seconds(min(self.steps, steps * requests))
