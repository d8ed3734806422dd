"""A Ray cluster whose nodes are machines of their own, with Redis on another: as an operator starts one."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from loadtests.chaos.subject import Failed, spawn
from loadtests.cluster.network import Machine, Network
from service.front_door import COMMAND

ROOT = Path(__file__).resolve().parents[2]
#: What an operator gives a node that is to hold models
RESOURCE = "cellstate"
GCS_PORT, DASHBOARD_PORT, DOOR_PORT, REDIS_PORT = 6379, 8265, 8000, 6379
START_S = 180.0
DRAIN_S = 40.0
OBJECT_STORE = 80 * 2**20  # the least Ray takes; nothing is put there


class Node:
    """`ray start --block` on a machine. Files of its own, in a directory of its own."""

    def __init__(self, machine: Machine, directory: Path, environment: Mapping[str, str]) -> None:
        self.machine, self.directory = machine, directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(exist_ok=True)
        self.environment = dict(environment)

    @property
    def url(self) -> str:
        """Of its front door."""
        return f"http://{self.machine.address}:{DOOR_PORT}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *options: str) -> None:
        self._options = options
        # Ray takes a node for one that runs if it left this and finds its address among all processes; here,
        # those of the other namespaces are some of them.
        (self.directory / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={self.machine.address}", f"--object-store-memory={OBJECT_STORE}"]
        command += [f"--temp-dir={self.directory / 'ray'}", *options]
        self._process = spawn(self.machine.enter(command), self.directory / "log", self.environment)

    def revive(self) -> None:
        """Starts it again if it ended by itself, as systemd or Kubernetes does: on a busy machine, Ray
        gives up waiting for its own processes."""
        if self._options and not self.alive:
            self.machine.kill()
            self.start(*self._options)

    def kill(self) -> int:
        """kill -9 of all that runs on it. How many processes."""
        self._options = ()
        killed = self.machine.kill()
        if self._process is not None:
            self._process.wait()
        return killed

    def leave(self) -> int:
        """Stops it as systemd and Kubernetes do, by SIGTERM: Ray drains it. How many processes had to be
        killed in the end."""
        self._options = ()
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_S)
        return self.machine.kill()

    def processes(self, prefix: str) -> list[int]:
        """Those on this node whose command, or the title that they gave themselves, begins so."""
        found = []
        for pid in self.machine.pids():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if command.startswith(prefix):
                found.append(pid)
        return found

    def python(self, *arguments: str, timeout_s: float = START_S) -> subprocess.CompletedProcess[str]:
        """Runs `python ARGUMENTS` in the node's shell."""
        return subprocess.run(
            self.machine.enter([sys.executable, *arguments]),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
        )


class RayCluster:
    """A head, workers, and a Redis for Ray's own state and the sessions. settings: CELLSTATE_ variables."""

    def __init__(self, directory: Path, workers: int, settings: Mapping[str, str]) -> None:
        self.network = Network()
        self._directory = directory
        self._redis_machine = self.network.add("redis")
        self._redis: subprocess.Popen[bytes] | None = None
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CELLSTATE_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH")))),
            "NO_PROXY": "*",
            "TMPDIR": str(directory),  # below it, the doors' files have a directory for each node
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # So long a node bears that the head is away
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
            # At SIGTERM a node waits so long for its replicas to end: more than they are given
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
            "CELLSTATE_STORE": f"redis://{self._redis_machine.address}:{REDIS_PORT}/0",
            **settings,
        }
        # Ray's head keeps what it knows in the same server, and finds it again when it comes back.
        at_head = {
            "RAY_REDIS_ADDRESS": f"{self._redis_machine.address}:{REDIS_PORT}",
            "RAY_external_storage_namespace": "cellstate",
        }
        self._environment = environment | doors_environment(environment)
        self.head = self._node("head", self._environment | at_head)
        self.workers: list[Node] = []
        for _ in range(workers):
            self.new_worker()

    def _node(self, name: str, environment: Mapping[str, str]) -> Node:
        return Node(self.network.add(name), self._directory / name, environment)

    def new_worker(self) -> Node:
        """A machine that is yet to be started."""
        worker = self._node(f"worker{len(self.workers) + 1}", self._environment)
        self.workers.append(worker)
        return worker

    @property
    def nodes(self) -> list[Node]:
        return [self.head, *self.workers]

    async def start(self) -> None:
        self.start_redis()
        self.start_head()
        await self._head_answers()
        for worker in self.workers:
            self.start_worker(worker)

    def start_redis(self) -> None:
        """As docs/durability.md wants it."""
        place = self._directory / "redis"
        place.mkdir(exist_ok=True)
        options = ["--bind", self._redis_machine.address, "--port", str(REDIS_PORT), "--dir", str(place)]
        options += ["--appendonly", "yes", "--save", "", "--protected-mode", "no"]
        command = self._redis_machine.enter(["redis-server", *options])
        self._redis = spawn(command, place / "log")

    def kill_redis(self) -> None:
        self._redis_machine.kill()
        if self._redis is not None:
            self._redis.wait()

    def start_head(self) -> None:
        self.head.start("--head", f"--port={GCS_PORT}", "--num-cpus=0", f"--dashboard-port={DASHBOARD_PORT}")

    def start_worker(self, worker: Node) -> None:
        worker.start(f"--address={self.address}", "--num-cpus=1", f'--resources={{"{RESOURCE}": 1}}')

    @property
    def address(self) -> str:
        """Of Ray."""
        return f"{self.head.machine.address}:{GCS_PORT}"

    async def _head_answers(self) -> None:
        """Returns when Ray's dashboard takes a deployment."""
        async with asyncio.timeout(START_S):
            while True:
                await asyncio.to_thread(self.head.revive)
                asked = await asyncio.to_thread(self.head.python, "-m", "ray.serve.scripts", "status")
                if asked.returncode == 0:
                    return
                await asyncio.sleep(0.5)

    def serve(self, *arguments: str) -> str:
        """`serve ARGUMENTS` on the head. Raises Failed."""
        done = self.head.python("-m", "ray.serve.scripts", *arguments)
        if done.returncode:
            raise Failed(f"serve {shlex.join(arguments)}: {(done.stdout + done.stderr)[-2000:]}")
        return done.stdout

    def close(self) -> None:
        self.network.close()


def doors_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What `cellstate-haproxy --environment` tells a node to set."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / COMMAND), "--environment"],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (shlex.split(line) for line in _statements(done.stdout))
    return dict(assignment.split("=", 1) for _, assignment in lines)


def _statements(text: str) -> list[str]:
    """Lines of a shell; one that a quote leaves open goes on in the next."""
    statements: list[str] = []
    for line in text.splitlines():
        if statements and statements[-1].count("'") % 2:
            statements[-1] += "\n" + line
        else:
            statements.append(line)
    return statements


async def ready(url: str, seconds: float = START_S) -> None:
    """Returns when the door takes traffic. Raises TimeoutError."""
    async with asyncio.timeout(seconds), httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
        while True:
            try:
                if (await client.get(f"{url}/readyz")).is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.2)
