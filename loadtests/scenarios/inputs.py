"""The inputs of the sessions: known from its number and the step, so that any reply can be checked."""

from __future__ import annotations

import random
from functools import cache

#: Different rows; a prime, so that no session sees a short cycle
ROWS = 997


@cache
def table(width: int) -> tuple[tuple[list[float], ...], tuple[str, ...]]:
    """ROWS rows of so many numbers, and the same as JSON."""
    rng = random.Random(width)
    rows = tuple([round(rng.gauss(0.0, 1.0), 3) for _ in range(width)] for _ in range(ROWS))
    return rows, tuple("[" + ",".join(map(str, row)) + "]" for row in rows)


def rows(width: int, session: int, first: int, count: int) -> list[list[float]]:
    """Steps `first` .. of a session, count × width."""
    values, _ = table(width)
    return [values[(31 * session + step) % ROWS] for step in range(first, first + count)]


def text(width: int, session: int, first: int, count: int) -> str:
    """The same as JSON."""
    _, written = table(width)
    if count == 1:
        return f"[{written[(31 * session + first) % ROWS]}]"
    return (
        "[" + ",".join([written[(31 * session + step) % ROWS] for step in range(first, first + count)]) + "]"
    )
