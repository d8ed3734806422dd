"""How much of a session's past is kept, to fork it from or rewind it to: a number of steps, or a time.

    256                     the newest 256 steps
    2h                      what is at most two hours old (s, m, h or d)
    256, ett=7d, words=0    of each model its own; the first is of the rest

It is a least: what goes is what lies before a snapshot, and one is taken every 128 steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"(\d+)([smhd]?)$")
#: Of one session; when there are more, every other goes, and more is kept than was asked for.
MARKS = 64

Mark = tuple[float, int]  # when, and the session's next step then


@dataclass(slots=True, frozen=True)
class Retention:
    """Either `steps` or `seconds`; the other is 0."""

    steps: int = 0
    seconds: float = 0.0

    def keep_from(self, next_step: int, marks: Sequence[Mark], now: float) -> int:
        """The first step that is kept. marks: oldest first; before the oldest, nothing is known of times, so
        all is kept until that is old enough itself."""
        if not self.seconds:
            return max(0, next_step - self.steps)
        return max((step for at, step in marks if at <= now - self.seconds), default=0)

    def marked(self, next_step: int, marks: Sequence[Mark], now: float) -> list[Mark] | None:
        """The marks with one more, without those that no time can need. None if steps are counted."""
        if not self.seconds:
            return None
        past = sum(1 for at, _ in marks if at <= now - self.seconds)
        kept = [*marks[max(0, past - 1) :], (now, next_step)]
        return kept if len(kept) <= MARKS else [*kept[:-1:2], kept[-1]]


def read(text: str, model: str) -> Retention:
    """What a setting says of one model. Raises ValueError with what is wrong."""
    amounts: dict[str, Retention] = {}
    for part in text.split(","):
        name, equals, amount = part.strip().rpartition("=")
        found = _AMOUNT.match(amount.strip())
        if found is None or (equals and not name.strip()):
            raise ValueError(f"{part.strip()!r} is not steps (256) or a time (30m, 2h, 7d), or model=either")
        if name.strip() in amounts:
            raise ValueError(f"there are two for {name.strip() or 'models that are not named'}")
        number, unit = found.groups()
        amounts[name.strip()] = (
            Retention(seconds=int(number) * _SECONDS[unit]) if unit else Retention(int(number))
        )
    if "" not in amounts:
        raise ValueError("it does not say how much of models that it does not name, as in 256, ett=7d")
    return amounts.get(model, amounts[""])
