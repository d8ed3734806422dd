"""Whether what is served remembers: the test sequences of long-memory bundles, one step a message.

Each sequence is a session of its own, stepped over a WebSocket from its first step to its last, many at a
time. Its outputs are put beside those that the bundle's network computes here in float32, and judged by the
task's criterion.

    python -m loadtests.memory bundles/adding-1000 bundles/copying-1000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loadtests import hosts
from loadtests.started import NoService, started
from model.bundle import Bundle, load
from model.errors import ModelError
from model.tasks.measuring import Trial, trial_of
from model.tasks.task import Batch
from service.client import AsyncClient, ClientError

AHEAD = 64  # messages of a session on their way at once
#: Largest difference from float32, as a share of the largest output: what the arithmetic alone makes. The
#: narrower weights of bf16 are another network; there the judgement counts.
TOLERANCE = {"fp32": 1e-3}


@dataclass(frozen=True)
class Row:
    """What was found of one bundle: shares of right answers, served and by the network itself here."""

    name: str
    precision: str
    sequences: int
    steps: int
    seconds: float
    difference: float
    rounding: float  # of the network's own outputs, float32 beside float64
    served: float
    own: float
    needed: float
    unlike: int  # sequences of which not as much is right, served, as the network itself has right here

    @property
    def good(self) -> bool:
        """Whether the served answers solve the task, and are the network's own."""
        return self.served >= self.needed and self.difference <= TOLERANCE.get(self.precision, float("inf"))

    def line(self) -> str:
        return (
            f"{self.name:22}{self.precision:>10}{self.sequences:>10}{self.steps:>11,}"
            f"{self.steps / self.seconds:>9,.0f}{self.difference:>12.1e}"
            f"{self.rounding:>10.1e}{self.served:>10.2%}{self.own:>10.2%}{self.unlike:>8}"
            f"  {'ok' if self.good else 'NOT OK'}"
        )


HEAD = (
    f"{'model':22}{'precision':>10}{'sequences':>10}{'messages':>11}{'a second':>9}{'difference':>12}"
    f"{'rounding':>10}{'served':>10}{'own':>10}{'unlike':>8}"
)


def trials(paths: Sequence[Path]) -> list[tuple[Bundle, Trial]]:
    """The bundles, each with its trial. Raises ModelError, ValueError."""
    found = []
    for path in paths:
        bundle = load(path)
        trial = trial_of(bundle)
        if trial is None:
            raise ValueError(f"{path}: was not trained on a task")
        found.append((bundle, trial))
    if len({bundle.name for bundle, _ in found}) < len(found):
        raise ValueError("two bundles have the same name")
    return found


async def stream(client: AsyncClient, model: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """One sequence [T, I] through a session of its own, one step a message: the outputs [T, O]."""
    session = await client.model(model).open(durability="none")
    outputs: list[list[float]] = []
    async with session.stream(ahead=AHEAD) as socket:
        for row in rows.tolist():
            await socket.send([row])
            if socket.outstanding >= AHEAD:
                outputs += (await socket.receive()).outputs or []
        while socket.outstanding:
            outputs += (await socket.receive()).outputs or []
    await session.close()
    return np.array(outputs, np.float32)


async def serve(url: str, model: str, batch: Batch, parallel: int) -> list[NDArray[np.float32]]:
    """Every sequence of a batch, `parallel` at a time: its outputs [length, O]."""
    gate = asyncio.Semaphore(parallel)

    async def one(client: AsyncClient, row: int) -> NDArray[np.float32]:
        async with gate:
            return await stream(client, model, batch.x[: int(batch.lengths[row]), row].numpy())

    async with AsyncClient(url, trust_env=False) as client:
        return await asyncio.gather(*(one(client, row) for row in range(len(batch))))


def compare(url: str, bundle: Bundle, trial: Trial, precision: str, sequences: int, parallel: int) -> Row:
    """Streams a bundle's test sequences to the service at `url`, and judges what comes back."""
    task, network = trial.task, bundle.network()
    exact = bundle.network().double()
    messages, largest, difference, rounding, seconds = 0, 0.0, 0.0, 0.0, 0.0
    served_wrong, own_wrong = [], []
    for batch in trial.batches(sequences):
        with torch.no_grad():
            own = network(batch.x)[0][:, :, 0]
            rounding = max(rounding, float((own - exact(batch.x.double())[0][:, :, 0]).abs().max()))
        began = time.monotonic()
        outputs = asyncio.run(serve(url, bundle.name, batch, parallel))
        seconds += time.monotonic() - began
        served = own.clone()
        for row, found in enumerate(outputs):
            served[: len(found), row] = torch.from_numpy(found)
            messages += len(found)
        difference = max(difference, float((served - own).abs().max()))
        largest = max(largest, float(own.abs().max()))
        served_wrong += task.wrong(served[batch.step, batch.row], batch).tolist()
        own_wrong += task.wrong(own[batch.step, batch.row], batch).tolist()
    count = len(served_wrong)
    differences = (difference / max(1.0, largest), rounding / max(1.0, largest))
    shares = (1 - sum(served_wrong) / count, 1 - sum(own_wrong) / count)
    needed = 1 - task.criterion.tested_wrong
    unlike = sum(a != b for a, b in zip(served_wrong, own_wrong, strict=True))
    return Row(bundle.name, precision, count, messages, seconds, *differences, *shares, needed, unlike)


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> list[Row]:
    """A row for each bundle and precision. Raises NoService, ModelError, ValueError, ClientError."""
    found = trials(args.bundles)
    rows = []

    def all_of(url: str, precision: str) -> None:
        for bundle, trial in found:
            rows.append(compare(url, bundle, trial, precision, args.sequences, args.parallel))
            say(rows[-1].line())

    say(HEAD)
    if args.url:
        all_of(hosts.check(args.url), args.precision[0])
        return rows
    for precision in args.precision:
        models = os.pathsep.join(str(path.absolute()) for path in args.bundles)
        settings = {"models": models, "precision": precision, "store": "memory:"}
        with started(settings, local=True, say=lambda _: None) as (url, _, _):
            all_of(url, precision)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="of `cellstate train task`")
    parser.add_argument("--url", help="a service that runs and has the bundles (default: one is started)")
    parser.add_argument(
        "--precision",
        action="append",
        choices=("fp32", "bf16", "int8"),
        help="may be repeated; with --url: what it runs in (default: fp32 and bf16)",
    )
    parser.add_argument("--sequences", type=int, default=64, help="of each bundle (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=32, help="sessions at a time (default: %(default)s)")
    args = parser.parse_args(argv)
    args.precision = args.precision or ["fp32", "bf16"]
    try:
        rows = measure(args, lambda line: print(line, flush=True))
    except (ModelError, NoService, ClientError, ValueError, hosts.Foreign) as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
