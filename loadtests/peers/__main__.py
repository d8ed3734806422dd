"""The rivals side by side with us: the same LSTM, the same steps, the same cores, in one run.

`setup` makes the rivals' environments below .peers/ (some GiB); then the run takes about ten minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from loadtests.bundles import random_bundle
from loadtests.peers import table
from loadtests.peers.environments import Environment, set_up
from loadtests.peers.rounds import Plan, Results, measure
from loadtests.peers.servers import lineup
from service import processes
from service.bench.machine import load, processor

PACKAGES = (("triton", "nvidia-pytriton"), ("python", "fastapi"), ("python", "litserve"), ("ray", "ray"))


def main() -> int:
    args = _parser().parse_args()
    if args.action == "setup":
        return 1 if set_up() else 0
    if not shutil.which("wrk"):
        print("peers: wrk is not installed (Debian: apt-get install wrk)", file=sys.stderr)
        return 1
    processes.adopt_orphans()  # whatever a rival leaves behind is ended with us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = Plan(
        args.seconds, args.rounds, args.minutes, args.connections, args.streams, kill=not args.no_kill
    )
    before = load()
    try:
        # A short path: Ray's and HAProxy's sockets lie below it.
        with tempfile.TemporaryDirectory(prefix="pr-", dir="/tmp", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            bundle = random_bundle(directory / "lstm", 2, 256, name="lstm")
            servers = lineup(directory, directory / "lstm")
            if args.only:
                servers = [s for s in servers if any(part in s.name.lower() for part in args.only)]
            results = measure(servers, bundle, plan)
            processes.end_descendants()
    except KeyboardInterrupt:
        return 130
    finally:
        processes.end_descendants()
    show(results, plan, before)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__)
    parser.add_argument("action", nargs="?", choices=["run", "setup"], default="run")
    parser.add_argument("--seconds", type=int, default=3, choices=range(1, 61), metavar="1-60", help="a cell")
    parser.add_argument("--rounds", type=int, default=2, help="orders alternate (default: 2)")
    parser.add_argument("--minutes", type=float, default=11, help="no second round goes beyond (default: 11)")
    parser.add_argument("--connections", type=_counts, default=[1, 8, 64, 256], help="default: 1,8,64,256")
    parser.add_argument("--streams", type=_counts, default=[1, 8, 32], help="default: 1,8,32")
    parser.add_argument(
        "--only", type=lambda text: text.lower().split(","), help="parts of names, with commas"
    )
    parser.add_argument("--no-kill", action="store_true", help="leave out what a kill -9 leaves")
    return parser


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if any(not 1 <= count <= 1024 for count in counts):
        raise ValueError
    return counts


def show(results: Results, plan: Plan, before: list[float]) -> None:
    """Prints everything as markdown."""
    blocks = [
        table.rates("JSON over HTTP, connections", results.http, table.TRITON, 64),
        table.rates("streams", results.streams, "Triton, gRPC streams", max(plan.streams)),
        table.memory(results),
        table.crashes(results),
        table.checks(table.targets(results)),
    ]
    print("\nSteps a second, p50 / p99: means of the rounds.\n")
    print("\n\n".join("\n".join(lines) for lines in blocks if len(lines) > 2))
    if results.notes:
        print("\nNotes:\n" + "\n".join(f"- {note}" for note in results.notes))
    far = ", ".join(f"{way} {distance:.1e}" for way, distance in results.distance.items())
    print(f"\nLargest difference to a float64 reference over 20 steps of 24 sessions: {far}")
    print(f"{os.cpu_count()} cores, {processor()}, the clients on the same; load before: {before[0]}")
    print(
        f"{plan.rounds} rounds in alternating order, {plan.seconds} s a cell; one thread of tensor arithmetic"
    )
    ours = ", ".join(f"{name} {version(name)}" for name in ("cellstate", "torch", "ray", "uvicorn"))
    rivals = ", ".join(f"{name} {Environment(where).version(name)}" for where, name in PACKAGES)
    triton = results.versions.get("Triton") or "absent"
    print(f"Python {platform.python_version()}; {ours}; rivals: {rivals}, Triton {triton}, {_redis()}")


def _redis() -> str:
    try:
        done = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no redis-server"
    return " ".join(done.stdout.split()[:3])


if __name__ == "__main__":
    sys.exit(main())
