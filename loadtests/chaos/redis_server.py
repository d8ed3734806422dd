"""A redis-server of our own on loopback, which keeps what it took when it is killed."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
from pathlib import Path

from loadtests.chaos.subject import Failed, Fault, free_port, spawn


class RedisServer:
    """Its append-only file is in `directory`; it comes back at the same port."""

    def __init__(self, directory: Path) -> None:
        if not shutil.which("redis-server"):
            raise Failed("redis-server is not installed (Debian: apt-get install redis-server)")
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def fault(self, weight: float) -> Fault:
        return Fault("kill -9 redis-server", weight, self._strike)

    async def start(self) -> None:
        """Starts it if it does not run, and returns when it answers."""
        if self._process is None or self._process.poll() is not None:
            self._directory.mkdir(exist_ok=True)
            options = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._directory)]
            options += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
            self._process = spawn(["redis-server", *options], self._directory / "log")
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(self._answers):
                if self._process.poll() is not None:
                    raise Failed(
                        f"redis-server ended; its log: {(self._directory / 'log').read_text()[-500:]}"
                    )
                await asyncio.sleep(0.05)

    def kill(self) -> int:
        if self._process is None or self._process.poll() is not None:
            return 0
        self._process.kill()
        self._process.wait()
        return 1

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    async def _strike(self, rng: random.Random) -> str:
        if not self.kill():
            return ""
        away_s = rng.uniform(0.5, 3.0)
        await asyncio.sleep(away_s)
        await self.start()
        return f"away for {away_s:.1f} s"
