"""The commands of the model's side: train, watch, import, evaluate, inspect, explain. Heavy imports wait."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import inspection, task_commands
from model.errors import DataError, ModelError
from model.explain import command as explain_command

if TYPE_CHECKING:
    from model.bundle import Bundle
    from model.train.jobs import Job
    from model.train.options import Options

FAILED, UNUSABLE = 1, 2  # exit codes: the figures differ; the input can't be used


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the commands. Each sets `func`: parsed arguments to exit code."""
    from model import import_command
    from model.watch.commands import add_watch

    _add_train(subparsers)
    add_watch(subparsers, guarded)
    import_command.register(subparsers).set_defaults(func=guarded(import_command.run))
    command = subparsers.add_parser("evaluate", help="measure a bundle's quality figures again")
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    command.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="the file it was trained on; for a watch model the benchmark's directory; none for a long-memory"
        " task, whose sequences are drawn again",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        help="largest difference, as a share of the manifest's figure (default: 0.001)",
    )
    command.add_argument(
        "--streams", type=int, default=1, help="text: pieces that run side by side; faster, less exact"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.set_defaults(func=guarded(_evaluate))
    inspection.register(subparsers)
    explain_command.register(subparsers)


def main(argv: Sequence[str] | None = None) -> int:
    """These commands alone, without the service."""
    parser = argparse.ArgumentParser(prog="cellstate")
    register(parser.add_subparsers(required=True, metavar="COMMAND"))
    args = parser.parse_args(argv)
    code: int = args.func(args)
    return code


def guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A ModelError becomes one line and an exit code: a wrong file is no reason for a traceback."""

    def guard(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except ModelError as error:
            print(f"cellstate: {error}", file=sys.stderr)
            return UNUSABLE
        except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return guard


def _add_train(subparsers: argparse._SubParsersAction[Any]) -> None:
    from model.watch.commands import add_train as add_watch_training

    train = subparsers.add_parser("train", help="train a model and save it as a bundle")
    kinds = train.add_subparsers(required=True, metavar="KIND")
    series = kinds.add_parser("series", help="on columns of a CSV file: the next values of each")
    add = Recorder(series)
    add("--csv", type=Path, required=True, metavar="FILE", help="header line, then evenly spaced rows")
    add(
        "--inputs", type=_names, default=[], metavar="A,B", help="columns to read (default: all but the time)"
    )
    add("--outputs", type=_names, default=[], metavar="A,B", help="columns to predict (default: the inputs)")
    add(
        "--unit", action="append", default=[], metavar="COLUMN=UNIT", help="unit of a column; may be repeated"
    )
    add("--time", metavar="COLUMN", help="column of timestamps (default: the first, if it is named so)")
    add("--allow-gaps", action="store_true", help="accept rows that are not evenly spaced")
    add("--leads", type=int, default=1, help="rows ahead that are predicted at once")
    add("--residual", action="store_true", help="predict the difference from the present value")
    add("--season", type=int, default=0, help="rows in a period; adds the seasonal forecast to the figures")
    add("--rank", type=int, default=0, help="functions of the lead in the head; 0: weights for each lead")
    add(
        "--memory",
        action="store_true",
        help="units that remember means and waves of each input from the start",
    )
    add(
        "--ridge",
        type=float,
        default=3e-3,
        help="with --memory: penalty of the regression the head starts as",
    )
    add("--quantiles", type=_levels, default=[], metavar="P,Q", help="levels told beside the prediction")
    add(
        "--calendar",
        type=_names,
        default=[],
        metavar="A,B",
        help="of the time: some of day, week, year, as inputs",
    )
    _add_common(add, hidden=128, layers=1, parts=[0.7, 0.1, 0.2])
    series.set_defaults(func=guarded(_train_series), recorder=add)
    text = kinds.add_parser("text", help="on a text file: the next character")
    add = Recorder(text)
    add("--file", type=Path, required=True, metavar="FILE", help="UTF-8 text")
    add("--embedding", type=int, default=64, help="features of a character")
    _add_common(add, hidden=256, layers=2, parts=[0.9, 0.1])
    text.set_defaults(func=guarded(_train_text), recorder=add)
    add_watch_training(kinds, guarded)
    task_commands.add_task(kinds, Recorder, guarded)


def _add_common(add: Recorder, hidden: int, layers: int, parts: list[float]) -> None:
    from model.train.options import Options  # without torch: cheap enough for --help

    add("--name", required=True, help="the model's name, as it stands in its URL")
    add("--out", type=Path, metavar="DIR", help="where the bundle goes (default: bundles/NAME)")
    add("--run", type=Path, metavar="DIR", help="for checkpoints and the curve (default: runs/NAME)")
    add("--resume", action="store_true", help="go on from the checkpoint in --run")
    add("--description", default="", help="one sentence for the manifest")
    add("--version", default="1", help="the model's version")
    add(
        "--split",
        type=_parts,
        default=parts,
        metavar="A,B[,C]",
        help="training, validation, test: rows, or shares (default: %(default)s)",
    )
    add("--hidden", type=int, default=hidden, help="hidden size (default: %(default)s)")
    add("--layers", type=int, default=layers, help="LSTM layers (default: %(default)s)")
    dtypes = ("float32", "float16", "bfloat16", "int8")
    add("--dtype", choices=dtypes, default="float32", help="of the stored weights")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    for f in fields(Options):
        flag = "--" + f.name.replace("_", "-")
        kind: Any = type(f.default)
        help = f"{f.metadata['help']} (default: %(default)s)"
        add(flag, type=kind, default=f.default, choices=f.metadata.get("choices"), help=help)


class Recorder:
    """Adds flags and remembers them, so that a run can be written down as the command that makes it again."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser
        self.actions: list[argparse.Action] = []

    def __call__(self, flag: str, **options: Any) -> None:
        self.actions.append(self.parser.add_argument(flag, **options))

    def command(self, kind: str, args: argparse.Namespace) -> str:
        """Every flag that is not at its default. Of files only the name: a manifest travels."""
        words = ["cellstate", "train", *kind.split()]
        for action in self.actions:
            value = getattr(args, action.dest)
            if value == action.default or action.dest in ("resume", "out", "run"):
                continue
            flag = action.option_strings[0]
            if value is True:
                words.append(flag)
            elif isinstance(action, argparse._AppendAction):
                words += [word for entry in value for word in (flag, entry)]
            elif isinstance(value, list):
                words += [flag, ",".join(f"{v:g}" if isinstance(v, float) else v for v in value)]
            else:
                words += [flag, value.name if isinstance(value, Path) else str(value)]
        return shlex.join(words)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _parts(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _levels(text: str) -> list[float]:
    levels = [float(level) for level in text.split(",")]
    if any(not 0 < level < 1 for level in levels) or levels != sorted(set(levels)):
        raise argparse.ArgumentTypeError(f"levels rise and are between 0 and 1, not {text}")
    return levels


def _options(args: argparse.Namespace) -> Options:
    from model.train.options import Options

    return Options(**{f.name: getattr(args, f.name) for f in fields(Options)})


def _job(kind: str, args: argparse.Namespace) -> Job:
    from model.bundle import check_name
    from model.train.jobs import Job

    check_name(args.name)
    return Job(
        name=args.name,
        out=args.out or Path("bundles") / args.name,
        run=args.run or Path("runs") / args.name,
        options=_options(args),
        parts=args.split,
        hidden_size=args.hidden,
        num_layers=args.layers,
        version=args.version,
        description=args.description,
        dtype=args.dtype,
        device=args.device,
        resume=args.resume,
        command=args.recorder.command(kind, args),
    )


def _train_series(args: argparse.Namespace) -> int:
    from model.train.jobs import SeriesColumns, train_series

    units = {}
    for entry in args.unit:
        column, equals, unit = entry.partition("=")
        if not equals:
            raise DataError(f"--unit must be COLUMN=UNIT, not {entry!r}")
        units[column] = unit
    columns = SeriesColumns(
        inputs=args.inputs,
        outputs=args.outputs,
        units=units,
        time=args.time,
        allow_gaps=args.allow_gaps,
        leads=args.leads,
        residual=args.residual,
        season=args.season,
        rank=args.rank,
        memory=args.memory,
        ridge=args.ridge,
        quantiles=tuple(args.quantiles),
        calendar=tuple(args.calendar),
    )
    job = _job("series", args)
    show_quality(train_series(args.csv, columns, job))
    print(f"saved {job.out}")
    return 0


def _train_text(args: argparse.Namespace) -> int:
    from model.train.jobs import train_text

    job = _job("text", args)
    show_quality(train_text(args.file, args.embedding, job))
    print(f"saved {job.out}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from model import bundle as bundles
    from model.evaluate import TOLERANCE, compare, needed

    bundle = bundles.load(args.bundle)
    if bundle.spec.rules is not None:
        from model.watch.commands import show_benchmark

        measured = show_benchmark(bundle, needed(args.data))
    else:
        measured = _show_measured(bundle, args)
    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    differences = compare(bundle.quality, measured, tolerance)
    for d in differences:
        print(f"{d.name}: measured {d.measured}, the manifest says {d.manifest}", file=sys.stderr)
    if not differences:
        print(f"every figure is the manifest's, within {tolerance:g} of it")
    return FAILED if differences else 0


def _show_measured(bundle: Bundle, args: argparse.Namespace) -> dict[str, Any]:
    """Measures a bundle, and prints its figures beside the manifest's."""
    from model.evaluate import evaluate, figures
    from model.train.jobs import pick_device

    measured, source = evaluate(bundle, args.data, pick_device(args.device), args.streams)
    told = dict(figures(bundle.quality))
    print(f"{bundle.name} {bundle.version} on the {measured['part']} part of {source.file}")
    print(f"{'':34}{'measured':>12}{'manifest':>12}")
    for name, value in figures(measured):
        print(f"{name:34}{value:12.5f}{told.get(name, float('nan')):12.5f}")
    if source.sha256 != (bundle.training.get("data") or {}).get("sha256"):
        print("note: this is not the file the manifest's figures were measured on", file=sys.stderr)
    return measured


def show_quality(bundle: Bundle) -> None:
    from model.evaluate import figures

    quality = bundle.quality
    if not quality:
        print("\nquality      not measured")
        return
    what = f"rows {quality['rows']}" if "rows" in quality else f"{quality.get('sequences')} sequences"
    print(f"\nquality on the {quality.get('part')} part, {what}")
    for name, value in figures(quality):
        print(f"  {name:32} {value:10.5f}")


if __name__ == "__main__":
    sys.exit(main())
