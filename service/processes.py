"""Nothing stays behind: the processes below this one, and how they end.

Linux only, by /proc and prctl; elsewhere these do nothing and Ray's own clean-up is all there is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform == "linux"


def adopt_orphans() -> None:
    """From now on a process below this one whose parent dies becomes this one's child, not init's."""
    if _LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(number: signal.Signals) -> None:
    """This process gets the signal when its parent dies, however that dies."""
    if _LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def descendants() -> list[int]:
    """Every process below this one, zombies included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in brackets may hold anything, brackets too; behind the last one: state, parent.
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def end_descendants(patience_s: float = 10.0) -> int:
    """Kills everything below this process and waits for it to be gone. Returns how many had to be killed."""
    deadline = time.monotonic() + patience_s
    killed: set[int] = set()
    while True:
        _reap()
        living = descendants()
        if not living or time.monotonic() > deadline:
            return len(killed)
        # One that is killed may have started another just before: look again until there is none.
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.02)


def _reap() -> None:
    """Takes leave of the children that ended: a zombie would be found again for ever."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
