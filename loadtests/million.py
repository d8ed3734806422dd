"""Opens a million sessions on one machine, steps them at random, and proves that none was lost.

In this process, without HTTP: it is about memory. Every session is opened and stepped once, then random ones
are, some again and again; each request names its step, so a lost or a double one fails. In the end every
session must be where it should be, a sample of states must be the float64 reference's, and the memory taken
must be what docs/capacity.md says. Exit status 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loadtests.bundles import random_bundle
from model.bundle import Bundle
from model.reference import Reference
from service.engine.engine import Engine
from service.sessions.inputs import InputReader, Steps
from service.sessions.manager import SessionManager
from service.sessions.register import Limits
from service.sessions.replies import StepCommand
from service.sessions.store import MemoryStore
from service.wiring import GC_ALLOCATIONS

# What docs/capacity.md says; `python -m loadtests.footprint` measures them
SESSION_BYTES = 590  # an open session and what finds it, without its state and its window
KEPT_BYTES = 75  # a kept request, beside its numbers
MEMORY_TOLERANCE = 0.20
MEMORY_SLACK = 32 * 2**20  # what an allocator may hold for itself, whatever the sessions take
STATE_TOLERANCE = 1e-4  # h and c against float64
TOGETHER = 2048  # requests on their way at a time
ROWS = 4093  # different inputs; a prime, so that no session sees a short cycle
INPUTS = 8


@dataclass(slots=True)
class Facts:
    """What came out."""

    seconds: dict[str, float]
    places: dict[str, int]
    lost: int
    farthest: float  # from the float64 reference
    rss: int  # bytes, beyond what the process had with its engine and no session
    formula: int
    longest_pause: float  # of the garbage collector

    @property
    def failures(self) -> list[str]:
        found = []
        if self.lost:
            found.append(f"{self.lost:,} sessions are not where they should be")
        if not self.farthest <= STATE_TOLERANCE:
            found.append(f"a state is {self.farthest:.1e} from the reference, more than {STATE_TOLERANCE}")
        if abs(self.rss - self.formula) > max(MEMORY_TOLERANCE * self.formula, MEMORY_SLACK):
            found.append(f"memory is {self.rss / self.formula:.2f} of the formula's")
        return found


class Run:
    """One run: its sessions are numbers, their ids follow from them, and so do their inputs."""

    def __init__(self, bundle: Bundle, args: argparse.Namespace) -> None:
        self.args, self.bundle = args, bundle
        engine = Engine(
            bundle.network(), slots=args.slots, max_batch=256, quantum=8, device=torch.device("cpu")
        )
        engine.runner.warm(256)
        limits = Limits(args.sessions, args.host_sessions, 2 * TOGETHER, 86400.0, args.window, "none")
        self.manager = SessionManager(bundle, engine, MemoryStore(), limits)
        reader = InputReader(bundle.spec, 1)
        rows = np.random.default_rng(args.seed).standard_normal((ROWS, INPUTS)).tolist()
        self.inputs: list[Steps] = [reader.series([row]) for row in rows]
        self.next_step = array("I", bytes(4 * args.sessions))

    def steps(self, session: int, step: int) -> Steps:
        return self.inputs[(31 * session + 17 * step) % ROWS]

    def open(self) -> None:
        for n in progress(range(self.args.sessions), "opened"):
            self.manager.open(name(n))

    async def step(self, sessions: list[int], what: str) -> None:
        """One step of each; one that is named twice makes two."""
        chunks = range(0, len(sessions), TOGETHER)
        for first in progress(chunks, what):
            commands = []
            for n in sessions[first : first + TOGETHER]:
                step = self.next_step[n]
                commands.append(StepCommand(name(n), self.steps(n, step), step))
                self.next_step[n] += 1
            for command, reply in zip(
                commands, await asyncio.gather(*map(self.manager.step, commands)), strict=True
            ):
                if (reply.step, reply.replayed) != (command.step, False):
                    raise RuntimeError(f"{command.session_id}: {command.step} was answered as {reply.step}")

    def lost(self) -> int:
        """Sessions that are not at their step."""
        facts = self.manager.facts
        return sum(facts(name(n)).next_step != step for n, step in enumerate(self.next_step))

    async def farthest(self) -> float:
        """Largest difference of a sample's states from the float64 reference."""
        weights = {key: tensor.numpy() for key, tensor in self.bundle.weights.items()}
        found = 0.0
        for n in np.random.default_rng(1).integers(0, self.args.sessions, self.args.sample).tolist():
            reference = Reference(self.bundle.spec, weights)
            for step in range(self.next_step[n]):
                reference.step(self.steps(n, step).prepared[0])
            state = (await self.manager.snapshot(name(n))).state
            found = max(found, float(np.abs(state - np.stack((reference.h, reference.c))).max()))
        return found

    def formula(self) -> int:
        """Bytes that sessions take, as docs/capacity.md has it."""
        arch = self.bundle.spec.architecture
        state = 2 * arch.num_layers * arch.hidden_size * 4
        places = self.manager.places()
        rows = self.args.slots + 1 + places["host"] + places["store"]
        kept = sum(min(step, self.args.window) for step in self.next_step)
        numbers = 8 * (arch.input_size + arch.output_size)
        return int(rows * state + self.args.sessions * SESSION_BYTES + kept * (KEPT_BYTES + numbers))


