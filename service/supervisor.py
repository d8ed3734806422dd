"""The parent of a service on this machine: passes signals on, and leaves no process behind.

Ray starts a dozen processes, and a Ctrl-C on a terminal reaches all of them at once, in any state. So the
service runs in a session of its own, below this small process, which alone decides how it ends: it asks once
(running requests end), kills at the second signal, and in the end ends whatever is still there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from service import processes
from service.settings import Settings

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCHED = (*ASKED, signal.SIGCHLD)
#: Longest path of a temporary directory that is taken: HAProxy's sockets lie two directories below it, the
#: second with a name of 56 characters, and may have 97 in all.
LONGEST_ROOT = 8


def scratch_directory() -> Path:
    """A private directory for sockets and logs, with a short path."""
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="cellstate-", dir=root if len(root) <= LONGEST_ROOT else "/tmp"))  # noqa: S108


def launch(settings: Settings, directory: Path) -> list[str]:
    """The command that starts the service on a Ray of its own."""
    # -P: a directory named `service` where the user happens to be must not be taken for ours.
    module = [sys.executable, "-P", "-m", "service.launch"]
    return [*module, json.dumps(asdict(settings)), str(directory), str(os.getpid())]


def supervise(command: Callable[[Path], Sequence[str]]) -> int:
    """Runs the command, given a scratch directory, until it ends or a signal comes. Returns the exit code.

    0 after a stop that was asked for. The scratch directory is kept when the command fails: it has the logs.
    """
    processes.adopt_orphans()
    # Blocked from before the start to the very end, so that none is lost and none interrupts the clean-up;
    # the command unblocks its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    directory = scratch_directory()
    child = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
        list(command(directory)), stdin=subprocess.DEVNULL, start_new_session=True
    )
    asked = 0
    code: int | None = None
    while code is None:
        number = signal.sigwait(WATCHED)
        if number == signal.SIGCHLD:
            code = _ended(child)
            continue
        asked += 1
        if asked > 1:
            break
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):  # after SIGHUP the terminal is gone
            print("\nstopping: running requests may end (again to stop at once)", file=sys.stderr, flush=True)
    processes.end_descendants()
    if asked or code in (0, 2):
        shutil.rmtree(directory, ignore_errors=True)
        return 2 if code == 2 and not asked else 0
    what = "" if code == 1 else f"the service ended unasked (exit code {code}); "  # 1 has said why itself
    print(f"cellstate: {what}logs: {directory}", file=sys.stderr)
    return 1


def _ended(child: subprocess.Popen[bytes]) -> int | None:
    """The child's exit code once it has one; takes leave of adopted processes that ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            if pid == child.pid:
                child.returncode = os.waitstatus_to_exitcode(status)  # or Popen would look for it itself
                return child.returncode
    return child.returncode
