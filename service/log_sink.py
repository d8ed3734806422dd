"""The log of the replicas of a `cellstate serve`, on its own stderr.

Ray puts what its processes write into files below its directory, of which nobody knows. So the replicas of a
service on this machine send their lines to the process that started them, through a socket in its directory.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

from service.logs import shown_as
from service.settings import Settings

NAME = "log"


def shown_here(settings: Settings, directory: Path) -> Settings:
    """Shows the lines from now on; the settings by which replicas send them, and in the form that suits this
    process's stderr."""
    path = directory / NAME
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    # A copy: while the service stops, its stderr leads into a file, and these lines should not
    out = os.dup(sys.stderr.fileno())
    threading.Thread(target=_accept, args=(listener, out), name="log", daemon=True).start()
    return replace(settings, log_to=str(path), log_format=shown_as(settings.log_format, sys.stderr))


def _accept(listener: socket.socket, out: int) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_show, args=(connection, out), name="log", daemon=True).start()


def _show(connection: socket.socket, out: int) -> None:
    """One replica's lines, each whole."""
    with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
        for line in lines:
            os.write(out, line)
