"""What it costs that sessions move: from a replica to another one that lives, after a crash, and at a stop.

    python -m loadtests.moves [--store redis|sqlite|both] [--sessions N] [--many N] [--json]

Replicas are processes of `cellstate serve --local` with a 2x256 LSTM of random weights, on this machine, with
one store between them: a redis-server of our own (append-only file, synced every second), or a SQLite file.
Each session has 200 requests of one step in its journal. Times are the client's, on the same cores.

- moves: a step at the replica that does not own the session. First those of sessions with all of the journal
  behind them; then their moves back, of states that were saved when they left; beside steps that stay.
- crash: `kill -9` of the owner of 50 sessions while they are stepped, until each is answered by another one.
- restored: the same for all sessions at once, in bulk and one by one; from when the owner's lease ended.
- stop: SIGTERM of the owner of many sessions until it is gone; and until all are answered by another one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from loadtests.bundles import random_bundle
from loadtests.chaos.redis_server import RedisServer
from loadtests.chaos.replica import Replica
from loadtests.chaos.subject import MODEL, Failed
from service.bench.machine import processor
from service.sessions.stores.sqlite_leases import boot_clock

STEPS, BULK, CONNECTIONS = 200, 256, 64
SETTLED_S = 1.1  # a session that moved less than a second ago is not moved again
STOP_S = 10.0  # drain_s
ROW = "[" + ",".join(f"{0.1 * i:.1f}" for i in range(8)) + "]"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table, in milliseconds. target: of p99 or, if it is about all of them, of the last."""

    store: str
    what: str
    count: int
    p50: float
    p99: float
    last: float
    target: float | None = None
    of_last: bool = False

    @property
    def missed(self) -> bool:
        return self.target is not None and (self.last if self.of_last else self.p99) > self.target


