"""Measures a service that is asked for several times what it can do: `python -m loadtests.overload`.

For each way in: the peak, which is the most answers a second that the same connections and sessions get, some
of them at a time; what few of them get alone, which is more, as what is used again soon is still in the
processor's caches; the latency at a fifth of the peak; then requests due at `--factor` times what few get,
for `--seconds`, whatever the answers; and the latency at a fifth of the peak again, `--rest` seconds later.
Latency counts from when a request was due; "sent p99", and the 429 behind it, from when it was sent, which is
what the service has to do with it when the generator has no connection left. Starts a service for each, and
sends to this machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import secrets
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx

from loadtests.door import Failed, service_of
from loadtests.open_loop import Caller, Generator, Outcome, quantile
from model.bundle import load
from service.bench.machine import processor
from service.settings import SHIPPED_BUNDLES

TEXT = "To be, or not to be: that is the question: Whether 'tis nobler in the mind to suffer"
#: Of the peak, what is asked for before and afterwards
CALM = 0.2
#: Seconds of each look for the peak, and at the calm
LOOK_S = 5.0
#: Of the peak, what must still be answered under overload
HELD = 0.8


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to ask. steps: of a request. in_flight: at a time, that are tried for the peak."""

    name: str
    model: str
    direct: bool
    body: str
    steps: int
    in_flight: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a subject. few: answers a second to few connections. memory: of the replica's process,
    before, at half the time, after, in MiB."""

    name: str
    few: float
    peak: float
    over: Outcome
    before: Outcome
    after: Outcome
    memory: tuple[float, float, float]

    @property
    def share(self) -> float:
        return self.over.rate / self.peak

    @property
    def failed(self) -> list[str]:
        """What must not be, in words."""
        found = []
        if self.share < HELD:
            found.append(f"{self.name}: answered {self.share:.0%} of the peak, less than {HELD:.0%}")
        return found + [
            f"{self.name}: other answers {dict(outcome.others)}, broken connections {outcome.broken},"
            f" no answer {outcome.unanswered}"
            for outcome in (self.before, self.over, self.after)
            if outcome.others or outcome.broken or outcome.unanswered
        ]


def subjects(inputs: int) -> list[Subject]:
    values = ",".join(f"{0.1 * (i % 10):.1f}" for i in range(inputs))
    step = f'"inputs":[[{values}]]'
    chunk = f'"text":{json.dumps(TEXT[:64])},"return":[]'
    return [
        Subject("steps, door", "lstm", False, step, 1, (64, 128, 256)),
        Subject("steps, own port", "lstm", True, step, 1, (64, 128, 256)),
        Subject("chunks of 64, own port", "shakespeare", True, chunk, 64, (2, 4, 8)),
    ]


def main() -> int:
    args = _parser().parse_args()
    # Each connection of the generator is a descriptor
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as directory:
            inputs = _bundles(Path(directory), args.hidden)
            chosen = [s for s in subjects(inputs) if args.only in s.name]
            flags = [flag for given in args.serve for flag in given.split()]
            for subject in chosen:
                with service_of(directory, *flags, store=args.store) as url:
                    rows.append(measure(subject, url, args))
                    print(line(rows[-1]), file=sys.stderr)
    except (Failed, httpx.HTTPError, OSError) as error:
        print(f"overload: {error}", file=sys.stderr)
        return 1
    show(rows, args)
    failed = [text for row in rows for text in row.failed]
    for text in failed:
        print(text)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.overload", description=__doc__)
    parser.add_argument(
        "--factor", type=float, default=3.0, help="of the peak, what is asked for (default: 3)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (default: 60)")
    parser.add_argument(
        "--rest", type=float, default=10.0, help="seconds until the look afterwards (default: 10)"
    )
    parser.add_argument("--connections", type=int, default=2000, help="of the generator (default: 2000)")
    parser.add_argument(
        "--store", default="memory:", help="of the service; sqlite: is a file of the run's own"
    )
    parser.add_argument(
        "--hidden",
        type=int,
        default=256,
        help="of the two layers of the model of single steps (default: 256)",
    )
    parser.add_argument("--only", default="", help="subjects with this in their name")
    parser.add_argument("--serve", action="append", default=[], help="more flags for `cellstate serve`")
    parser.add_argument("--nice", type=int, default=0, help="of the generator (default: 0)")
    return parser


def _bundles(directory: Path, hidden: int) -> int:
    """Makes what is served; the inputs of its series model."""
    from loadtests.bundles import random_bundle

    random_bundle(directory / "lstm", 2, hidden, name="lstm")
    (directory / "shakespeare").symlink_to(Path(SHIPPED_BUNDLES) / "shakespeare")
    return len(load(directory / "lstm").spec.inputs)


def measure(subject: Subject, url: str, args: argparse.Namespace) -> Row:
    """The subject's row, from a service that was just started."""
    with contextlib.suppress(OSError):
        os.nice(args.nice - os.nice(0))
    direct = _direct(url, subject.model)
    prefix = f"{secrets.token_hex(4)}-"

    def make(number: int) -> Caller:
        path = f"/v1/models/{subject.model}/sessions/{prefix}{number}/steps"
        return Caller(direct if subject.direct else url, path, subject.body, subject.steps)

    generator = Generator(make, args.connections)
    try:
        print(f"{subject.name}: looking for the peak", file=sys.stderr)
        generator.closed_loop(LOOK_S, subject.in_flight[0])  # warms
        few = max(generator.closed_loop(LOOK_S, count).rate for count in subject.in_flight)
        peak = max(generator.closed_loop(LOOK_S, args.connections, count).rate for count in subject.in_flight)
        if not peak:
            raise Failed(f"{subject.name}: nothing is answered")
        offered = args.factor * max(few, peak)
        before = generator.open_loop(LOOK_S, CALM * peak)
        fresh = _memory(direct)
        print(f"{subject.name}: {offered:,.0f} requests/s for {args.seconds:g} s", file=sys.stderr)
        with ThreadPoolExecutor(1) as other:
            half = other.submit(_later, args.seconds / 2, direct)
            over = generator.open_loop(args.seconds, offered)
            memory = (fresh, half.result(), _memory(direct))
        time.sleep(args.rest)
        after = generator.open_loop(LOOK_S, CALM * peak)
    finally:
        generator.close()
    return Row(subject.name, few, peak, over, before, after, memory)


