"""Whether the service counted what we did, and computed what the model says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from loadtests.observing.exposition import Exposition
from loadtests.results import Check
from loadtests.scenarios import inputs
from loadtests.scenarios.traffic import BULK, SESSION, SESSIONS, STEPS
from model.bundle import Bundle
from model.network import Scaler
from model.reference import Reference

#: Normalised outputs against float64, by the precision of the service; tests/service/test_correct.py has them
TOLERANCES = {"fp32": 1e-4, "bf16": 0.01, "int8": 0.05}
#: A longer history is not run again: the reference takes its time
MOST_REFERENCE_STEPS = 5000


def counters(before: Exposition, after: Exposition, model: str, tally: Counter[str]) -> list[Check]:
    """The service's own counters against ours. What got no reply may have been executed or not."""

    def grew(name: str, **labels: str) -> int:
        labels = {"model": model, **labels}
        return round(after.sum(name, **labels) - before.sum(name, **labels))

    checks = [
        _between("steps committed", grew("cellstate_steps_total"), tally["steps"], tally["unknown"]),
        _between(
            "sessions opened",
            grew("cellstate_sessions_opened_total"),
            tally["opened"],
            tally["unknown opened"] + tally["unknown"],
        ),
        _between(
            "sessions ended",
            grew("cellstate_sessions_ended_total"),
            tally["closed"],
            tally["unknown closed"],
        ),
        _between("steps answered again", grew("cellstate_deduplicated_steps_total"), 0, tally["unknown"]),
    ]
    for route in (STEPS, BULK, SESSIONS, SESSION):
        ours = {key.split()[-1]: n for key, n in tally.items() if key.startswith(f"http {route} ")}
        for status, count in sorted(ours.items()):
            found = grew("cellstate_requests_total", route=route, status=status)
            if found or status.startswith("2"):  # the door's own refusals never reach the service
                unknown = tally[f"unknown {route}"]
                checks.append(
                    _between(f"{status} at {route.removeprefix('/v1/models')}", found, count, unknown)
                )
    return checks


def _between(what: str, found: int, ours: int, unknown: int) -> Check:
    expected = f"{ours:,}" if not unknown else f"{ours:,} to {ours + unknown:,}"
    return Check(what, ours <= found <= ours + unknown, expected, f"{found:,}")


def reference(
    bundle: Bundle, precision: str, samples: Iterable[tuple[int, int, list[float]]]
) -> Check | None:
    """The last outputs of some sessions against the float64 reference run over all their inputs. None if
    there is nothing to compare."""
    spec, worst, compared = bundle.spec, 0.0, 0
    width, scaler = len(spec.inputs), Scaler(spec)
    out_mean, out_std = (np.array([getattr(s, name) for s in spec.outputs]) for name in ("mean", "std"))
    for number, step, outputs in samples:
        if step >= MOST_REFERENCE_STEPS:
            continue
        rows = np.array(inputs.rows(width, number, 0, step + 1))
        wanted = Reference(spec, bundle.weights).run(scaler.normalise(rows))[-1]
        found = (np.array(outputs) - out_mean) / out_std
        worst, compared = max(worst, float(np.abs(found - wanted).max())), compared + 1
    if not compared:
        return None
    tolerance = TOLERANCES.get(precision, max(TOLERANCES.values()))
    what = f"outputs of {compared} sessions, from float64"
    return Check(what, worst <= tolerance, f"within {tolerance:g}", f"{worst:.2g}")
