"""`cellstate bench engine`: the engine's speed on this machine, beside what else could step the same LSTM."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.bench.options import Options, Refused, Wrong, add_flags, read

FAILED, UNUSABLE = 1, 2  # exit codes: a contestant computes something else; an option can't be used

Row = dict[str, Any]
Measure = Callable[[Options, Callable[[str], None]], Iterator[Row]]
Show = Callable[[list[Row], Options], str]

DESCRIPTION = """\
Times one step of B sessions through the engine's runner, beside torch.nn.LSTM, ONNX Runtime (if onnxruntime
and onnx are installed) and the bare matrix products, which are the limit. All of them in turns, each checked
first to compute the same state.
"""


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `bench`, with its one subject so far."""
    bench = commands.add_parser("bench", help="measure the speed of this machine")
    subjects = bench.add_subparsers(title="what", metavar="WHAT", required=True)
    engine = subjects.add_parser(
        "engine",
        help="the LSTM's step, alone in this process",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(engine)
    engine.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the tables, writes the JSON. With `--json -` the tables go to stderr."""
    try:
        options = read(args)
        report = _measure(options, sys.stderr if options.json == "-" else sys.stdout)
    except (Refused, Wrong) as error:
        _progress("")
        print(f"cellstate: {error}", file=sys.stderr)
        return UNUSABLE if isinstance(error, Refused) else FAILED
    text = json.dumps(report, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    elif options.json:
        Path(options.json).write_text(text)
    return 0


def _measure(options: Options, out: Any) -> dict[str, Any]:
    from service.bench import chunks, machine, step, tables, ticks

    report: dict[str, Any] = {"machine": machine.facts(options.device), "options": asdict(options)}
    wanted: list[tuple[str, Measure, Show]] = [("step", step.measure, tables.step_table)]
    if options.chunks:
        wanted.append(("chunks", chunks.measure, tables.chunk_table))
    if options.profile:
        wanted.append(("ticks", ticks.measure, tables.tick_table))
    began, used = time.perf_counter(), time.process_time()
    for name, measure, show in wanted:
        report[name] = list(measure(options, _progress))
        _progress("")
        print(f"{show(report[name], options)}\n", file=out, flush=True)
    share = (time.process_time() - used) / (time.perf_counter() - began)
    report["machine"] |= {"load_average_after": machine.load(), "core_share": round(share, 3)}
    print(tables.machine_lines(report["machine"]), file=out)
    return report


def _progress(text: str) -> None:
    """One line that replaces the one before; nothing where nobody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
