"""What the processes of the service take: memory, open files, sockets. Linux, by /proc."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.chaos import tree

PAGE = os.sysconf("SC_PAGE_SIZE")
_LISTENS = "0A"


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process. Bytes; `pss` counts what is shared by its share, and is None where it was not read:
    that takes some milliseconds of the kernel's."""

    pid: int
    name: str
    rss: int
    pss: int | None
    files: int
    sockets: int

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def usage(root: int, *, pss: bool) -> list[Usage]:
    """Of a process and all below it."""
    below = tree.below(root)
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{root}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        below.insert(0, tree.Process(root, command.strip()))
    found = []
    for process in below:
        with contextlib.suppress(OSError, ValueError, IndexError):
            found.append(_one(process, pss))
    return found


def _one(process: tree.Process, pss: bool) -> Usage:
    at = Path(f"/proc/{process.pid}")
    files = sockets = 0
    for descriptor in (at / "fd").iterdir():
        files += 1
        with contextlib.suppress(OSError):
            sockets += descriptor.readlink().name.startswith("socket:")
    rss = int((at / "statm").read_text().split()[1]) * PAGE
    return Usage(process.pid, name(process.command), rss, _pss(at) if pss else None, files, sockets)


def _pss(at: Path) -> int | None:
    with contextlib.suppress(OSError):
        for line in (at / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return None


def name(command: str) -> str:
    """A short name for a process, from its command."""
    words = command.split()
    if not words:
        return "?"
    if words[0].startswith("ray::"):
        return words[0].split("::")[1].split(".")[0][:32]
    if "-m" in words[:4]:
        module = words[words.index("-m") + 1 : words.index("-m") + 2]
        return " ".join([*module, *[w for w in words[words.index("-m") + 2 :][:1] if w.isalnum()]])[:32]
    first = Path(words[0]).name
    script = next((Path(word).name for word in words[1:4] if word.endswith(".py")), "")
    return script if first.startswith("python") and script else first[:32]


def listening(port: int) -> int | None:
    """The process that listens on a port of this machine, or the oldest one above it that belongs to the
    service; None if it can't be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in inodes:
                return _topmost(int(descriptor.parts[2]))
    return None


def _topmost(pid: int) -> int:
    top = pid
    with contextlib.suppress(OSError, ValueError, IndexError):
        while pid > 1:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"service.cli" in command or b"cellstate" in command or b"service.launch" in command:
                top = pid
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return top
