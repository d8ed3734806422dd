"""The results as markdown, with ratios to Triton, and the targets as a check."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from loadtests.peers.load import Cell
from loadtests.peers.rounds import Results, streams_of

TRITON, US, STORED = "Triton, HTTP", "Cellstate, memory:", "Cellstate, sqlite:"
BY_HAND = ("FastAPI by hand", "Ray Serve + Redis, as it comes", "Ray Serve + Redis, tuned", "LitServe")


def merged(cells: list[Cell]) -> Cell:
    """One cell of those of all rounds: means, and the sum of the errors."""
    return Cell(
        mean(cell.rate for cell in cells),
        mean(cell.p50_ms for cell in cells),
        mean(cell.p99_ms for cell in cells),
        sum(cell.errors for cell in cells),
    )


def rates(title: str, rows: dict[str, dict[int, list[Cell]]], rival: str, at: int) -> list[str]:
    """A row a way: rate, p50 and p99 at each number of clients, and the rate by the rival's."""
    counts = sorted({count for cells in rows.values() for count in cells})
    base = rows.get(rival, {}).get(at)
    lines = [f"| {title} | " + " | ".join(str(n) for n in counts) + f" | ÷ Triton at {at} |"]
    lines.append("| --- |" + " ---: |" * (len(counts) + 1))
    for way, cells in rows.items():
        shown = [_cell(merged(cells[n])) if cells.get(n) else "-" for n in counts]
        ratio = f"{merged(cells[at]).rate / merged(base).rate:.2f}" if base and cells.get(at) else "-"
        lines.append(f"| {way} | " + " | ".join(shown) + f" | {ratio} |")
    return lines


def _cell(cell: Cell) -> str:
    errors = f", {cell.errors} errors" if cell.errors else ""
    return f"{cell.rate:,.0f}/s, {cell.p50_ms:.2f} / {cell.p99_ms:.2f} ms{errors}"


def memory(results: Results) -> list[str]:
    base = results.memory_mib.get("Triton")
    lines = ["| memory of all processes (PSS) | MiB | ÷ Triton |", "| --- | ---: | ---: |"]
    for name, size in results.memory_mib.items():
        lines.append(
            f"| {name} | {size:,.0f} | {size / base:.2f} |" if base else f"| {name} | {size:,.0f} | - |"
        )
    return lines


def crashes(results: Results) -> list[str]:
    head = ["`kill -9` of all, restart", "sessions", "step under way", "went on", "from zero, unsaid"]
    head += ["refused", "a step twice", "wrong", "the same step again", "start, s", "answers of all, s"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for it in results.crashes:
        counts = (it.sessions, it.underway, it.kept, it.zero, it.refused, it.doubled, it.wrong)
        shown = [*map(str, counts), it.again, f"{it.start_s:.1f}", f"{it.answer_s:.1f}"]
        lines.append(f"| {it.way} | " + " | ".join(shown) + " |")
    return lines


@dataclass(frozen=True, slots=True)
class Target:
    """One of the project's targets; `found` None: not measured."""

    what: str
    wanted: str
    found: float | None
    met: bool


def targets(results: Results) -> list[Target]:
    def cell(way: str, count: int) -> Cell | None:
        cells = results.http.get(way, {}).get(count)
        return merged(cells) if cells else None

    def best(rows: dict[int, list[Cell]]) -> float | None:
        return max((merged(cells).rate for cells in rows.values()), default=None)

    def of(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    def rate(way: str, count: int) -> float | None:
        found = cell(way, count)
        return found.rate if found else None

    def p50(way: str) -> float | None:
        found = cell(way, 1)
        return found.p50_ms if found else None

    others = [found for way in BY_HAND if (found := rate(way, 64)) is not None]
    streams = best(results.streams.get(streams_of("Triton"), {}))
    lines = []
    for us in (US, STORED):
        door, own = f"{us}, door", f"{us}, own port"
        ours = best(results.streams.get(streams_of(us), {}))
        lines += [
            _at_most(f"{us}: p50 at 1 connection, own port, by Triton's", 0.5, of(p50(own), p50(TRITON))),
            _at_most(f"{us}: p50 at 1 connection, door, by Triton's", 0.5, of(p50(door), p50(TRITON))),
            _at_least(f"{us}: rate at 64, own port, by Triton's", 1.1, of(rate(own, 64), rate(TRITON, 64))),
            _at_least(f"{us}: rate at 64, door, by Triton's", 0.55, of(rate(door, 64), rate(TRITON, 64))),
            _at_least(f"{us}: best rate of streams by Triton's best", 3.0, of(ours, streams)),
            _at_least(f"{us}: rate at 64, door, by the best of the rest", 5.0,
                      of(rate(door, 64), max(others, default=None))),
        ]  # fmt: skip
    return lines


def _at_most(what: str, limit: float, found: float | None) -> Target:
    return Target(what, f"≤ {limit}", found, found is not None and found <= limit)


def _at_least(what: str, limit: float, found: float | None) -> Target:
    return Target(what, f"≥ {limit}", found, found is not None and found >= limit)


def checks(found: list[Target]) -> list[str]:
    lines = ["| target | wanted | found | |", "| --- | ---: | ---: | --- |"]
    for it in found:
        value = "-" if it.found is None else f"{it.found:.2f}"
        verdict = "not measured" if it.found is None else "met" if it.met else "missed"
        lines.append(f"| {it.what} | {it.wanted} | {value} | {verdict} |")
    return lines
