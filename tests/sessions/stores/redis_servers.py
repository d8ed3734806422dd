"""Real Redis servers for tests: each in a directory of its own, on a free port."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError


class Server:
    """A redis-server that can be killed, stopped and started again over the same files."""

    def __init__(self, path: Path, *settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        path.mkdir(parents=True, exist_ok=True)
        self.url = f"redis://127.0.0.1:{self.port}"
        self._path = path
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, ready: bool = True) -> None:
        """ready: waits until it answers."""
        own = ["--port", str(self.port), "--dir", str(self._path), "--save", "", "--logfile", "redis.log"]
        self._process = subprocess.Popen(["redis-server", *own, *self._settings])  # noqa: ASYNC220
        while ready:
            try:
                await self.ask("PING")
                return
            except (RedisError, OSError):
                assert self._process.poll() is None, (self._path / "redis.log").read_text()
                await asyncio.sleep(0.01)

    async def ask(self, *command: str | bytes | int) -> object:
        """One command, past the store."""
        async with Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as client:
            answer: object = await client.execute_command(*command)  # type: ignore[no-untyped-call]
            return answer

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@asynccontextmanager
async def serving(path: Path, *settings: str) -> AsyncIterator[Server]:
    """A server that keeps its log (appendonly yes) unless the settings say otherwise."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = Server(path, *(settings or ("--appendonly", "yes")))
    try:
        await server.start()
        yield server
    finally:
        server.kill()
