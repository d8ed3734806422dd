"""One run of a scenario: a service, senders, phases of load, samples meanwhile, and the checks behind it."""

from __future__ import annotations

import contextlib
import math
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from loadtests import checking, results, wrk
from loadtests.generator.arrivals import Schedule, read_trace, write_trace
from loadtests.generator.clock import clock
from loadtests.generator.recorder import Kind, Recorder
from loadtests.generator.senders import Driven, Senders
from loadtests.observing.exposition import scrape
from loadtests.observing.sampler import Sampler
from loadtests.observing.slope import Trend, trend
from loadtests.progress import Progress
from loadtests.results import Check
from loadtests.scenarios.standing import Scenario, make
from loadtests.scenarios.traffic import BULK, STEPS, Plan
from loadtests.started import Subject, subject

WARM_UP_S = 2.0
#: Of all sessions of `idle`, those that are active; and how much their tail may grow beside the others
ACTIVE, IDLE_LIMIT = 0.01, 1.5
#: Lives at a time of each sender, to find what a closed loop reaches, before a soak
TOGETHER, CALIBRATE_S = 48, 5.0
#: Of the raw door: connections, and sessions that a request steps (0: one)
DOOR = ((1, 0), (64, 0), (1, 256))
#: Growth over a soak that counts as nothing
LEAST = {"memory": 4.0 * 2**20, "files": 4.0, "sockets": 4.0, "sessions": 16.0, "slots": 16.0}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; every field goes into the result."""

    rate: float
    seconds: float
    sessions: int
    steps: int
    senders: int = 2
    bulk: int = 256
    life: int = 8
    pause_ms: float = 20.0
    seed: int = 0
    arrivals: str = "poisson"  # or uniform, or the path of a trace
    direct: bool = False
    url: str | None = None
    key: str = field(default="", repr=False)
    model: str = ""
    local: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    record: str = ""

    def schedule(self, scenario: Scenario, rate: float | None = None) -> Schedule:
        """Raises TraceError."""
        rate, seconds = self.rate if rate is None else rate, self.seconds
        if self.arrivals in ("poisson", "uniform"):
            return Schedule(rate, seconds, self.arrivals, self.seed, scenario.burst)
        _, recorded = read_trace(Path(self.arrivals))
        last = max((arrival.at for arrival in recorded), default=0.0)
        seconds = min(seconds, last + 1e-6) or seconds
        return Schedule(len(recorded) / seconds, seconds, "trace", self.seed, trace=self.arrivals)


class Run:
    """Collects what the JSON will hold."""

    def __init__(self, scenario: Scenario, options: Options, at: Subject, progress: Progress) -> None:
        self.scenario, self.options, self.at, self.progress = scenario, options, at, progress
        self.began = datetime.now(UTC)
        self.phases: list[dict[str, Any]] = []
        self.checks: list[Check] = []
        self.notes: list[str] = []
        self.trends: list[Trend] = []
        self.plan = self._plan()
        self.sampler = Sampler(at.door, at.model, at.root, self._long(), key=options.key)

    def go(self) -> None:
        options, at = self.options, self.at
        before = scrape(at.door, options.key)
        with Senders(make, self.plan, options.senders, self.progress.update) as senders:
            self.sampler.pss = self.scenario.name == "soak"
            self.progress.say(f"{self.scenario.name}: opening the sessions")
            senders.prepare()
            with self.sampler:
                PHASES.get(self.scenario.name, _plain)(self, senders)
            self.progress.say("ending")
            samples = senders.finish()
            tally = senders.tally
        self.checks += checking.counters(before, scrape(at.door, options.key), at.model, tally)
        if at.bundle is not None and samples:
            checked = checking.reference(at.bundle, at.settings.get("precision", "bf16"), samples)
            self.checks += [checked] if checked else []
        self.progress.end()

    def drive(self, senders: Senders, name: str, schedule: Schedule) -> Driven:
        """A phase, kept; nobody's first requests are measured."""
        warm = replace(
            schedule, kind="poisson", seconds=min(WARM_UP_S, schedule.seconds), burst=None, trace=""
        )
        self.progress.begin(f"{name}, warming up", warm.seconds)
        senders.drive(warm)
        self.progress.begin(name, schedule.seconds)
        began = clock() - self.sampler.start
        driven = senders.drive(schedule, keep=bool(self.options.record))
        self.progress.end()
        self.phases.append(results.phase(name, schedule, driven, began))
        latency = self.phases[-1]["latency"]
        self.progress.say(
            f"{name}: {self.phases[-1]['answered_per_s']:,.0f} requests/s answered,"
            f" p50 {latency['p50_ms']:.2f} ms, p99 {latency['p99_ms']:.2f} ms, "
            f"{sum(self.phases[-1]['errors'].values())} errors"
        )
        for doubt in self.phases[-1]["doubts"]:
            self.progress.say(f"NOT VALID: {doubt}")
        if driven.recorder.sent is not None:
            self._record(driven)
        return driven

    def to_json(self) -> dict[str, Any]:
        options, at = asdict(self.options), self.at
        options.pop("key")
        errors = sum((Counter(phase["errors"]) for phase in self.phases), Counter[str]())
        doubts = [f"{phase['name']}: {doubt}" for phase in self.phases for doubt in phase["doubts"]]
        return {
            "schema": results.SCHEMA,
            "scenario": self.scenario.name,
            "about": self.scenario.about,
            "unit": self.scenario.unit,
            "began_at": self.began.isoformat(timespec="seconds"),
            "source": results.commit(),
            "machine": results.on_what(),
            "service": {
                "url": at.url,
                "ours": at.ours,
                "local": self.options.local,
                "settings": dict(at.settings),
                "model": dict(at.facts),
            },
            "options": options,
            "phases": self.phases,
            "samples": self.sampler.samples,
            "missed_samples": self.sampler.missed,
            "trends": [asdict(each) for each in self.trends],
            "checks": [asdict(each) for each in self.checks],
            "errors": dict(errors),
            "notes": self.notes,
            "valid": not doubts,
            "doubts": doubts,
            "passed": not errors and all(check.ok for check in self.checks),
        }

    def _plan(self) -> Plan:
        options, at = self.options, self.at
        sessions = (
            max(1, round(options.sessions * ACTIVE)) if self.scenario.name == "idle" else options.sessions
        )
        return Plan(
            traffic=self.scenario.traffic,
            url=at.url,
            model=at.model,
            inputs=at.inputs,
            prefix=f"load-{secrets.token_hex(4)}-",
            key=options.key,
            seed=options.seed,
            sessions=sessions,
            steps=options.steps,
            bulk=options.bulk,
            life=options.life,
            pause_s=options.pause_ms / 1e3,
            clean=not at.ours,
        )

    def _long(self) -> float:
        return self.options.seconds * {"idle": 2, "door": len(DOOR)}.get(self.scenario.name, 1)

    def _record(self, driven: Driven) -> None:
        arrivals, path = driven.recorder.sent or [], Path(self.options.record)
        origin = (
            f"sent and answered in a run of `{self.scenario.name}` on {self.began:%Y-%m-%d}:"
            f" {self.options.arrivals} arrivals, seed {self.options.seed}"
        )
        self.progress.say(f"{path}: {write_trace(path, arrivals, origin)} arrivals recorded")


