"""The service without Ray: some processes of `cellstate serve --local` with one store between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.chaos import tree
from loadtests.chaos.redis_server import RedisServer
from loadtests.chaos.subject import PAUSE, Failed, Fault, free_port, spawn, wait_ready


@dataclass(slots=True)
class _Replica:
    number: int
    port: int
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = True

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Plain:
    """Replicas that are restarted by hand, and no front door: the proxy sends to any of them."""

    def __init__(
        self, directory: Path, models: Path, store: str, replicas: int, lease_s: float, unsafe: str
    ) -> None:
        self._directory, self._lease_s, self._count = directory, lease_s, replicas
        self._redis = RedisServer(directory / "redis") if store == "redis" else None
        address = self._redis.url if self._redis else f"sqlite:{directory / 'sessions.sqlite'}"
        self._flags = ["--models", str(models), "--precision", "fp32", "--device", "cpu", "--store", address]
        self._flags += ["--durability", "journal", "--lease-s", str(lease_s), "--drain-s", "3"]
        # One model's replicas know each other by their ports: a port stays a replica's for the whole run.
        self._replicas = [_Replica(n, free_port()) for n in range(replicas + 1)]
        self._replicas[-1].wanted = False
        self._environment = os.environ | ({"CELLSTATE_UNSAFE": unsafe} if unsafe else {})

    @property
    def doors(self) -> list[str]:
        return [f"http://127.0.0.1:{r.port}" for r in self._replicas if r.wanted]

    @property
    def faults(self) -> Sequence[Fault]:
        faults = [
            Fault("kill -9 a replica", 4, self._kill_one),
            Fault(PAUSE, 4, self._pause_one),
            Fault("scale to 1, then 1 more", 1, self._scale),
        ]
        return [*faults, self._redis.fault(2)] if self._redis else faults

    async def start(self) -> None:
        await self.heal()

    async def heal(self) -> None:
        if self._redis:
            await self._redis.start()
        for replica in self._replicas:
            if replica.wanted:
                self._start(replica)
                tree.send(self._pid(replica), signal.SIGCONT)
        await asyncio.gather(*(self._ready(replica) for replica in self._replicas if replica.wanted))

    async def kill(self) -> int:
        killed = 0
        living = [replica for replica in self._replicas if replica.alive]
        for replica in living:
            killed += tree.kill_all(self._pid(replica))
        return killed + (self._redis.kill() if self._redis else 0)

    def _start(self, replica: _Replica) -> None:
        if not replica.alive:
            command = [sys.executable, "-m", "service.cli", "serve", "--local", "--port", str(replica.port)]
            log = self._directory / f"replica-{replica.number}.log"
            replica.process = spawn([*command, *self._flags], log, self._environment)

    def _pid(self, replica: _Replica) -> int:
        assert replica.process is not None
        return replica.process.pid

    async def _ready(self, replica: _Replica) -> None:
        def alive() -> None:
            if not replica.alive:
                log = self._directory / f"replica-{replica.number}.log"
                raise Failed(f"replica {replica.number} ended: {log.read_text()[-800:].strip()}")

        await wait_ready(f"http://127.0.0.1:{replica.port}", alive)

    def _one(self, rng: random.Random) -> _Replica | None:
        living = [replica for replica in self._replicas if replica.alive and replica.wanted]
        return rng.choice(living) if living else None

    async def _kill_one(self, rng: random.Random) -> str:
        replica = self._one(rng)
        if replica is None:
            return ""
        pid = self._pid(replica)
        tree.kill_all(pid)
        await asyncio.to_thread(replica.process.wait)  # type: ignore[union-attr]
        away_s = rng.uniform(0.2, 2 * self._lease_s)
        await asyncio.sleep(away_s)
        self._start(replica)
        return f"replica {replica.number}, pid {pid}; started again after {away_s:.1f} s"

    async def _pause_one(self, rng: random.Random) -> str:
        replica = self._one(rng)
        if replica is None:
            return ""
        pause_s = self._lease_s * rng.uniform(1.2, 2.5)
        pid = self._pid(replica)
        tree.send(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(pause_s)
        finally:
            tree.send(pid, signal.SIGCONT)
        return f"replica {replica.number}, pid {pid}, for {pause_s:.1f} s"

    async def _scale(self, rng: random.Random) -> str:
        kept = rng.choice(self._replicas[: self._count])
        leaving = [replica for replica in self._replicas if replica is not kept and replica.wanted]
        kept.wanted = True
        self._start(kept)
        with contextlib.suppress(Failed):
            await self._ready(kept)
        for replica in leaving:
            replica.wanted = False
            if replica.alive:
                tree.send(self._pid(replica), signal.SIGTERM)
        await asyncio.sleep(rng.uniform(1, 4))
        for replica in self._replicas:
            if not replica.wanted and replica.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(replica.process.wait, 20)
            replica.wanted = True
            self._start(replica)
        return f"{len(leaving) + 1} to 1 to {len(self._replicas)}"
