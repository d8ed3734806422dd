"""Starts the command with this process's wall clock set off by CLOCK_SHIFT_S seconds, before anything of the
service is imported:

    python -m tests.service.launched serve --local ...

SIGUSR1 sets it off by as much once more: the clock jumps while sessions are open.
"""

from __future__ import annotations

import os
import signal
import sys
import time

_true, _shift = time.time, float(os.environ["CLOCK_SHIFT_S"])
_shifts = 1


def _shifted() -> float:
    return _true() + _shifts * _shift


def _jump(*_: object) -> None:
    global _shifts
    _shifts += 1


if __name__ == "__main__":
    time.time = _shifted
    signal.signal(signal.SIGUSR1, _jump)
    from service.cli import main

    sys.exit(main())
