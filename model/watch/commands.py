"""The commands of watching a series: `train watch`, `watch`, and `evaluate` of a watch bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import TrainingError

if TYPE_CHECKING:
    from model.bundle import Bundle

SHIPPED = Path(__file__).parent.parent / "bundles" / "watch"

Guard = Callable[[Callable[[argparse.Namespace], int]], Callable[[argparse.Namespace], int]]


def add_train(kinds: argparse._SubParsersAction[Any], guarded: Guard) -> None:
    """`train watch`."""
    from model.watch.plan import Plan  # without torch: cheap enough for --help

    train = kinds.add_parser("watch", help="on synthetic series: to watch any series for anomalies")
    train.add_argument("--name", required=True, help="the model's name, as it stands in its URL")
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="where the bundle goes (default: bundles/NAME)"
    )
    train.add_argument(
        "--data", type=Path, metavar="DIR", help="the Numenta Anomaly Benchmark, to be measured on"
    )
    train.add_argument("--description", default="", help="one sentence for the manifest")
    train.add_argument("--version", default="1", help="the model's version")
    for f in fields(Plan):
        what = f"{f.metadata['help']} (default: %(default)s)"
        train.add_argument("--" + f.name, type=type(f.default), default=f.default, help=what)
    train.set_defaults(func=guarded(_train))


def add_watch(commands: argparse._SubParsersAction[Any], guarded: Guard) -> None:
    """`watch`."""
    watch = commands.add_parser("watch", help="watch a column of a CSV file for anomalies")
    watch.add_argument("csv", type=Path, metavar="FILE", help="header line, then a row for each step")
    watch.add_argument("--column", default="value", help="column to watch (default: %(default)s)")
    watch.add_argument("--bundle", type=Path, default=SHIPPED, metavar="DIR", help="default: the shipped one")
    watch.add_argument("--all", action="store_true", help="print every row, not the alarms alone")
    watch.set_defaults(func=guarded(_watch))


def _watch(args: argparse.Namespace) -> int:
    from model import bundle as bundles
    from model.data import read_series
    from model.watch.detector import Detector
    from model.watch.rules import OUTPUTS

    values = read_series(args.csv, [args.column], allow_gaps=True).values[:, 0].tolist()
    detector, alarms = Detector(bundles.load(args.bundle)), 0
    print("row,value," + ",".join(("foreseen", "from", "to", *OUTPUTS[3:])))
    before = (float("nan"),) * 3
    for row, value in enumerate(values):
        reading = detector.step(value)
        alarms += reading.alarm
        if args.all or reading.alarm:
            numbers = (value, *before, reading.score, reading.likelihood)
            print(f"{row}," + ",".join(f"{number:.6g}" for number in numbers))
        before = (reading.expected, reading.low, reading.high)
    print(f"{alarms} alarms in {len(values)} rows", file=sys.stderr)
    return 0


def _train(args: argparse.Namespace) -> int:
    import torch

    from model import bundle as bundles
    from model.watch.board import evaluate, lines
    from model.watch.learn import learn, spec_of
    from model.watch.nab import read
    from model.watch.plan import Plan
    from model.watch.rules import Rules

    bundles.check_name(args.name)
    try:
        plan = Plan(**{f.name: getattr(args, f.name) for f in fields(Plan)})
    except ValueError as error:
        raise TrainingError(str(error)) from error
    out = args.out or Path("bundles") / args.name
    learnt = learn(plan, partial(print, flush=True))
    training = {
        "command": _command(args, plan),
        "data": {"file": "synthetic series alone"},
        "options": asdict(plan),
        "best_validation_loss": learnt.loss,
        "cpu_seconds": round(learnt.seconds),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    spec = spec_of(plan.hidden, plan.layers, Rules())
    bundle = bundles.Bundle(args.name, args.version, spec, learnt.weights, args.description, training)
    bundle = bundles.save(bundle, out)
    if args.data is not None:
        figures = evaluate(bundle, args.data)
        bundle = bundles.save(replace(bundle, quality=figures), out)
        for line in lines(bundle.name, figures, read(args.data).published):
            print(line)
    print(f"loss {learnt.loss:.4f} nats a step on series of another seed; saved {out}")
    return 0


def _command(args: argparse.Namespace, plan: Any) -> str:
    """The command that makes the bundle again."""
    words = ["cellstate", "train", "watch", "--name", args.name]
    if args.description:
        words += ["--description", args.description]
    for f in fields(plan):
        if getattr(plan, f.name) != f.default:
            words += ["--" + f.name, str(getattr(plan, f.name))]
    return shlex.join(words)


def show_benchmark(bundle: Bundle, directory: Path) -> dict[str, Any]:
    """All figures of the benchmark again, for a watch bundle, printed beside the published ones."""
    from model.watch.board import evaluate, lines
    from model.watch.nab import read

    measured = evaluate(bundle, directory)
    print(f"{bundle.name} {bundle.version} on the Numenta Anomaly Benchmark, {measured['streams']} streams")
    for line in lines(bundle.name, measured, read(directory).published):
        print(line)
    print()
    return measured