def _direct(url: str, model: str) -> str:
    """The address of a replica's own port."""
    path = f"{url}/v1/models/{model}/sessions"
    opened = httpx.post(path, json={}, trust_env=False).raise_for_status().json()
    httpx.delete(f"{path}/{opened['session_id']}", trust_env=False)
    return str(opened["direct_url"])


def _later(seconds: float, url: str) -> float:
    """The memory after a while, while another thread sends."""
    time.sleep(seconds)
    return _memory(url)


def _memory(url: str) -> float:
    """MiB that the process at this address holds."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).raise_for_status().text
    found = re.search(r"^process_resident_memory_bytes(?:\{.*\})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) / 2**20 if found else float("nan")


HEAD = (
    f"{'way':<24}{'few/s':>9}{'peak/s':>9}{'offered/s':>11}{'answered/s':>12}{'of peak':>9}{'429':>7}"
    f"{'p50 ms':>9}{'p99 ms':>9}{'429 p50':>9}{'429 p99':>9}{'unsent':>11}{'sent p99':>10}{'429 p99':>9}"
    f"{'p99 before':>12}{'after':>8}{'MiB before':>12}{'half':>8}{'after':>8}"
)


def line(row: Row) -> str:
    over = row.over
    refused = len(over.refused) / max(1, over.answered)
    return (
        f"{row.name:<24}{row.few:>9,.0f}{row.peak:>9,.0f}{over.offered:>11,.0f}{over.rate:>12,.0f}{row.share:>9.0%}"
        f"{refused:>7.0%}{quantile(over.accepted, 0.5):>9.1f}{quantile(over.accepted, 0.99):>9.1f}"
        f"{quantile(over.refused, 0.5):>9.1f}{quantile(over.refused, 0.99):>9.1f}{over.unsent:>11,}"
        f"{quantile(over.served, 0.99):>10.1f}{quantile(over.told, 0.99):>9.1f}"
        f"{quantile(row.before.accepted, 0.99):>12.2f}{quantile(row.after.accepted, 0.99):>8.2f}"
        f"{row.memory[0]:>12,.0f}{row.memory[1]:>8,.0f}{row.memory[2]:>8,.0f}"
    )


def show(rows: list[Row], args: argparse.Namespace) -> None:
    """Prints the table and what it was measured on."""
    asked = f"{args.factor:g} times what few connections get, for {args.seconds:g} s"
    print(f"\n{asked}; store {args.store}\n\n{HEAD}")
    for row in rows:
        print(line(row))
    packages = ", ".join(f"{name} {version(name)}" for name in ("cellstate", "torch", "ray", "uvicorn"))
    print(f"\n{os.cpu_count()} cores, {processor()}; the generator runs on the same cores")
    busy = ", ".join(f"{row.over.cpu_s / row.over.seconds:.2f}" for row in rows)
    print(f"cores it took: {busy}. Python {platform.python_version()}, {packages}")


if __name__ == "__main__":
    sys.exit(main())
