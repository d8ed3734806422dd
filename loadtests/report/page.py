"""Runs as one HTML page that needs nothing else: every number in it is from their JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from loadtests.report.charts import number
from loadtests.report.plots import plots
from loadtests.report.style import STYLE

PHASE = (
    ("due", "scheduled"),
    ("answered/s", "answered_per_s"),
    ("steps/s", "steps_per_s"),
    ("p50 ms", "latency.p50_ms"),
    ("p90 ms", "latency.p90_ms"),
    ("p99 ms", "latency.p99_ms"),
    ("p99.9 ms", "latency.p99_9_ms"),
    ("max ms", "latency.max_ms"),
    ("sender late, p99 ms", "sender.lag.p99_ms"),
    ("sender busy", "sender.busy"),
)
KIND = (
    ("answered", "ok"),
    ("p50 ms", "latency.p50_ms"),
    ("p99 ms", "latency.p99_ms"),
    ("max ms", "latency.max_ms"),
)


def page(results: Sequence[dict[str, Any]]) -> str:
    """Runs of one scenario stand side by side."""
    scenarios: dict[str, list[int]] = {}
    for index, result in enumerate(results):
        scenarios.setdefault(result["scenario"], []).append(index)
    names = _names(results)
    sections = "".join(_section(results, names, indices) for indices in scenarios.values())
    title = "Load test: " + ", ".join(scenarios)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{_what(results[0])}{_overview(results, names)}{sections}"
        "</main></body></html>\n"
    )


def value(results: Sequence[dict[str, Any]], path: Sequence[str | int]) -> Any:
    """What is at a place of the JSON: the number of the run, then keys."""
    found: Any = results
    for key in path:
        found = found[key]
    return found


def shown(found: Any) -> str:
    """A value as the page has it."""
    if found is None:
        return "-"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, int):
        return f"{found:,}"
    if isinstance(found, float):
        return number(found) if abs(found) >= 0.0005 or found == 0 else f"{found:.1e}"
    return str(found)


def _cell(results: Sequence[dict[str, Any]], *path: str | int) -> str:
    """A number with the place in the JSON that it is from."""
    where = "/".join(map(str, path))
    return f'<td data-from="{escape(where)}">{escape(shown(value(results, path)))}</td>'


def _names(results: Sequence[dict[str, Any]]) -> list[str]:
    """Of each run, where there are several of its scenario."""
    many = [sum(r["scenario"] == result["scenario"] for r in results) > 1 for result in results]
    names = []
    for index, (result, several) in enumerate(zip(results, many, strict=True)):
        name = str(result.get("file", f"run {index + 1}")).removesuffix(".json")
        names.append(name if several else "")
    return names


def _what(result: dict[str, Any]) -> str:
    machine, service = result["machine"], result["service"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    architecture = service["model"].get("architecture", {})
    facts = [
        f"{result['began_at']}",
        f"{machine['cores']} cores, {machine['processor']}; the senders run on the same cores",
        f"model {service['model']['name']}: {architecture.get('num_layers')} layers of"
        f" {architecture.get('hidden_size')}",
        versions,
    ]
    if result["source"]:
        changed = ", with changes" if result["source"]["changed"] else ""
        facts.append(f"source {result['source']['commit'][:12]}{changed}")
    return f'<p class="facts">{"<br>".join(map(escape, facts))}</p>'


def _overview(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(label)}</th>" for label, _ in PHASE)
    rows = []
    for index, result in enumerate(results):
        for n, phase in enumerate(result["phases"]):
            cells = "".join(_cell(results, index, "phases", n, *keys.split(".")) for _, keys in PHASE)
            errors = sum(phase["errors"].values())
            label = " ".join(filter(None, (result["scenario"], names[index])))
            label += f": {phase['name']}" if len(result["phases"]) > 1 else ""
            bad = ' class="bad"' if errors else ""
            verdict = '<td class="bad">no</td>' if phase["doubts"] else "<td>yes</td>"
            rows.append(f"<tr><th>{escape(label)}</th>{cells}<td{bad}>{errors:,}</td>{verdict}</tr>")
    return _table(f"<th>run</th>{head}<th>errors</th><th>valid</th>", rows)


def _section(results: Sequence[dict[str, Any]], names: Sequence[str], indices: Sequence[int]) -> str:
    first = results[indices[0]]
    parts = [f"<section><h2>{escape(first['scenario'])}</h2><p>{escape(first['about'])}</p>"]
    for index in indices:
        parts += [f'<p class="bad">Not valid: {escape(doubt)}</p>' for doubt in results[index]["doubts"]]
        parts += [f"<p>{escape(note)}</p>" for note in results[index]["notes"]]
    parts.append(plots([(names[index], results[index]) for index in indices]))
    for index in indices:
        label = f"<h3>{escape(names[index])}</h3>" if names[index] else ""
        tables = [*_kinds(results, index), *_errors(results, index), *_checks(results, index)]
        parts += [label, '<div class="tables">', *tables, "</div>", _trends(results, index)]
        parts.append(_details(results[index]))
    return "".join(parts) + "</section>"


def _kinds(results: Sequence[dict[str, Any]], index: int) -> Iterator[str]:
    head = "".join(f"<th>{escape(label)}</th>" for label, _ in KIND)
    for n, phase in enumerate(results[index]["phases"]):
        rows = []
        for kind in phase["kinds"]:
            cells = [_cell(results, index, "phases", n, "kinds", kind, *keys.split(".")) for _, keys in KIND]
            rows.append(f"<tr><th>{escape(kind)}</th>{''.join(cells)}</tr>")
        caption = "requests" if len(results[index]["phases"]) == 1 else phase["name"]
        yield _table(f"<th>{escape(caption)}</th>{head}", rows)


def _errors(results: Sequence[dict[str, Any]], index: int) -> Iterator[str]:
    codes = results[index]["errors"]
    if codes:
        rows = [f"<tr><th>{escape(c)}</th>{_cell(results, index, 'errors', c)}</tr>" for c in codes]
        yield _table("<th>error</th><th>requests</th>", rows)


def _checks(results: Sequence[dict[str, Any]], index: int) -> Iterator[str]:
    rows = []
    for n, check in enumerate(results[index]["checks"]):
        bad = "" if check["ok"] else ' class="bad"'
        cells = _cell(results, index, "checks", n, "expected") + _cell(results, index, "checks", n, "found")
        rows.append(f"<tr{bad}><th>{escape(check['what'])}</th>{cells}<td>{shown(check['ok'])}</td></tr>")
    if rows:
        yield _table("<th>check</th><th>expected</th><th>the service</th><th>holds</th>", rows)


def _trends(results: Sequence[dict[str, Any]], index: int) -> str:
    rows = []
    for each in results[index]["trends"]:
        scale, unit = (2**20, "MiB") if each["unit"] == "B" else (1, "")
        per_hour = [3600 * each["line"][name] / scale for name in ("slope", "low", "high")]
        bad = ' class="bad"' if each["leaks"] else ""
        rows.append(
            f"<tr{bad}><th>{escape(each['what'])}</th><td>{number(each['line']['mean'] / scale)} {unit}</td>"
            f"<td>{per_hour[0]:+.3g} {unit}</td><td>{per_hour[1]:+.3g} to {per_hour[2]:+.3g}</td>"
            f'<td class="words">{escape(each["says"])}</td></tr>'
        )
    head = "<th>over the run</th><th>mean</th><th>an hour</th><th>95 % sure within</th><th>so it</th>"
    return _table(head, rows) if rows else ""


def _details(result: dict[str, Any]) -> str:
    rows = [
        f'<tr><th>{escape(str(name))}</th><td class="words">{escape(shown(v))}</td></tr>'
        for name, v in (*result["options"].items(), *result["service"].items(), *result["machine"].items())
    ]
    return f"<details><summary>what was asked, of what, on what</summary>{_table('', rows)}</details>"


def _table(head: str, rows: Sequence[str]) -> str:
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'
