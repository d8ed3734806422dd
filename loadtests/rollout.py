"""A service to which a new version of its model comes while it runs: on Ray, or as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loadtests.chaos import tree
from loadtests.chaos.proxy import Odds, Proxy
from loadtests.chaos.subject import Failed, free_port, spawn, wait_ready

MODEL = "upgrade"
STOP_S = 60.0
DEPLOY_S = 300.0


class Rollout(Protocol):
    """A service on this machine. `start` gives the address of its door."""

    async def start(self) -> str: ...

    async def deploy(self) -> float:
        """Brings the new version; returns when it is served everywhere. The seconds that it took."""
        ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """logs: a directory for what it prints. old, new: the two bundles. flags: of `cellstate serve`, for every
    process."""

    logs: Path
    old: Path
    new: Path
    replicas: int
    flags: Sequence[str]

    def spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """`cellstate` with these arguments; its log has that name."""
        here = os.pathsep.join(filter(None, (str(Path.cwd()), os.getenv("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": here}
        return spawn([sys.executable, "-m", "service.cli", *command], self.log(name), environment)

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def check(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Raises Failed if the process has ended."""
        if process.poll() is not None:
            raise Failed(f"{name} ended: {self.log(name).read_text()[-1500:].strip()}")


class OnRay:
    """`cellstate serve`, and `cellstate deploy`."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._port = plan, free_port()
        self._running: list[subprocess.Popen[bytes]] = []

    async def start(self) -> str:
        plan, first = self._plan, free_port()
        flags = ["--models", str(plan.old), "--port", str(self._port), "--replicas", str(plan.replicas)]
        flags += ["--direct-ports", f"{first}-{first + 99}", *plan.flags]
        process = plan.spawn("serve", "serve", *flags)
        self._running.append(process)
        url = f"http://127.0.0.1:{self._port}"
        await wait_ready(url, lambda: plan.check("serve", process))
        return url

    async def deploy(self) -> float:
        began = time.monotonic()
        process = self._plan.spawn("deploy", "deploy", str(self._plan.new), "--port", str(self._port))
        self._running.append(process)
        try:
            await asyncio.to_thread(process.wait, DEPLOY_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"the deploy took longer than {DEPLOY_S:.0f} s") from None
        if process.returncode != 0:
            self._plan.check("deploy", process)
        return time.monotonic() - began

    async def stop(self) -> None:
        await asyncio.gather(*map(end, self._running))


class Plain:
    """`cellstate serve --local`, each replaced by one with both versions; a door takes any of them."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._started = plan, 0
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # by address; the door leads to these
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._door = Proxy(lambda: list(self._running), Odds(), random.Random(0))
        self._door.calm = True

    async def start(self) -> str:
        models = str(self._plan.old)
        await asyncio.gather(*(self._one(models) for _ in range(self._plan.replicas)))
        return await self._door.start()

    async def deploy(self) -> float:
        began = time.monotonic()
        both = os.pathsep.join(map(str, (self._plan.old, self._plan.new)))
        for url, process in list(self._running.items()):
            await self._one(both)
            del self._running[url]
            self._leaving.append(process)
            await end(process)
        return time.monotonic() - began

    async def stop(self) -> None:
        await self._door.stop()
        await asyncio.gather(*map(end, (*self._running.values(), *self._leaving)))

    async def _one(self, models: str) -> None:
        self._started += 1
        name, port = f"replica-{self._started}", free_port()
        flags = ["--local", "--models", models, "--port", str(port), *self._plan.flags]
        process = self._plan.spawn(name, "serve", *flags)
        self._leaving.append(process)  # until the door leads to it
        await wait_ready(f"http://127.0.0.1:{port}", lambda: self._plan.check(name, process))
        self._leaving.remove(process)
        self._running[f"http://127.0.0.1:{port}"] = process


async def end(process: subprocess.Popen[bytes]) -> None:
    """As a user ends it: asked once, and again if that takes long, then it removes what it made at once."""
    for patience_s in (STOP_S, STOP_S / 4):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, patience_s)
    if process.poll() is None:
        tree.kill_all(process.pid)
        await asyncio.to_thread(process.wait)