def line(
    store: str, what: str, times: Iterable[float], target: float | None = None, of_last: bool = False
) -> Line:
    ms = sorted(1e3 * t for t in times)
    return Line(store, what, len(ms), ms[len(ms) // 2], ms[len(ms) * 99 // 100], ms[-1], target, of_last)


class Ground:
    """A store, and replicas over it."""

    def __init__(self, store: str, directory: Path, models: Path, lease_s: float) -> None:
        self.store, self.lease_s, self._directory = store, lease_s, directory
        self._redis = RedisServer(directory / "redis") if store == "redis" else None
        self._sqlite = directory / "sessions.sqlite"
        address = self._redis.url if self._redis else f"sqlite:{self._sqlite}"
        self._flags = [
            "--models",
            str(models),
            "--device",
            "cpu",
            "--store",
            address,
            "--durability",
            "journal",
        ]
        self._flags += ["--lease-s", str(lease_s), "--drain-s", str(STOP_S)]
        self._replicas: list[Replica] = []

    async def start(self, count: int) -> None:
        if self._redis:
            await self._redis.start()
        await asyncio.gather(*(self.replica() for _ in range(count)))

    async def replica(self) -> Replica:
        """One more."""
        replica = Replica(self._directory / f"replica-{len(self._replicas)}.log")
        self._replicas.append(replica)
        replica.start(self._flags)
        await replica.ready()
        return replica

    async def lease_left(self, replica: Replica) -> float:
        """Seconds for which the store keeps a replica's lease still."""
        if self._redis:
            async with Redis.from_url(self._redis.url) as redis:
                for key in await redis.keys(f"cellstate:{{{MODEL}}}:owner:*"):
                    if (await redis.get(key) or b"").decode() == replica.url:
                        return max(0.0, float(await redis.pttl(key)) / 1e3)
            return 0.0
        with contextlib.closing(sqlite3.connect(self._sqlite)) as db:
            found = db.execute("SELECT max(until) FROM replica WHERE address = ?", (replica.url,)).fetchone()
        return max(0.0, (found[0] or 0.0) - boot_clock())

    def kill(self) -> None:
        for replica in self._replicas:
            replica.kill()
        if self._redis:
            self._redis.kill()


class Client:
    """Steps sessions where it is told to, and comes back if it is asked to."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        self._http = httpx.AsyncClient(limits=limits, timeout=120.0, trust_env=False)
        self.next_step: dict[str, int] = {}

    async def step(self, replica: Replica, session: str) -> float:
        """Seconds until the session's next step was answered there. Raises httpx.HTTPError, or Failed."""
        body = f'{{"step":{self.next_step[session]},"inputs":[{ROW}]}}'
        path = f"{replica.url}/v1/models/{MODEL}/sessions/{session}/steps"
        began = time.perf_counter()
        while True:
            answer = await self._http.post(path, content=body, headers={"content-type": "application/json"})
            if answer.status_code == httpx.codes.OK:
                self.next_step[session] += 1
                return time.perf_counter() - began
            await self._pause(answer.json())

    async def bulk(self, replica: Replica, sessions: Sequence[str]) -> float:
        """Seconds until the next steps of all of them were answered there."""
        began, left = time.perf_counter(), list(sessions)
        while left:
            items = [
                f'{{"session_id":"{name}","step":{self.next_step[name]},"inputs":[{ROW}]}}' for name in left
            ]
            path, body = f"{replica.url}/v1/models/{MODEL}/steps", f'{{"requests":[{",".join(items)}]}}'
            answer = await self._http.post(path, content=body, headers={"content-type": "application/json"})
            results = answer.raise_for_status().json()["results"]
            again = [name for name, result in zip(left, results, strict=True) if "error" in result]
            for name in set(left).difference(again):
                self.next_step[name] += 1
            if again:
                await self._pause(next(result["error"] for result in results if "error" in result))
            left = again
        return time.perf_counter() - began

    async def fill(self, replica: Replica, sessions: Sequence[str], steps: int) -> None:
        """New sessions, each with so many requests in its journal."""
        self.next_step |= dict.fromkeys(sessions, 0)
        for _ in range(steps):
            await asyncio.gather(*(self.bulk(replica, part) for part in parts(sessions)))

    async def _pause(self, problem: dict[str, Any]) -> None:
        if problem["status"] not in (429, 503):
            raise Failed(f"a step was refused: {problem}")
        await asyncio.sleep(max(0.02, problem.get("retry_after_s", 0)))

    async def close(self) -> None:
        await self._http.aclose()


def parts(sessions: Sequence[str]) -> list[Sequence[str]]:
    return [sessions[n : n + BULK] for n in range(0, len(sessions), BULK)]


def named(kind: str, count: int) -> list[str]:
    return [f"{kind}-{n}" for n in range(count)]


async def moves(ground: Ground, client: Client, count: int) -> list[Line]:
    one, other = await ground.replica(), await ground.replica()
    sessions = named("move", count)
    await client.fill(one, sessions, STEPS)
    lines = []
    for what, replica, target in (
        (f"moves, {STEPS} steps of journal", other, 50.0),
        ("moves, state just saved", one, 50.0),
        ("stays", one, None),
    ):
        await asyncio.sleep(SETTLED_S)
        times = [await client.step(replica, session) for session in sessions]
        lines.append(line(ground.store, what, times, target))
    one.kill()
    other.kill()
    return lines


async def crash(ground: Ground, client: Client) -> Line:
    owner, other = await ground.replica(), await ground.replica()
    sessions, killed = named("crash", 50), asyncio.Event()
    await client.fill(owner, sessions, STEPS)

    async def go_on(session: str) -> float:
        with contextlib.suppress(httpx.HTTPError):
            while not killed.is_set():
                await client.step(owner, session)
                await asyncio.sleep(0.1)
        await killed.wait()
        await client.step(other, session)
        return time.perf_counter() - at

    tasks = [asyncio.create_task(go_on(session)) for session in sessions]
    await asyncio.sleep(1.0)
    at = time.perf_counter()
    owner.kill()
    killed.set()
    times = await asyncio.gather(*tasks)
    other.kill()
    target = 1e3 * (ground.lease_s + 1.0)
    return line(ground.store, f"crash, lease {ground.lease_s:g} s", times, target, of_last=True)


async def restored(ground: Ground, client: Client, count: int, bulk: bool) -> Line:
    owner, other = await ground.replica(), await ground.replica()
    sessions = named("bulk" if bulk else "single", count)
    await client.fill(owner, sessions, STEPS)
    owner.kill()
    over = time.perf_counter() + await ground.lease_left(owner)
    times: list[float] = []

    async def ask(some: Sequence[str]) -> None:
        await (client.bulk(other, some) if bulk else client.step(other, some[0]))
        times.extend([max(0.0, time.perf_counter() - over)] * len(some))

    await asyncio.gather(*(ask(some) for some in (parts(sessions) if bulk else [[s] for s in sessions])))
    other.kill()
    how = f"bulks of {BULK}" if bulk else f"{CONNECTIONS} connections"
    return line(ground.store, f"restored, {how}", times, 5000.0, of_last=True)


async def stop(ground: Ground, client: Client, count: int) -> list[Line]:
    owner, other = await ground.replica(), await ground.replica()
    sessions, began = named("stop", count), 0.0
    await client.fill(owner, sessions, 3)
    began = time.perf_counter()
    owner.send(signal.SIGTERM)
    await owner.ended()
    gone, began = time.perf_counter() - began, time.perf_counter()
    times: list[float] = []
    for some in parts(sessions):
        await client.bulk(other, some)
        times.extend([time.perf_counter() - began] * len(some))
    other.kill()
    return [
        line(ground.store, f"stop with {count:,} sessions", [gone], 1e3 * STOP_S, of_last=True),
        line(ground.store, "served by another one after that", times),
    ]


@contextlib.asynccontextmanager
async def fresh(store: str, lease_s: float) -> AsyncIterator[tuple[Ground, Client]]:
    """A store that is empty, and a client; ended in the end."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        random_bundle(directory / "models" / MODEL, 2, 256, name=MODEL)
        ground, client = Ground(store, directory, directory / "models", lease_s), Client()
        try:
            await ground.start(0)
            yield ground, client
        finally:
            ground.kill()
            await client.close()


async def measure(store: str, args: argparse.Namespace) -> AsyncIterator[Line]:
    wanted = args.only.split(",")
    if "moves" in wanted:
        async with fresh(store, 5.0) as (ground, client):
            for found in await moves(ground, client, args.moves):
                yield found
    for lease_s in (2.0, 5.0):
        if "crash" in wanted:
            async with fresh(store, lease_s) as (ground, client):
                yield await crash(ground, client)
    for bulk in (True, False):
        if "restored" in wanted:
            async with fresh(store, 2.0) as (ground, client):
                yield await restored(ground, client, args.sessions, bulk)
    if "stop" in wanted:
        async with fresh(store, 5.0) as (ground, client):
            for found in await stop(ground, client, args.many):
                yield found


async def run(args: argparse.Namespace) -> list[Line]:
    stores = ["redis", "sqlite"] if args.store == "both" else [args.store]
    if not args.json:
        print(f"{'store':<8}{'what':<36}{'count':>7}{'p50 ms':>10}{'p99 ms':>10}{'last ms':>10}{'target':>9}")
    lines = []
    for store in stores:
        async for found in measure(store, args):
            lines.append(found)
            if not args.json:
                show(found)
    return lines


def show(found: Line) -> None:
    target = "" if found.target is None else f"{found.target:9.0f}{' MISSED' if found.missed else ''}"
    print(
        f"{found.store:<8}{found.what:<36}{found.count:>7}"
        f"{found.p50:>10.1f}{found.p99:>10.1f}{found.last:>10.1f}{target}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.moves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", choices=("redis", "sqlite", "both"), default="both")
    parser.add_argument("--moves", type=int, default=300, help="sessions that move (default: 300)")
    parser.add_argument("--sessions", type=int, default=1000, help="sessions restored (default: 1000)")
    parser.add_argument("--many", type=int, default=20_000, help="sessions at a stop (default: 20000)")
    parser.add_argument("--only", default="moves,crash,restored,stop", help="some of: %(default)s")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    args = parser.parse_args()
    try:
        lines = asyncio.run(run(args))
    except (Failed, httpx.HTTPError) as error:
        print(f"moves: {error!r}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([asdict(found) | {"missed": found.missed} for found in lines], indent=1))
    else:
        print(f"\n{os.cpu_count()} cores, {processor()}; the client runs on the same cores")
    return 1 if any(found.missed for found in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
