"""What a tick costs around the model's arithmetic: the whole engine with jobs of one step each.

The time inside `runner.run` is taken with a clock around it, and subtracted. A runner that keeps an attribute
`kernel_seconds`, the seconds it has spent in its kernels so far, gets a second, finer subtraction. Jobs are
made before the clock starts: they are the session manager's work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from service.bench.options import Options
from service.bench.rounds import quiet
from service.bench.subject import make_network
from service.engine.engine import Engine
from service.engine.jobs import Job, StateHandle
from service.engine.runner import Batch, Outcome

Row = dict[str, Any]
BATCHES = 1, 256
SLOTS, QUANTUM = 1024, 8
LEAST = 20  # ticks, whatever the time


def measure(options: Options, progress: Callable[[str], None]) -> Iterator[Row]:
    """A row for each size, precision and batch."""
    for hidden in options.hidden:
        for precision in options.precision:
            with quiet(options.threads):
                for batch in BATCHES:
                    progress(f"ticks, H={hidden}, {precision}, B={batch}")
                    yield _row(hidden, precision, batch, options)


def _row(hidden: int, precision: str, batch: int, options: Options) -> Row:
    engine = Engine(
        make_network(hidden, options.layers, options.inputs),
        slots=SLOTS,
        max_batch=max(BATCHES),
        quantum=QUANTUM,
        device=torch.device(options.device),
        precision=precision,
        threads=options.threads,
    )
    ticks = Ticks(engine, batch, options.inputs)
    ticks.run(LEAST)
    ticks.forget()
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until or len(ticks.whole) < LEAST:
        ticks.run(LEAST)
    whole, outside = (1e6 * statistics.median(times) for times in (ticks.whole, ticks.outside))
    kernels = 1e6 * statistics.median(ticks.outside_kernels) if ticks.outside_kernels else None
    return {
        "hidden": hidden,
        "layers": options.layers,
        "inputs": options.inputs,
        "precision": precision,
        "batch": batch,
        "threads": options.threads,
        "ticks": len(ticks.whole),
        "tick_us": whole,
        "outside_run_us": outside,
        "outside_run_us_per_session": outside / batch,
        "outside_kernels_us": kernels,
        "outside_kernels_us_per_session": None if kernels is None else kernels / batch,
    }


class Ticks:
    """An engine with B sessions, each of which takes a step in every tick. Seconds of each tick: the whole of
    submit, tick and commit; what of it was outside `runner.run`; and outside the runner's kernels."""

    def __init__(self, engine: Engine, batch: int, inputs: int) -> None:
        self.engine = engine
        self.states = [StateHandle() for _ in range(batch)]
        self.x = np.random.default_rng(batch).standard_normal((batch, 1, inputs), np.float32)
        self.in_run = 0.0
        self.forget()
        run = engine.runner.run

        def timed(batch: Batch) -> Outcome:
            began = time.perf_counter()
            outcome = run(batch)
            self.in_run += time.perf_counter() - began
            return outcome

        engine.runner.run = timed  # type: ignore[method-assign]

    def forget(self) -> None:
        self.whole: list[float] = []
        self.outside: list[float] = []
        self.outside_kernels: list[float] = []

    def run(self, count: int) -> None:
        engine = self.engine
        for _ in range(count):
            jobs = [Job(x, state) for x, state in zip(self.x, self.states, strict=True)]
            in_run, kernels = self.in_run, self._kernels()
            began = time.perf_counter()
            for job in jobs:
                engine.submit(job)
            for job in engine.tick():
                job.result  # noqa: B018  whoever asked for it reads it
                engine.commit(job)
            seconds = time.perf_counter() - began
            self.whole.append(seconds)
            self.outside.append(seconds - (self.in_run - in_run))
            if kernels is not None:
                self.outside_kernels.append(seconds - ((self._kernels() or 0.0) - kernels))

    def _kernels(self) -> float | None:
        return getattr(self.engine.runner, "kernel_seconds", None)
