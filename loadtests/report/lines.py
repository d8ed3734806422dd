"""What the command prints in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEAD = (
    f"{'scenario':<34}{'answered/s':>11}{'steps/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>10}{'errors':>8}"
)


def summary(results: Sequence[dict[str, Any]]) -> str:
    """A line for each phase, and one for each check that failed."""
    lines = ["", HEAD]
    for result in results:
        for phase in result["phases"]:
            name = result["scenario"] if len(result["phases"]) == 1 else phase["name"]
            latency = phase["latency"]
            lines.append(
                f"{name:<34}{phase['answered_per_s']:>11,.0f}{phase['steps_per_s']:>10,.0f}"
                f"{latency['p50_ms']:>9.2f}{latency['p99_ms']:>9.2f}{latency['max_ms']:>10.1f}"
                f"{sum(phase['errors'].values()):>8,}{'' if not phase['doubts'] else '  not valid'}"
            )
    for result in results:
        failed = (check for check in result["checks"] if not check["ok"])
        lines += [
            f"FAILED {result['scenario']}: {each['what']}: {each['found']}, expected {each['expected']}"
            for each in failed
        ]
        lines += [f"FAILED {result['scenario']}: {code}: {n}" for code, n in result["errors"].items()]
        lines += [f"NOT VALID {result['scenario']}: {doubt}" for doubt in result["doubts"]]
        lines += [f"{result['scenario']}: {note}" for note in result["notes"]]
    return "\n".join(lines)
