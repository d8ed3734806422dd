"""The service on a Ray cluster of several nodes, all of them on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtests.chaos import tree
from loadtests.chaos.redis_server import RedisServer
from loadtests.chaos.subject import MODEL, PAUSE, START_S, Failed, Fault, free_port, spawn, wait_ready
from service import launch
from service.settings import Settings

OBJECT_STORE = 80 * 2**20  # the least Ray takes; nothing is put there


@dataclass(slots=True)
class _Node:
    """`ray start --block`: all of the node's processes are below it."""

    number: int
    process: subprocess.Popen[bytes]


class Cluster:
    """A head, which is left alone, and nodes that may be killed. Serve starts replicas again by itself."""

    def __init__(
        self, directory: Path, models: Path, nodes: int, replicas: int, lease_s: float, unsafe: str
    ) -> None:
        self._directory, self._wanted, self._started = directory, nodes, 0
        self._count = replicas
        self._redis = RedisServer(directory / "redis")
        self._port = free_port()
        self._head: _Node | None = None
        self._nodes: list[_Node] = []
        self._environment = os.environ | launch.environment(directory)
        self._environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(Path.cwd()), os.getenv("PYTHONPATH")))
        )
        first = free_port()
        self._settings = Settings(
            address=f"127.0.0.1:{self._port}",
            port=free_port(),
            direct_ports=f"{first}-{first + 99}",
            models=str(models),
            precision="fp32",
            device="cpu",
            store=self._redis.url,
            durability="journal",
            replicas=replicas,
            lease_s=lease_s,
            unsafe=unsafe,
            drain_s=3.0,
        )

    @property
    def doors(self) -> list[str]:
        return [self._settings.url]

    @property
    def faults(self) -> Sequence[Fault]:
        return [
            Fault("kill -9 a replica", 4, self._kill_replica),
            Fault(PAUSE, 3, self._pause_replica),
            Fault("kill -9 HAProxy", 2, self._kill_door),
            Fault("kill -9 a Ray node", 2, self._kill_node),
            Fault("scale", 1, self._scale),
            self._redis.fault(2),
        ]

    async def start(self) -> None:
        await self._redis.start()
        self._head = self._ray("--head", f"--port={self._port}")
        await self._reachable()
        self._nodes = [self._ray(f"--address=127.0.0.1:{self._port}") for _ in range(self._wanted)]
        await self._deploy(self._count)
        await wait_ready(self._settings.url, self._check)

    async def kill(self) -> int:
        killed = self._redis.kill()
        for node in [*self._nodes, *([self._head] if self._head else [])]:
            killed += tree.kill_all(node.process.pid)
            await asyncio.to_thread(node.process.wait)
        self._nodes, self._head = [], None
        return killed

    async def heal(self) -> None:
        if self._head is None:
            await self.start()
            return
        await self._redis.start()
        self._refill()
        for pid in self._replicas():
            tree.send(pid, signal.SIGCONT)
        await self._deploy(self._count)
        await wait_ready(self._settings.url, self._check)

    def _ray(self, *options: str) -> _Node:
        """A node. Each has a directory of its own for the files of its front door."""
        self._started += 1
        place = self._directory / f"n{self._started}"
        place.mkdir()
        doors = {
            name: value.replace(str(self._directory), str(place))
            for name, value in self._environment.items()
            if name.startswith("RAY_SERVE_HAPROXY_")
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += ["--node-ip-address=127.0.0.1", "--num-cpus=0", f"--object-store-memory={OBJECT_STORE}"]
        command += ["--disable-usage-stats"]
        if "--head" in options:
            command += ["--include-dashboard=false", f"--temp-dir={self._directory / 'ray'}"]
        return _Node(self._started, spawn(command, place / "log", self._environment | doors))

    def _refill(self) -> None:
        self._nodes = [node for node in self._nodes if node.process.poll() is None]
        while len(self._nodes) < self._wanted:
            self._nodes.append(self._ray(f"--address=127.0.0.1:{self._port}"))

    def _check(self) -> None:
        if self._head is None or self._head.process.poll() is not None:
            raise Failed(f"the head of the Ray cluster ended; its log: {self._directory / 'n1' / 'log'}")

    async def _reachable(self) -> None:
        async with asyncio.timeout(START_S):
            while True:
                self._check()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                except OSError:
                    await asyncio.sleep(0.2)
                else:
                    writer.close()
                    return

    async def _deploy(self, replicas: int, tries: int = 3) -> None:
        """By the project's own code. The connecting node may be one that dies: it is tried again."""
        settings = json.dumps(asdict(replace(self._settings, replicas=replicas)))
        log = self._directory / "deploy.log"
        for _ in range(tries):
            process = spawn(
                [sys.executable, "-m", "loadtests.chaos.deploy", settings], log, self._environment
            )
            try:
                if await asyncio.to_thread(process.wait, START_S) == 0:
                    return
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    tree.kill_all(process.pid)
                    process.wait()
            await asyncio.sleep(1.0)
        raise Failed(f"not deployed: {log.read_text()[-1500:].strip()}")

    def _within(self, wanted: Callable[[str], bool]) -> list[int]:
        nodes = [*self._nodes, *([self._head] if self._head else [])]
        return sorted(pid for node in nodes for pid in tree.matching(node.process.pid, wanted))

    def _replicas(self) -> list[int]:
        return self._within(lambda command: command.startswith(f"ray::ServeReplica:model-{MODEL}"))

    async def _kill_replica(self, rng: random.Random) -> str:
        replicas = self._replicas()
        if not replicas:
            return ""
        pid = rng.choice(replicas)
        tree.send(pid, signal.SIGKILL)
        return f"pid {pid}, of {len(replicas)}"

    async def _pause_replica(self, rng: random.Random) -> str:
        replicas = self._replicas()
        if not replicas:
            return ""
        pid, pause_s = rng.choice(replicas), self._settings.lease_s * rng.uniform(1.2, 2.5)
        tree.send(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(pause_s)
        finally:
            tree.send(pid, signal.SIGCONT)
        return f"pid {pid}, for {pause_s:.1f} s"

    async def _kill_door(self, rng: random.Random) -> str:
        doors = self._within(lambda command: "/haproxy" in command.split(" ")[0])
        for pid in doors:
            tree.send(pid, signal.SIGKILL)
        return f"{len(doors)} of them" if doors else ""

    async def _kill_node(self, rng: random.Random) -> str:
        living = [node for node in self._nodes if node.process.poll() is None]
        if not living:
            return ""
        node = rng.choice(living)
        killed = tree.kill_all(node.process.pid)
        await asyncio.to_thread(node.process.wait)
        away_s = rng.uniform(2.0, 8.0)
        await asyncio.sleep(away_s)
        self._refill()
        return f"node {node.number}, {killed} processes; a new one after {away_s:.1f} s"

    async def _scale(self, rng: random.Random) -> str:
        for count in (1, self._count + 1):
            try:
                await self._deploy(count, tries=1)
            except Failed:
                return f"not to {count}: another fault was in the way"
            await asyncio.sleep(rng.uniform(1.0, 4.0))
        return f"to 1, then to {self._count + 1}"