async def run(args: argparse.Namespace, bundle: Bundle) -> tuple[Run, Facts]:
    """All of it; the numbers in the end."""
    it, seconds = Run(bundle, args), dict[str, float]()
    random = np.random.default_rng(args.seed + 1)
    everybody = random.permutation(args.sessions).tolist()
    # half of the random steps go to a tenth of the sessions, as some clients are busier than others
    busy = random.integers(0, max(1, args.sessions // 10), args.steps // 2)
    any_of_all = random.integers(0, args.sessions, args.steps - len(busy))
    chosen = random.permutation(np.concatenate((busy, any_of_all))).tolist()
    pauses = Pauses()
    before, began = rss(), time.perf_counter()
    it.open()
    seconds["opened"] = time.perf_counter() - began
    for what, sessions in (("first steps", everybody), ("random steps", chosen)):
        began = time.perf_counter()
        await it.step(sessions, what)
        seconds[what] = time.perf_counter() - began
    await asyncio.sleep(2.0 if it.manager.places()["host"] > args.host_sessions else 0)  # parking ends
    pauses.stop()
    taken, formula, places = rss() - before, it.formula(), it.manager.places()
    print("checking ...", file=sys.stderr)
    it.manager.check_integrity()
    facts = Facts(seconds, places, it.lost(), await it.farthest(), taken, formula, pauses.longest)
    it.manager.close()
    return it, facts


class Pauses:
    """How long the garbage collector, set as the service sets it, stops everything."""

    def __init__(self) -> None:
        self.longest = self._began = 0.0
        self._threshold = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS)
        gc.callbacks.append(self._see)

    def _see(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.longest = max(self.longest, time.perf_counter() - self._began)

    def stop(self) -> None:
        gc.callbacks.remove(self._see)
        gc.unfreeze()
        gc.set_threshold(*self._threshold)


def report(it: Run, facts: Facts) -> str:
    """The table."""
    args, engine, counters = it.args, it.manager.engine, it.manager.counters
    arch = it.bundle.spec.architecture
    lines = [
        f"{args.sessions:,} sessions of a {arch.num_layers}x{arch.hidden_size} LSTM, {args.slots:,} slots,"
        f" {args.host_sessions:,} on the host",
        "",
    ]
    lines += [f"{place:<12}{count:>12,} sessions" for place, count in facts.places.items()]
    counts = {"opened": args.sessions, "first steps": args.sessions, "random steps": args.steps}
    for what, count in counts.items():
        taken = facts.seconds[what]
        lines.append(f"{what:<12}{count:>12,} in {taken:.1f} s, {count / taken:,.0f} a second")
    lines += [
        f"{'spilled':<12}{engine.evicted:>12,} to the host, {engine.spilled_ahead:,} of them ahead of need",
        f"{'returned':<12}{engine.restored:>12,} from the host",
        f"{'parked':<12}{counters.parked:>12,} in the store",
        f"{'fetched':<12}{counters.fetched:>12,} from the store",
        "",
        f"memory       {facts.rss / 2**20:,.0f} MiB taken, {facts.formula / 2**20:,.0f} MiB by the formula,"
        f" ratio {facts.rss / facts.formula:.3f}",
        f"             {facts.rss / args.sessions:,.0f} bytes a session",
        f"pauses       {facts.longest_pause * 1000:,.0f} ms, the longest of the garbage collector",
        f"states       {args.sample} compared, at most {facts.farthest:.1e} from float64",
        f"lost         {facts.lost:,}",
    ]
    return "\n".join(lines)


def name(session: int) -> str:
    return f"sensor-{session:08d}"


def progress(items: range, what: str) -> Iterator[int]:
    """The items, with a line on stderr at every tenth of them."""
    tenth, began = max(1, len(items) // 10), time.perf_counter()
    for n, item in enumerate(items):
        yield item
        if (n + 1) % tenth == 0:
            taken = time.perf_counter() - began
            print(f"{what}: {(n + 1) / len(items):.0%} after {taken:.1f} s", file=sys.stderr)


def rss() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.million",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sessions", type=int, default=1_000_000, help="open sessions (default: 1000000)")
    parser.add_argument("--steps", type=int, default=500_000, help="random steps (default: 500000)")
    parser.add_argument("--slots", type=int, default=4096, help="states on the device (default: 4096)")
    parser.add_argument(
        "--host-sessions", type=int, default=500_000, help="states on the host (default: 500000)"
    )
    parser.add_argument("--window", type=int, default=256, help="replay window, steps (default: 256)")
    parser.add_argument("--sample", type=int, default=200, help="states compared (default: 200)")
    parser.add_argument("--layers", type=int, default=2, help="LSTM layers (default: 2)")
    parser.add_argument("--hidden", type=int, default=256, help="units of a layer (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and order (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as directory:
        bundle = random_bundle(Path(directory) / "b", args.layers, args.hidden, INPUTS, seed=args.seed)
    it, facts = asyncio.run(run(args, bundle))
    print(report(it, facts))
    for failure in facts.failures:
        print(f"FAILED: {failure}")
    return 1 if facts.failures else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