def _plain(run: Run, senders: Senders) -> None:
    run.drive(senders, run.scenario.name, run.options.schedule(run.scenario))


def _idle(run: Run, senders: Senders) -> None:
    schedule, active = run.options.schedule(run.scenario), max(1, round(run.options.sessions * ACTIVE))
    alone = run.drive(senders, f"{active:,} sessions alone", schedule)
    run.progress.say(f"opening {run.options.sessions - active:,} more")
    began = clock()
    senders.open_idle(run.options.sessions - active)
    run.notes.append(f"{run.options.sessions - active:,} sessions opened in {clock() - began:.1f} s")
    among = run.drive(senders, f"the same among {run.options.sessions:,}", schedule)
    a, b = (driven.recorder.latency().quantile(0.99) for driven in (alone, among))
    ratio = b / a if a else 0.0
    run.checks.append(
        Check(
            "p99 of the active ones, beside the idle ones over alone",
            0 < ratio <= IDLE_LIMIT,
            f"at most {IDLE_LIMIT:g}",
            f"{ratio:.2f}",
        )
    )


def _burst(run: Run, senders: Senders) -> None:
    schedule = run.options.schedule(run.scenario)
    run.drive(senders, "burst", schedule)
    burst = schedule.burst
    if burst is None:
        return
    seconds = run.phases[-1]["series"]
    calm = [s["p99_ms"] for s in seconds if "p99_ms" in s and not _high(s["t"], schedule)]
    if not calm:
        return
    limit, worst = 2 * median(calm), 0
    for s in seconds:
        if _high(s["t"], schedule) and not _high(s["t"] + 1, schedule):
            behind = [x for x in seconds if x["t"] > s["t"] and "p99_ms" in x]
            late = next((n for n, x in enumerate(behind) if x["p99_ms"] <= limit), len(behind))
            worst = max(worst, late)
    run.notes.append(f"p99 was within twice its calm median again at most {worst} s behind a burst")


