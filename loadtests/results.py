"""One run as JSON: what was asked, on what, what came out, and whether it may be believed."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests.generator.arrivals import Schedule
from loadtests.generator.histogram import Histogram
from loadtests.generator.recorder import Recorder
from loadtests.generator.senders import Driven
from service.bench import machine

SCHEMA = "cellstate-load/1"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}

#: A sender that begins late by more than this at the 99th percentile, and by more than this share of the
#: latency at its 99th, measured itself
LAG_S, LAG_SHARE = 0.002, 0.3
#: However slow the service is
MOST_LAG_S = 0.1
#: Share of a core from which a sender is taken to be busy all the time
BUSY = 0.9


@dataclass(frozen=True, slots=True)
class Check:
    """What must hold; `found` is from the service."""

    what: str
    ok: bool
    expected: str
    found: str


def doubts(driven: Driven) -> list[str]:
    """Why a phase is not to be believed: the sender, not the service, was measured."""
    found = []
    lag, latency = driven.recorder.lag.quantile(0.99), driven.recorder.latency().quantile(0.99)
    if lag > MOST_LAG_S or (lag > LAG_S and lag > LAG_SHARE * latency > 0):
        found.append(
            f"the sender began {1e3 * lag:.1f} ms late (99th percentile), where the latency's is"
            f" {1e3 * latency:.1f} ms: lower --rate, or more --senders on more cores"
        )
    if driven.busy > BUSY:
        found.append(f"a sender was busy for {driven.busy:.0%} of the time: lower --rate, or more --senders")
    return found


def phase(name: str, schedule: Schedule, driven: Driven, began_s: float) -> dict[str, Any]:
    """One stretch of load. began_s: from the beginning of the samples."""
    recorder, errors = driven.recorder, driven.recorder.errors()
    answered = sum(kind.ok for kind in recorder.kinds.values())
    steps = sum(second.steps for second in recorder.seconds.values())
    return {
        "name": name,
        "schedule": asdict(schedule),
        "began_s": round(began_s, 3),
        "scheduled": sum(second.scheduled for second in recorder.seconds.values()),
        "answered": answered,
        "answered_per_s": answered / schedule.seconds,
        "steps_per_s": steps / schedule.seconds,
        "errors": dict(errors),
        "latency": figures(recorder.latency(), whole=True),
        "service": figures(_service(recorder), whole=True),
        "kinds": {
            kind: {"ok": counts.ok, "errors": dict(counts.errors), "latency": figures(counts.latency)}
            for kind, counts in sorted(recorder.kinds.items())
        },
        "series": series(recorder),
        "sender": {
            "lag": figures(recorder.lag, whole=True),
            "busy": driven.busy,
            "held": recorder.held,
            "most_in_flight": recorder.most_in_flight,
        },
        "doubts": doubts(driven),
    }


def figures(histogram: Histogram, *, whole: bool = False) -> dict[str, Any]:
    """Milliseconds. whole: with the histogram (of seconds)."""
    values = histogram.quantiles(QUANTILES.values())
    found: dict[str, Any] = {
        f"{name}_ms": round(1e3 * v, 4) for name, v in zip(QUANTILES, values, strict=True)
    }
    found |= {"mean_ms": round(1e3 * histogram.mean, 4), "count": histogram.count}
    return {**found, "histogram": histogram.to_json()} if whole else found


def series(recorder: Recorder) -> list[dict[str, Any]]:
    """Second by second, by when the requests were due."""
    found = []
    for number in range(max(recorder.seconds, default=-1) + 1):
        second = recorder.seconds.get(number)
        if second is None:
            found.append({"t": number, "scheduled": 0, "ok": 0, "steps": 0, "errors": 0})
            continue
        p50, p99, most = (round(1e3 * v, 4) for v in second.latency.quantiles([0.5, 0.99, 1]))
        counts: dict[str, Any] = {"scheduled": second.scheduled, "ok": second.ok, "steps": second.steps}
        times: dict[str, Any] = {"p50_ms": p50, "p99_ms": p99, "max_ms": most} if second.ok else {}
        found.append({"t": number, **counts, "errors": second.errors, **times})
    return found


def _service(recorder: Recorder) -> Histogram:
    whole = Histogram()
    for kind in recorder.kinds.values():
        whole.merge(kind.service)
    return whole


def commit() -> dict[str, Any]:
    """Of the source that ran; empty if it is no repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def on_what() -> dict[str, Any]:
    """The machine and the versions."""
    facts = machine.facts("cpu")
    for package in ("ray", "uvicorn", "httpx", "websockets"):
        facts["versions"][package] = machine._version(package)
    return facts


def ordered(counts: Mapping[str, int] | Counter[str]) -> Sequence[tuple[str, int]]:
    """The most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
