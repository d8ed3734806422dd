"""Where a service that runs on this machine can be found by its user: by its port.

A small file in the service's own directory says how to reach its Ray; a link in a directory of the user's
leads there. Both are for the user alone: the file has the token that Ray asks for.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "running.json"


class NotRunning(Exception):
    """No service is to be found there; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Running:
    """address: of its Ray. environment: what a process needs to speak to that."""

    pid: int
    address: str
    environment: Mapping[str, str]


def announce(port: int, directory: Path, running: Running) -> None:
    """The service in that directory runs, and its door is at that port."""
    file = os.open(directory / FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "w") as text:
        json.dump(asdict(running), text)
    link = _link(port)
    link.parent.mkdir(mode=0o700, exist_ok=True)
    _check_owner(link.parent)
    link.unlink(missing_ok=True)
    link.symlink_to(directory)


def withdraw(port: int, directory: Path) -> None:
    """That service stops."""
    link = _link(port)
    with contextlib.suppress(OSError):
        if link.readlink() == directory:
            link.unlink()


def find(port: int) -> Running:
    """The service whose door is at that port. Raises NotRunning."""
    nothing = NotRunning(
        f"no `cellstate serve` of yours runs on this machine at port {port} with a Ray of its own. (One that"
        " was started with --local can't be deployed to: put the bundle below its --models and restart it.)"
    )
    link = _link(port)
    try:
        _check_owner(link.parent)
        _check_owner(link / FILE)
        about = Running(**json.loads((link / FILE).read_text()))
        os.kill(about.pid, 0)
    except (OSError, ValueError, TypeError):
        raise nothing from None
    return about


def _link(port: int) -> Path:
    return Path(tempfile.gettempdir()) / f"cellstate-of-{os.getuid()}" / f"{port}"


def _check_owner(path: Path) -> None:
    """Raises NotRunning unless it is this user's and closed to all others: anybody can make names there."""
    found = path.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise NotRunning(f"{path} is not yours alone; remove it")
