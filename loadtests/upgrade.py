"""Gives a service a new version of a model while its sessions are stepped; then looks for damage.

For each policy (the setting `upgrade`): starts a redis-server and a service on Ray, opens sessions, steps
them at a bounded rate, runs `cellstate deploy` in the middle, opens some more, and goes on. With --plain
there is no Ray: processes of `cellstate serve --local`, replaced one after the other. Then every reply is
compared with the float64 reference of the version that must have made it, every session's next step with what
its client counted, and every exported state with the reference's.

Exit code: 0 when nothing was lost, doubled or wrong, 1 when something was, 2 when it could not be seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors

from loadtests.bundles import random_bundle
from loadtests.chaos.redis_server import RedisServer
from loadtests.chaos.subject import Failed
from loadtests.rollout import MODEL, OnRay, Plain, Plan, Rollout
from loadtests.versions import PIN, POLICIES, TOLERANCE, judge
from model.bundle import Bundle
from service import processes
from service.client import AsyncClient, AsyncSession, ClientError

LATE = 20  # sessions that are opened after the deploy
CALL_S = 120.0  # a call that takes longer has failed
AT_ONCE = 50  # calls, where it is not the rate that bounds them
HISTORY = 1_000_000  # steps: all of a session's can be replayed
COUNTS = (1, 1, 1, 1, 2, 5)  # steps of a request


@dataclass(slots=True)
class Row:
    """A line of the table. steps: acknowledged. lost: of these, what the service has not; doubled: what it
    has beside them; wrong: replies, states and versions that are not as they must be; broken: sessions that
    could not go on; moved: sessions that went over to the new version."""

    policy: str
    sessions: int = 0
    steps: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    broken: int = 0
    moved: int = 0
    longest_stall_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    deploy_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def damage(self) -> int:
        return self.lost + self.doubled + self.wrong + self.broken

    def note(self, what: str) -> None:
        if len(self.examples) < 8:
            self.examples.append(what)


@dataclass(slots=True)
class Track:
    """One session as its client sees it. inputs and outputs: of the acknowledged steps. begins: the first
    step of each request. late: opened after the deploy."""

    session: AsyncSession
    number: int
    late: bool
    inputs: list[list[float]] = field(default_factory=list)
    outputs: list[list[float]] = field(default_factory=list)
    begins: set[int] = field(default_factory=set)
    broken: str = ""


class Clients:
    """Of all sessions, in this process: half of them go by the door alone, half by direct addresses too."""

    def __init__(self, url: str, width: int, seed: int, pause_s: float) -> None:
        self._clients = [
            AsyncClient(url, timeout_s=CALL_S, direct=direct, trust_env=False) for direct in (False, True)
        ]
        self._width, self._seed, self._pause_s = width, seed, pause_s
        self._stop = asyncio.Event()
        self._stepping: list[asyncio.Task[None]] = []
        self.tracks: list[Track] = []
        self.seconds: list[float] = []

    async def open(self, count: int, late: bool = False) -> None:
        """Opens so many sessions, and steps each from now on."""
        first = len(self.tracks)

        async def one(number: int) -> None:
            model = self._clients[number % len(self._clients)].model(MODEL)
            track = Track(await model.open(f"s{number}"), number, late)
            self.tracks.append(track)
            self._stepping.append(asyncio.create_task(self._drive(track)))

        await at_once(one(number) for number in range(first, first + count))

    async def stop(self) -> None:
        """No session begins another request; returns when each has the reply that it waits for."""
        self._stop.set()
        await asyncio.gather(*self._stepping)

    async def close(self) -> None:
        for task in self._stepping:
            task.cancel()
        await asyncio.gather(*self._stepping, return_exceptions=True)
        for client in self._clients:
            await client.close()

    async def _drive(self, track: Track) -> None:
        chance = random.Random(f"{self._seed}/{track.number}")
        rows = np.random.default_rng([self._seed, track.number])
        await self._rest(self._pause_s * chance.random())
        while not self._stop.is_set() and not track.broken:
            inputs = rows.standard_normal((chance.choice(COUNTS), self._width)).round(4)
            await self._step(track, inputs.tolist())
            await self._rest(self._pause_s * chance.uniform(0.5, 1.5))

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _step(self, track: Track, inputs: list[list[float]]) -> None:
        began, first = time.monotonic(), len(track.outputs)
        try:
            reply = await track.session.step(inputs)
        except ClientError as error:
            track.broken = f"{type(error).__name__}: {error}"
            return
        self.seconds.append(time.monotonic() - began)
        if reply.next_step != first + len(inputs) or reply.outputs is None:
            track.broken = f"the reply says step {reply.next_step} is next, not {first + len(inputs)}"
            return
        track.begins.add(first)
        track.inputs += inputs
        track.outputs += reply.outputs


async def compare(clients: Clients, policy: str, old: Bundle, new: Bundle) -> Row:
    """All that was said, and all that the service has, with the reference."""
    row = Row(policy, len(clients.tracks), sum(len(track.outputs) for track in clients.tracks))

    async def one(track: Track) -> None:
        inputs = np.array(track.inputs).reshape(len(track.inputs), -1)
        outputs = np.array(track.outputs).reshape(len(track.outputs), -1)
        # One that was opened after the deploy is the new version's from its first step to its last.
        keeps, since = (PIN, new) if track.late else (policy, old)
        verdict = judge(keeps, since, new, inputs, outputs, track.begins)
        for step in verdict.wrong:
            row.wrong += 1
            row.note(f"{track.session.id}: the reply to step {step} is wrong")
        if track.broken:
            row.broken += 1
            row.note(f"{track.session.id}: {track.broken}")
        try:
            facts = await track.session.facts()
            tensors = load_tensors(await track.session.state())
        except ClientError as error:
            row.lost += len(outputs)
            row.note(f"{track.session.id}: {type(error).__name__}: {error}")
            return
        wanted = (since if keeps == PIN else new).version
        row.moved += facts["version"] == new.version and not track.late
        at = int(facts["next_step"])
        row.lost += max(0, len(outputs) - at)
        row.doubled += max(0, at - len(outputs))
        if at != len(outputs):
            row.note(f"{track.session.id}: the service is at step {at}, its client at {len(outputs)}")
        off = float(np.abs(np.stack((tensors["h"], tensors["c"])) - verdict.state).max())
        if facts["version"] != wanted or not off <= TOLERANCE:
            row.wrong += 1
            about = f"of version {facts['version']} (must be {wanted}), its state off by {off:.1e}"
            row.note(f"{track.session.id}: at the end {about}")

    await at_once(one(track) for track in clients.tracks)
    seconds = np.array(clients.seconds or [0.0])
    row.longest_stall_s = float(seconds.max())
    row.p50_ms, row.p99_ms = (1e3 * float(q) for q in np.quantile(seconds, (0.5, 0.99)))
    return row


async def at_once(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them, not too many at the same time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(call: Coroutine[Any, Any, None]) -> None:
        async with turns:
            await call

    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(one(call))


async def upgrade(args: argparse.Namespace, policy: str, directory: Path, old: Bundle, new: Bundle) -> Row:
    """Starts, steps, deploys, steps, compares, ends all of it."""
    place = directory / policy
    place.mkdir()
    redis = RedisServer(place / "redis")
    flags = ["--store", redis.url, "--upgrade", policy, "--history", str(HISTORY)]
    flags += ["--precision", "fp32", "--device", "cpu", "--durability", "journal"]
    plan = Plan(place, directory / "one", directory / "two", args.replicas, flags)
    service: Rollout = Plain(plan) if args.plain else OnRay(plan)
    clients: Clients | None = None
    try:
        await redis.start()
        say(policy, f"starting {args.replicas} replicas {'without' if args.plain else 'on'} Ray")
        url = await service.start()
        pause_s = args.sessions * sum(COUNTS) / len(COUNTS) / args.rate
        clients = Clients(url, len(old.spec.inputs), args.seed, pause_s)
        await clients.open(args.sessions)
        say(policy, f"{args.sessions} sessions are being stepped")
        await asyncio.sleep(args.seconds / 2)
        say(policy, "deploying version 2")
        deploy_s = await service.deploy()
        await clients.open(LATE, late=True)
        await asyncio.sleep(args.seconds / 2)
        say(policy, "comparing")
        await clients.stop()
        row = await compare(clients, policy, old, new)
        row.deploy_s = deploy_s
        return row
    finally:
        if clients:
            await clients.close()
        await service.stop()
        redis.kill()


async def upgrades(args: argparse.Namespace, directory: Path) -> list[Row]:
    """A row for each policy, one after the other. Ends on SIGTERM and SIGHUP as on Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    old, new = (
        random_bundle(directory / name, 2, 32, 4, MODEL, args.seed + n, version)
        for n, (name, version) in enumerate((("one", "1"), ("two", "2")))
    )
    return [await upgrade(args, policy, directory, old, new) for policy in args.policy]


