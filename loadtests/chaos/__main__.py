"""Breaks a service in every way that it claims to bear, while many sessions go on; then looks for damage.

Starts all of it on this machine (a store, replicas, with Ray a cluster of several nodes) and ends it. Every
reply is compared with the float64 reference, and every session's place with what its client counted. Exit
code: 0 when no step was lost, doubled or wrong; with --without, 0 only when one was: then this test can fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from loadtests.bundles import random_bundle
from loadtests.chaos.clients import Clients, Findings
from loadtests.chaos.cluster import Cluster
from loadtests.chaos.plain import Plain
from loadtests.chaos.proxy import Odds, Proxy
from loadtests.chaos.subject import MODEL, PAUSE, Failed, Fault, Subject
from model.bundle import Bundle
from service import processes

AT_ONCE = 3  # faults


def main() -> int:
    args = _parser().parse_args()
    processes.adopt_orphans()
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    kept = False
    try:
        bundle = random_bundle(directory / "models" / MODEL, 2, 32, 4, MODEL, args.seed)
        stores = (
            ["redis", "sqlite"]
            if args.kill_all and args.plain and not args.store
            else [args.store or "redis"]
        )
        damage = 0
        for store in stores:
            place = directory / store
            place.mkdir()
            damage += asyncio.run(_interruptible(run(args, store, place, bundle))).damage
        kept = bool(damage) and not args.without and args.keep
    except Failed as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("chaos: stopped", file=sys.stderr)
        return 130
    finally:
        processes.end_descendants()
        if kept:
            print(f"logs: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if args.without:
        print("damage was found, as it should be" if damage else "NO damage was found: this test can't fail")
        return 0 if damage else 1
    return 1 if damage else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults (default: 3; at most 120)")
    parser.add_argument("--sessions", type=int, default=300, help="most 5000 (default: 300)")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second of all (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="of faults, inputs and weights (default: 1)")
    parser.add_argument("--replicas", type=int, default=3, help="(default: 3)")
    parser.add_argument("--nodes", type=int, default=2, help="Ray nodes beside the head (default: 2)")
    parser.add_argument("--lease-s", type=float, default=2.0, help="of a replica (default: 2)")
    parser.add_argument("--every-s", type=float, default=4.0, help="seconds between faults (default: 4)")
    parser.add_argument("--plain", action="store_true", help="without Ray: processes that share a store")
    parser.add_argument("--store", choices=("redis", "sqlite"), help="(default: redis; --kill-all: both)")
    parser.add_argument(
        "--kill-all", action="store_true", help="the one fault is kill -9 of everything at once"
    )
    parser.add_argument(
        "--without", choices=("fence", "window"), help="switch a safeguard off: must do damage"
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs if damage was found")
    return parser


async def _interruptible(work: Coroutine[Any, Any, Findings]) -> Findings:
    """Ends the work on SIGTERM and SIGHUP as on Ctrl-C."""
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    return await task


async def run(args: argparse.Namespace, store: str, directory: Path, bundle: Bundle) -> Findings:
    """Starts, disturbs, heals, compares."""
    unsafe = args.without or ""
    models = directory.parent / "models"
    subject: Subject = (
        Plain(directory, models, store, args.replicas, args.lease_s, unsafe)
        if args.plain
        else Cluster(directory, models, args.nodes, args.replicas, args.lease_s, unsafe)
    )
    where = store if args.plain else f"{store} and {args.nodes + 1} Ray nodes"
    print(f"starting {args.replicas} replicas on {where}", flush=True)
    began = time.monotonic()
    await subject.start()
    print(f"ready after {time.monotonic() - began:.1f} s")
    rng = random.Random(args.seed)
    proxy = Proxy(lambda: subject.doors, Odds(), random.Random(args.seed + 1))
    url = await proxy.start()
    # A third goes by the proxy alone; a third by a door and the direct addresses; a third by a door.
    ways = [(url, False), (subject.doors[0], True), (url, True)]
    clients = Clients(ways, bundle, args.seed, args.rate, 5.0 if unsafe else 60.0)
    chaos = Chaos(args.every_s, rng, chosen(args, subject))
    try:
        await clients.open(args.sessions)
        running = asyncio.create_task(clients.run())
        await chaos.run(60 * args.minutes)
        proxy.calm = True
        print(f"{chaos.at} faults end; all is healed")
        await subject.heal()
        clients.stop()
        await running
        print(f"{chaos.at} comparing")
        found = await clients.compare(list(proxy.strays))
    finally:
        await proxy.stop()
        await clients.close()
        await subject.kill()
    show(store, found, clients, proxy, chaos.struck)
    return found


def chosen(args: argparse.Namespace, subject: Subject) -> Sequence[Fault]:
    """The faults to draw from."""
    if args.kill_all:
        return [everything(subject)]
    if args.without == "fence":  # only one that goes on after its lease is stopped by it
        return [fault for fault in subject.faults if fault.kind == PAUSE]
    return subject.faults


def everything(subject: Subject) -> Fault:
    """kill -9 of every process of the service at once, and a new start."""

    async def strike(rng: random.Random) -> str:
        killed = await subject.kill()
        await asyncio.sleep(rng.uniform(0.0, 2.0))
        await subject.heal()
        return f"{killed} processes, all started again"

    return Fault("kill -9 of everything", 1, strike)


class Chaos:
    """One fault after the other, some at the same time, and the log of them."""

    def __init__(self, every_s: float, rng: random.Random, faults: Sequence[Fault]) -> None:
        self._faults = faults
        self._every_s, self._rng, self._began = every_s, rng, time.monotonic()
        self.struck: Counter[str] = Counter()

    @property
    def at(self) -> str:
        return f"{time.monotonic() - self._began:7.1f} s "

    async def run(self, seconds: float) -> None:
        """Raises what a fault raised: then it is this program that failed."""
        end = time.monotonic() + seconds
        running: dict[asyncio.Task[None], Fault] = {}
        try:
            while (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(left, self._every_s * self._rng.uniform(0.5, 1.5)))
                for task in [task for task in running if task.done()]:
                    task.result()
                    del running[task]
                # A fault that is under way is not begun once more, and two of a kind would meet.
                free = [fault for fault in self._faults if fault not in running.values()]
                if len(running) < AT_ONCE and free and time.monotonic() < end:
                    fault = self._rng.choices(free, [each.weight for each in free])[0]
                    running[asyncio.create_task(self._strike(fault))] = fault
            if running:
                await asyncio.wait(running, timeout=60)
            for task in running:
                if task.done():
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _strike(self, fault: Fault) -> None:
        at = self.at
        with contextlib.suppress(TimeoutError):
            told = await fault.strike(random.Random(self._rng.random()))
            if told:
                self.struck[fault.kind] += 1
                print(f"{at} {fault.kind}: {told}", flush=True)


def show(store: str, found: Findings, clients: Clients, proxy: Proxy, struck: Counter[str]) -> None:
    """The table."""
    print(f"\n{store}: faults")
    for kind, count in sorted(struck.items()):
        print(f"{count:>8}  {kind}")
    for what, count in sorted(proxy.seen.items()):
        print(f"{count:>8}  proxy: {what}")
    print("clients")
    print(f"{len(clients.tracks):>8}  sessions")
    print(f"{sum(len(track.outputs) for track in clients.tracks):>8}  steps acknowledged")
    for what, count in sorted(clients.seen.items()):
        print(f"{count:>8}  {what}")
    seconds = sorted(clients.seconds) or [0.0]
    p50, p99 = (1e3 * seconds[len(seconds) * part // 100] for part in (50, 99))
    print(f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest stall {seconds[-1]:.1f} s")
    print(f"steps lost {found.lost}, doubled {found.doubled}, wrong {found.wrong}")
    print(f"sessions that could not go on {found.broken}")
    for example in found.examples:
        print(f"  {example}")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
