"""Streams a million steps through one session, as the engine serves it, and shows that nothing drifts.

The rows that a bundle was measured on are repeated until there are enough. A state that grows, or a quality
that falls, would show from pass to pass; the first pass alone begins with an empty state. In this process,
without HTTP: it is about the arithmetic. Exit status 1 if a number is not finite, if the state grows, or if a
pass is worse than the second by more than --tolerance.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import bundle as bundles
from model.bundle import Bundle
from model.data import Text
from model.errors import ModelError
from model.evaluate import subject
from model.network import Scaler
from service.engine.engine import Engine
from service.engine.jobs import Job, Phase, Prepared, StateHandle
from service.engine.rollouts import Forecast
from service.engine.runners import PRECISIONS

CHUNK = 480  # steps a request
SHOWN = 10  # passes in the table, the first and the last among them
GROWTH = 1.01  # most that the state's largest number may gain after the second pass, as a factor


@dataclass(frozen=True, slots=True)
class Pass:
    """One time over the rows. next_step: mean squared error of the next step, or nats a character; ahead:
    mean squared error of forecasts as far as the model sees, one a chunk (series); largest: magnitude in h or
    c at the ends of chunks."""

    next_step: float
    ahead: float
    largest: float


@dataclass(frozen=True, slots=True)
class Rows:
    """What is repeated: prepared steps, and what the model should say after each: outputs in user units, in
    deviations of std, or tokens."""

    prepared: Prepared
    truth: NDArray[np.floating] | NDArray[np.int64]
    std: NDArray[np.float64] | None

    def after(self, first: int, count: int) -> NDArray[np.generic]:
        """What came after the steps from `first` on; behind the last row is the first."""
        return self.truth[np.arange(first + 1, first + 1 + count) % len(self.truth)]


def rows_of(bundle: Bundle, path: Path) -> Rows:
    """The measured part of a bundle's data file. Raises ModelError."""
    on = subject(bundle, path)
    part = on.parts.measured[1]
    if isinstance(on.data, Text):
        tokens = on.data.tokens(bundle.spec.vocabulary)[part.start : part.stop]
        return Rows(tokens, tokens, None)
    scaler, series = Scaler(bundle.spec), on.data
    rows = slice(part.start, part.stop)
    prepared = scaler.normalise(series.sent(bundle.spec)[rows]).astype(np.float32)
    return Rows(prepared, series.columns([s.name for s in bundle.spec.outputs])[rows], scaler.output_std)


def passes(bundle: Bundle, rows: Rows, steps: int, precision: str) -> list[Pass]:
    """Streams at least so many steps through one session, in whole passes."""
    engine = Engine(
        bundle.network(),
        slots=4,
        max_batch=1,
        quantum=CHUNK,
        device=torch.device("cpu"),
        precision=precision,
        threads=torch.get_num_threads(),
    )
    state = StateHandle()
    return [_pass(bundle, engine, state, rows) for _ in range(-(-steps // len(rows.prepared)))]


def _pass(bundle: Bundle, engine: Engine, state: StateHandle, rows: Rows) -> Pass:
    error, ahead, forecasts, largest = 0.0, 0.0, 0, 0.0
    leads = bundle.spec.architecture.leads
    for first in range(0, len(rows.prepared), CHUNK):
        chunk = rows.prepared[first : first + CHUNK]
        rollout = None if rows.std is None else Forecast(bundle.spec, leads)
        job = Job(chunk, state, rollout=rollout)
        engine.submit(job)
        while job.phase in (Phase.WAITING, Phase.RUNNING):
            engine.tick()
        if job.phase is not Phase.DONE:
            raise RuntimeError(f"the engine could not run the steps: {job.error}")
        engine.commit(job)
        error += _missed(job.result, rows.after(first, len(chunk)), rows.std)
        if rollout is not None:
            ahead += _missed(rollout.result, rows.after(first + len(chunk) - 1, leads), rows.std) / leads
            forecasts += 1
        largest = max(largest, float(np.abs(engine.read(state)).max()))
    return Pass(error / len(rows.prepared), ahead / forecasts if forecasts else float("nan"), largest)


def _missed(said: NDArray[np.floating], came: NDArray[np.generic], std: NDArray[np.float64] | None) -> float:
    """The sum over steps of their mean squared errors, or of nats."""
    if std is None:
        return -float(said[np.arange(len(said)), came.astype(np.int64)].sum(dtype=np.float64))
    return float(np.square((said - came.astype(np.float64)) / std).mean(1).sum())


def table(seen: list[Pass], rows: int) -> list[str]:
    """Some of the passes, the first and the last among them."""
    text = bool(np.isnan(seen[0].ahead))
    lines = [f"{'pass':>6}{'steps':>12}{'nats' if text else 'next step':>12}{'ahead':>10}{'largest':>10}"]
    for n in sorted({round(x) for x in np.geomspace(1, len(seen), SHOWN)}):
        each = seen[n - 1]
        ahead = "-" if text else f"{each.ahead:.5f}"
        lines.append(f"{n:6}{n * rows:12,}{each.next_step:12.5f}{ahead:>10}{each.largest:10.4f}")
    return lines


def faults(seen: list[Pass], tolerance: float) -> list[str]:
    """What is not as it should be."""
    found = []
    for n, each in enumerate(seen, 1):
        if not np.isfinite([each.next_step, each.largest]).all():
            found.append(f"pass {n}: not finite: {each}")
    second = seen[min(1, len(seen) - 1)]
    for n, each in enumerate(seen[2:], 3):
        if each.largest > GROWTH * second.largest:
            found.append(f"pass {n}: the state has grown to {each.largest:.4f} from {second.largest:.4f}")
        if each.next_step > (1 + tolerance) * second.next_step:
            found.append(f"pass {n}: {each.next_step:.5f}, the second had {second.next_step:.5f}")
        if each.ahead > (1 + tolerance) * second.ahead:
            found.append(f"pass {n}: ahead {each.ahead:.5f}, the second had {second.ahead:.5f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.million_steps", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="the file it was trained on")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--precision", default="fp32,bf16", help=f"some of {','.join(PRECISIONS)}")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="as a share of the second pass")
    args = parser.parse_args()
    try:
        bundle = bundles.load(args.bundle)
        rows = rows_of(bundle, args.data)
    except ModelError as error:
        parser.error(str(error))
    wrong = []
    for precision in args.precision.split(","):
        began = time.monotonic()
        seen = passes(bundle, rows, args.steps, precision)
        print(
            f"{bundle.name} {bundle.version}, {precision}: {len(seen)} passes of {len(rows.prepared):,} steps"
        )
        print("\n".join(table(seen, len(rows.prepared))))
        print(f"{time.monotonic() - began:.0f} s\n", flush=True)
        wrong += [f"{precision}, {each}" for each in faults(seen, args.tolerance)]
    print("\n".join(wrong) or "every pass after the first is as good as the second")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