def say(policy: str, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {policy}: {what}", file=sys.stderr, flush=True)


def show(rows: Iterable[Row]) -> None:
    """The table."""
    names = ("policy", "sessions", "steps", "lost", "doubled", "wrong", "broken", "moved")
    print("".join(f"{name:>9}" for name in names), "  longest stall       p50       p99    deploy")
    for row in rows:
        counts = "".join(f"{getattr(row, name):>9}" for name in names)
        times = (
            f"{row.longest_stall_s:>13.1f} s{row.p50_ms:>7.1f} ms{row.p99_ms:>7.0f} ms{row.deploy_s:>8.1f} s"
        )
        print(f"{counts}  {times}")
        for example in row.examples:
            print(f"  {example}")


def main() -> int:
    args = _parser().parse_args()
    processes.adopt_orphans()
    directory = Path(tempfile.mkdtemp(prefix="upgrade-"))
    try:
        rows = asyncio.run(upgrades(args, directory))
    except (Failed, ClientError) as error:
        print(f"upgrade: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("upgrade: stopped", file=sys.stderr)
        return 130
    finally:
        processes.end_descendants()
        shutil.rmtree(directory, ignore_errors=True)
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows)
    return 1 if any(row.damage for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.upgrade", description=__doc__)
    parser.add_argument("--sessions", type=_bounded(1, 5000), default=500, help="at most 5000 (default: 500)")
    parser.add_argument(
        "--policy",
        type=_policies,
        default=list(POLICIES),
        help=f"some of {','.join(POLICIES)} (default: all)",
    )
    parser.add_argument("--replicas", type=_bounded(1, 8), default=2, help="at most 8 (default: 2)")
    parser.add_argument(
        "--seconds", type=_bounded(1, 3600), default=20, help="beside those of the deploy (default: 20)"
    )
    parser.add_argument(
        "--rate", type=_bounded(1, 10_000), default=300, help="steps a second of all (default: 300)"
    )
    parser.add_argument("--seed", type=_bounded(0, 2**31), default=1, help="of all chance (default: 1)")
    parser.add_argument("--plain", action="store_true", help="without Ray: processes that share a store")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def _bounded(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least} to {most}, not {text}")
        return int(text)

    return whole


def _policies(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(POLICIES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(POLICIES)}")
    return list(dict.fromkeys(chosen))


if __name__ == "__main__":
    sys.exit(main())
