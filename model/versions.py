"""The order of a model's versions: the natural one, in which 2 comes before 10 and 1.2 before 1.10."""

from __future__ import annotations

import re

Key = tuple[tuple[int, int, str], ...]

_RUNS = re.compile(r"[0-9]+|[^0-9]+")


def order(version: str) -> Key:
    """What to sort versions by: runs of digits as numbers, all else as text, and a number behind a text."""
    runs: list[str] = _RUNS.findall(version)
    return tuple((1, int(run), "") if run.isdecimal() else (0, 0, run) for run in runs)
