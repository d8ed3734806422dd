"""The processes below one that this program started, by /proc. Never found by name alone."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One that lives. command: its arguments, or the title that it gave itself."""

    pid: int
    command: str


def below(pid: int) -> list[Process]:
    """Every living process below this one, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent, *_ = entry.read_text().rpartition(")")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(0), []):
            queue.append(child)
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                found.append(Process(child, command.decode(errors="replace").strip()))
    return found


def matching(pid: int, wanted: Callable[[str], bool]) -> list[int]:
    """Those below this one whose command is wanted."""
    return [process.pid for process in below(pid) if wanted(process.command)]


def send(pid: int, number: signal.Signals) -> bool:
    """Whether there was still such a process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def kill_all(pid: int) -> int:
    """kill -9 of a process and all below it, stopped first so that none starts another. How many."""
    doomed = [pid, *(process.pid for process in below(pid))]
    for each in doomed:
        send(each, signal.SIGSTOP)
    doomed += [process.pid for process in below(pid) if process.pid not in doomed]
    return sum(send(each, signal.SIGKILL) for each in doomed)
