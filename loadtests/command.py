"""python -m loadtests: load for a Cellstate service on this machine, in an open loop.

Every scenario writes a JSON file and an HTML page that shows it. Exit code: 0 when all is well; 1 when
requests failed or a check did; 2 when it can't be run as asked; 3 when the sender was the bottleneck, so that
the figures are not the service's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import httpx

from loadtests import limits
from loadtests.generator.arrivals import TraceError
from loadtests.generator.senders import SenderFailed
from loadtests.hosts import Foreign, check
from loadtests.progress import Progress
from loadtests.results import SCHEMA
from loadtests.running import Options, run
from loadtests.scenarios.standing import ALL, STANDING, Scenario
from loadtests.started import NoService
from loadtests.wrk import WrkFailed
from service.settings import shown

OUT = "load-results"


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)  # what was started is stopped then too
    progress = Progress()
    try:
        if args.scenario == "report":
            return _report(args.results, args.output)
        _check(args)
        if args.scenario != "all":
            return _one(STANDING[args.scenario], args, progress)
        if not shutil.which("wrk"):
            progress.say("wrk is not installed (Debian: apt-get install wrk): `door` is left out")
        names = [name for name in ALL if name != "door" or shutil.which("wrk")]
        names = [*names, *(["soak"] if args.soak_minutes else [])]
        return _all(names, args, progress)
    except (Foreign, limits.TooMuch, NoService, TraceError, ValueError) as error:
        progress.end()
        print(f"loadtests: {error}", file=sys.stderr)
        return 2
    except (SenderFailed, WrkFailed, httpx.HTTPError, OSError) as error:
        progress.end()
        print(f"loadtests: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.end()
        return 130


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m loadtests", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="scenario", metavar="SCENARIO", required=True)
    for scenario in STANDING.values():
        one = commands.add_parser(scenario.name, help=scenario.about, description=scenario.about)
        _add(one, scenario)
    every = commands.add_parser(
        "all", help=f"{', '.join(ALL)}, one after the other, each with a service of its own"
    )
    _add(every, None)
    every.add_argument("--soak-minutes", type=float, default=0, help="and a soak that long (default: none)")
    report = commands.add_parser("report", help="an HTML page of one run or several, side by side")
    report.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    return top


def _add(one: argparse.ArgumentParser, scenario: Scenario | None) -> None:
    default = dataclasses.asdict(scenario) if scenario else {}

    def shown_default(name: str, otherwise: object) -> str:
        return f"(default: {default.get(name, otherwise)})"

    own = "each its own"
    rate_default = (
        "half of what a closed loop reaches" if default.get("rate") == 0 else default.get("rate", own)
    )
    one.add_argument("--url", help="the service, on this machine; without it one is started, and stopped")
    if scenario:
        one.add_argument("--rate", type=float, help=f"{scenario.unit} a second (default: {rate_default})")
        one.add_argument("--sessions", type=int, help=f"open sessions {shown_default('sessions', own)}")
        one.add_argument("--steps", type=int, help=f"of a request {shown_default('steps', own)}")
        one.add_argument("--bulk", type=int, default=256, help="sessions of a bulk request (default: 256)")
        one.add_argument("--life", type=int, default=8, help="requests of a session of churn (default: 8)")
        one.add_argument("--pause-ms", type=float, default=20.0, help="between two of them (default: 20)")
        one.add_argument(
            "--arrivals", default="poisson", help="poisson, uniform, or a recorded file (default: poisson)"
        )
        one.add_argument("--record", default="", metavar="FILE", help="write the arrivals that were answered")
    one.add_argument("--seconds", type=float, help=f"of each phase {shown_default('seconds', 20.0)}")
    one.add_argument("--senders", type=int, default=2, help="processes that send (default: 2)")
    one.add_argument("--seed", type=int, default=0, help="of arrivals and sessions (default: 0)")
    one.add_argument("--direct", action="store_true", help="send to the replica's own port, past the door")
    one.add_argument("--model", default="", help="a series model (default: the first)")
    one.add_argument("--key", default="", help="sent as a bearer token")
    one.add_argument("--local", action="store_true", help="start the service in one process, without Ray")
    one.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the service started"
    )
    one.add_argument("--out", type=Path, default=Path(OUT), help=f"directory of the results (default: {OUT})")


def _check(args: argparse.Namespace) -> None:
    """Before anything is started. Raises TooMuch, Foreign, ValueError."""
    if args.url is not None:
        check(args.url)
        if args.set or args.local:
            raise ValueError("--set and --local are for a service that is started; there is a --url")
    names = {f.name for f in shown()}
    for each in args.set:
        name, equals, _ = each.partition("=")
        if not equals or name.replace("-", "_") not in names:
            raise ValueError(f"--set {each}: NAME=VALUE, NAME a setting of `cellstate serve`")
    for name in ("rate", "seconds", "sessions", "senders", "steps", "bulk", "life", "pause_ms"):
        if getattr(args, name, None) is not None:
            limits.check(name, getattr(args, name))
    limits.check("seconds", 60 * getattr(args, "soak_minutes", 0) or 1)


def _options(scenario: Scenario, args: argparse.Namespace) -> Options:
    """Raises TooMuch, ValueError."""

    def given(name: str) -> Any:
        value = getattr(args, name, None)
        return getattr(scenario, name) if value is None else value

    settings = {}
    for each in args.set:
        name, _, value = each.partition("=")
        settings[name.replace("-", "_")] = value
    options = Options(
        rate=given("rate"),
        seconds=given("seconds"),
        sessions=given("sessions"),
        steps=given("steps"),
        senders=args.senders,
        seed=args.seed,
        direct=args.direct,
        url=args.url,
        key=args.key,
        model=args.model,
        local=args.local,
        settings=settings,
        **{
            name: getattr(args, name)
            for name in ("bulk", "life", "pause_ms", "arrivals", "record")
            if hasattr(args, name)
        },
    )
    options.schedule(scenario)  # a trace that can't be read is told before anything is started
    limits.check_requests(options.rate * (scenario.burst.factor if scenario.burst else 1), options.seconds)
    if scenario.name == "door" and options.key:
        raise ValueError("--key: wrk's scripts send none")
    if scenario.traffic in ("bulk", "mixed") and options.sessions < options.bulk * options.senders:
        raise ValueError(
            f"--sessions {options.sessions}: at least --bulk × --senders, {options.bulk * options.senders}"
        )
    if scenario.traffic != "churn" and options.sessions < options.senders:
        raise ValueError(f"--sessions {options.sessions}: at least --senders, {options.senders}")
    return options


def _one(scenario: Scenario, args: argparse.Namespace, progress: Progress) -> int:
    return _code(*_measured([(scenario, _options(scenario, args))], args.out, progress))


def _all(names: Sequence[str], args: argparse.Namespace, progress: Progress) -> int:
    todo = []
    for name in names:
        options = _options(STANDING[name], args)
        if name == "soak":
            options = dataclasses.replace(options, seconds=60 * args.soak_minutes)
        todo.append((STANDING[name], options))
    return _code(*_measured(todo, args.out, progress))


def _measured(
    todo: Sequence[tuple[Scenario, Options]], out: Path, progress: Progress
) -> tuple[list[dict[str, Any]], Path, int]:
    """Each run, written as soon as it is done; the page of all; and how many could not be run."""
    from loadtests.report.page import page

    out.mkdir(parents=True, exist_ok=True)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    found: list[dict[str, Any]] = []
    missing = 0
    whole = out / f"{todo[0][0].name if len(todo) == 1 else 'all'}-{stamp}.html"
    for scenario, options in todo:
        try:
            result = run(scenario, options, progress)
        except (SenderFailed, NoService, WrkFailed, httpx.HTTPError) as error:
            if len(todo) == 1:
                raise
            progress.end()
            progress.say(f"FAILED {scenario.name}: {type(error).__name__}: {error}")  # the others go on
            missing += 1
            continue
        path = out / f"{scenario.name}-{stamp}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        found.append(result)
        whole.write_text(page(found))
        progress.say(f"{path}, {whole}")
    return found, whole, missing


def _code(found: Sequence[dict[str, Any]], whole: Path, missing: int) -> int:
    from loadtests.report.lines import summary

    print(summary(found))
    print(f"\n{whole}")
    if missing or not all(result["passed"] for result in found):
        return 1
    return 0 if all(result["valid"] for result in found) else 3


def _report(paths: Sequence[Path], output: Path) -> int:
    """Raises ValueError for what is no result."""
    from loadtests.report.page import page

    found = []
    for path in paths:
        try:
            result = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        if not isinstance(result, dict) or result.get("schema") != SCHEMA:
            raise ValueError(f"{path} is no result of a load test ({SCHEMA})")
        found.append({**result, "file": path.name})
    output.write_text(page(found))
    print(output)
    return 0
