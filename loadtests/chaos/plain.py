"""The service without Ray: some processes of `cellstate serve --local` with one store between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from loadtests.chaos.redis_server import RedisServer
from loadtests.chaos.replica import Replica
from loadtests.chaos.subject import PAUSE, Failed, Fault


class _Replica(Replica):
    """wanted: one of those that should run."""

    def __init__(self, number: int, log: Path) -> None:
        super().__init__(log)
        self.number, self.wanted = number, True


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
        self._replicas = [_Replica(n, directory / f"replica-{n}.log") for n in range(replicas + 1)]
        self._replicas[-1].wanted = False
        self._environment = os.environ | ({"CELLSTATE_UNSAFE": unsafe} if unsafe else {})

    @property
    def doors(self) -> list[str]:
        return [replica.url for replica in self._replicas if replica.wanted]

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
                replica.send(signal.SIGCONT)
        await asyncio.gather(*(replica.ready() for replica in self._replicas if replica.wanted))

    async def kill(self) -> int:
        killed = 0
        living = [replica for replica in self._replicas if replica.alive]
        for replica in living:
            killed += replica.kill()
        return killed + (self._redis.kill() if self._redis else 0)

    def _start(self, replica: _Replica) -> None:
        replica.start(self._flags, self._environment)

    def _one(self, rng: random.Random) -> _Replica | None:
        living = [replica for replica in self._replicas if replica.alive and replica.wanted]
        return rng.choice(living) if living else None

    async def _kill_one(self, rng: random.Random) -> str:
        replica = self._one(rng)
        if replica is None:
            return ""
        pid = replica.pid
        replica.kill()
        away_s = rng.uniform(0.2, 2 * self._lease_s)
        await asyncio.sleep(away_s)
        self._start(replica)
        return f"replica {replica.number}, pid {pid}; started again after {away_s:.1f} s"

    async def _pause_one(self, rng: random.Random) -> str:
        replica = self._one(rng)
        if replica is None:
            return ""
        pause_s = self._lease_s * rng.uniform(1.2, 2.5)
        pid = replica.pid
        replica.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(pause_s)
        finally:
            replica.send(signal.SIGCONT)
        return f"replica {replica.number}, pid {pid}, for {pause_s:.1f} s"

    async def _scale(self, rng: random.Random) -> str:
        kept = rng.choice(self._replicas[: self._count])
        leaving = [replica for replica in self._replicas if replica is not kept and replica.wanted]
        kept.wanted = True
        self._start(kept)
        with contextlib.suppress(Failed):
            await kept.ready()
        for replica in leaving:
            replica.wanted = False
            if replica.alive:
                replica.send(signal.SIGTERM)
        await asyncio.sleep(rng.uniform(1, 4))
        for replica in self._replicas:
            if not replica.wanted:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await replica.ended(20)
            replica.wanted = True
            self._start(replica)
        return f"{len(leaving) + 1} to 1 to {len(self._replicas)}"
