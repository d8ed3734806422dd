"""One process of `cellstate serve --local`, which is started, killed and started again at the same port."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.chaos import tree
from loadtests.chaos.subject import Failed, free_port, spawn, wait_ready


class Replica:
    """log: a file for what it prints."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, flags: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Starts it if it does not run."""
        if not self.alive:
            command = [sys.executable, "-m", "service.cli", "serve", "--local", "--port", str(self.port)]
            self._process = spawn([*command, *flags], self._log, environment)

    async def ready(self) -> None:
        """Returns when it takes traffic. Raises Failed."""

        def alive() -> None:
            if not self.alive:
                raise Failed(f"a replica ended; {self._log} ends: {self._log.read_text()[-800:].strip()}")

        await wait_ready(self.url, alive)

    def send(self, number: signal.Signals) -> bool:
        """Whether there was still such a process."""
        return tree.send(self.pid, number)

    async def ended(self, timeout_s: float = 60.0) -> None:
        """Returns when it is gone. Raises subprocess.TimeoutExpired."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, timeout_s)

    def kill(self) -> int:
        """kill -9 of it and all below it. How many there were."""
        if self._process is None or self._process.poll() is not None:
            return 0
        killed = tree.kill_all(self.pid)
        self._process.wait()
        return killed