def _high(second: int, schedule: Schedule) -> bool:
    return schedule.burst is not None and any(second + x in schedule.burst for x in (0.0, 0.5, 0.99))


def _soak(run: Run, senders: Senders) -> None:
    rate = run.options.rate
    if not rate:
        run.progress.begin("what a closed loop reaches", CALIBRATE_S)
        reached = senders.closed(TOGETHER * run.options.senders, CALIBRATE_S)
        run.progress.end()
        rate = reached / 2
        run.notes.append(f"a closed loop reached {reached:.1f} sessions/s; half of it is the rate")
    run.sampler.pss = True
    run.drive(senders, "soak", run.options.schedule(run.scenario, rate))
    phase = run.phases[-1]
    until = phase["began_s"] + phase["schedule"]["seconds"]
    run.trends = trends([s for s in run.sampler.samples if phase["began_s"] <= s["t"] <= until])
    if not run.trends:
        run.notes.append("too few samples to tell whether anything grows")
    leaks = [each.what for each in run.trends if each.leaks]
    if run.trends:
        run.checks.append(
            Check("nothing grows without end", not leaks, "nothing", ", ".join(leaks) or "nothing")
        )


def trends(samples: list[dict[str, Any]]) -> list[Trend]:
    """Of memory, files and sockets of each process that lived through all samples, and of the sessions."""
    columns: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        for process in sample.get("processes", ()):
            who = f"{process['name']} ({process['pid']})"
            memory = process["pss"] if process["pss"] is not None else process["rss"]
            for what, unit, value in (
                ("memory", "B", memory),
                ("files", "", process["files"]),
                ("sockets", "", process["sockets"]),
            ):
                columns[what, unit, who].append((sample["t"], value))
        columns["sessions", "", "service"].append((sample["t"], sum(sample["sessions"].values())))
        columns["slots", "", "service"].append((sample["t"], sample["slots"].get("taken", 0.0)))
    found = []
    for (what, unit, who), points in columns.items():
        if len(points) < 0.9 * len(samples):
            continue  # it came or went meanwhile
        times, values = zip(*points, strict=True)
        each = trend(f"{what} of {who}", unit, times, values, LEAST[what])
        found += [each] if each is not None else []
    return found


def _door(run: Run, senders: Senders) -> None:
    plan, seconds = run.plan, math.ceil(run.options.seconds)
    for connections, bulk in DOOR:
        each = max(1, bulk)
        name = f"wrk, {connections} connection{'s' if connections > 1 else ''}" + (
            f", bulk {bulk}" if bulk else ""
        )
        # A connection does not know which session another is at: with many they seldom meet in one
        count = min(plan.sessions, 4 * each * connections) // each * each
        run.progress.begin(name, seconds)
        began = clock() - run.sampler.start
        found = wrk.run(run.at.url, plan.model, plan.inputs, plan.prefix, count, connections, seconds, bulk)
        run.progress.end()
        recorder, route = Recorder(0.0), BULK if bulk else STEPS
        recorder.kinds["bulk" if bulk else "step"] = Kind(
            found.requests - found.errors,
            Counter(wrk=found.errors) if found.errors else Counter(),
            found.latency,
            found.latency,
        )
        # What was on its way at the end was executed, and is not counted by wrk
        for key, n in ((f"http {route} 200", 1), ("steps", each)):
            senders.tally[key] += n * (found.requests - found.errors)
        senders.tally["unknown"] += each * (connections + found.errors)
        senders.tally[f"unknown {route}"] += connections + found.errors
        schedule = Schedule(found.requests / found.seconds, found.seconds, "closed")
        phase = results.phase(name, schedule, Driven(recorder, 0.0), began)
        phase |= {"scheduled": found.requests, "steps_per_s": each * phase["answered_per_s"]}
        run.phases.append(phase | {"sender": {"lag": {"p99_ms": None}, "busy": None}})
        run.progress.say(f"{name}: {phase['answered_per_s']:,.0f} requests/s")


PHASES: dict[str, Callable[[Run, Senders], None]] = {
    "idle": _idle,
    "burst": _burst,
    "soak": _soak,
    "door": _door,
}


def run(scenario: Scenario, options: Options, progress: Progress) -> dict[str, Any]:
    """The whole run. Raises Foreign, NoService, SenderFailed, TraceError, httpx.HTTPError."""
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(
            subject(
                options.url,
                settings=options.settings,
                local=options.local,
                model=options.model,
                direct=options.direct,
                key=options.key,
                say=progress.say,
            )
        )
        it = Run(scenario, options, at, progress)
        it.go()
        return it.to_json()
