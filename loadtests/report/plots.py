"""What of a run is drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loadtests.generator.histogram import Histogram
from loadtests.report.charts import Line, chart, linear, logarithmic, percentiles

MIB = 2**20
#: Lines of one chart; the largest are drawn
MOST_LINES = 8


def plots(runs: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The charts of some runs of one scenario, by their names."""
    drawn = [
        _by_percentile(runs),
        _over_time("Rate", "requests/s", runs, [("due", "scheduled", True), ("answered", "ok", False)]),
        _over_time("Latency", "ms", runs, [("p99", "p99_ms", False), ("p50", "p50_ms", True)], log=True),
        _over_time("Errors", "errors/s", runs, [("errors", "errors", False)], only_if_any=True),
        _samples("Sessions stepped in a tick", "mean", runs, lambda s: s.get("batch_size")),
        _samples("Waiting for a tick", "mean, ms", runs, lambda s: _scaled(s.get("queue_s"), 1e3)),
        _samples("A group commit", "mean, ms", runs, lambda s: _scaled(s.get("commit_s"), 1e3)),
        _samples("Open sessions", "sessions", runs, lambda s: sum(s["sessions"].values())),
        _by_process("Memory", "MiB", runs, lambda p: (p["rss"] if p["pss"] is None else p["pss"]) / MIB),
        _by_process("Open files", "files", runs, lambda p: p["files"]),
    ]
    return '<div class="charts">' + "".join(drawn) + "</div>"


def _phases(runs: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Each phase with a colour and a name."""
    colour = 0
    for name, run in runs:
        for phase in run["phases"]:
            several = len(run["phases"]) > 1
            label = " ".join(filter(None, (name, phase["name"] if several or not name else "")))
            yield colour, label, phase
            colour += 1


def _by_percentile(runs: Sequence[tuple[str, dict[str, Any]]]) -> str:
    lines, shares, values = [], [0.0], [1.0]
    for colour, name, phase in _phases(runs):
        for what, key, dashed in (("", "latency", False), (" (from sending)", "service", True)):
            points = _curve(Histogram.from_json(phase[key]["histogram"]))
            lines.append(Line(f"{name}{what}", points, colour, dashed))
            shares += [q for q, _ in points]
            values = [*(values if len(shares) > len(points) + 1 else []), *(v for _, v in points)]
    most = max((q for q in shares if q < 1), default=0.99)
    x = percentiles("of the requests were answered within", most)
    return chart("Latency by percentile", lines, x, logarithmic("ms", values))


def _curve(histogram: Histogram) -> list[tuple[float, float]]:
    """Quantiles, as far as there are values behind them."""
    if not histogram.count:
        return []
    qs, nine = [n / 20 for n in range(18)], 0.9
    while nine < 1 - 1e-9 and (1 - nine) * histogram.count >= 1:
        gap = 1 - nine
        qs += [nine + gap * part for part in (0, 0.3, 0.55, 0.75)]
        nine = 1 - gap / 10
    qs = [q for q in qs if (1 - q) * histogram.count >= 1] or [0.0]
    return [(q, 1e3 * v) for q, v in zip(qs, histogram.quantiles(qs), strict=True)]


def _over_time(
    title: str,
    unit: str,
    runs: Sequence[tuple[str, dict[str, Any]]],
    columns: Sequence[tuple[str, str, bool]],
    *,
    log: bool = False,
    only_if_any: bool = False,
) -> str:
    lines = []
    for colour, name, phase in _phases(runs):
        last = int(phase["schedule"]["seconds"])  # the second that the run ends in is not whole
        seconds = [s for s in phase["series"] if s["t"] < max(1, last)]
        for what, column, dashed in columns:
            points = [(s["t"] + 0.5, s[column]) for s in seconds if column in s]
            lines.append(Line(f"{name} {what}".strip(), points, colour, dashed))
    values = [v for line in lines for _, v in line.points]
    if not values or (only_if_any and not any(values)):
        return ""
    x = linear("seconds", [t for line in lines for t, _ in line.points])
    return chart(title, lines, x, logarithmic(unit, values) if log else linear(unit, values))


def _samples(
    title: str,
    unit: str,
    runs: Sequence[tuple[str, dict[str, Any]]],
    value: Callable[[dict[str, Any]], float | None],
) -> str:
    lines = []
    for colour, (name, run) in enumerate(runs):
        points = [(s["t"], v) for s in run["samples"] if (v := value(s)) is not None]
        lines.append(Line(name or run["scenario"], points, colour))
    return _drawn(title, unit, lines)


def _by_process(
    title: str,
    unit: str,
    runs: Sequence[tuple[str, dict[str, Any]]],
    value: Callable[[dict[str, Any]], float],
) -> str:
    """The largest processes of one run; of several, the sum of each."""
    lines = []
    for colour, (name, run) in enumerate(runs):
        columns: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for sample in run["samples"]:
            for process in sample.get("processes", ()):
                columns[f"{process['name']} {process['pid']}"].append((sample["t"], value(process)))
        if len(runs) == 1:
            largest = sorted(columns, key=lambda who: -columns[who][-1][1])[:MOST_LINES]
            lines += [Line(who, columns[who], n) for n, who in enumerate(largest)]
        elif columns:
            sums: dict[float, float] = defaultdict(float)
            for points in columns.values():
                for t, v in points:
                    sums[t] += v
            lines.append(Line(f"{name}, all processes", sorted(sums.items()), colour))
    return _drawn(title if len(runs) == 1 else f"{title} of all processes", unit, lines)


def _drawn(title: str, unit: str, lines: Sequence[Line]) -> str:
    values = [v for line in lines for _, v in line.points]
    if not values:
        return ""
    x = linear("seconds", [t for line in lines for t, _ in line.points])
    return chart(title, lines, x, linear(unit, values))


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
