"""docs/operations.md has every metric there is, with its labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Exposition, Process
from service.sessions.counters import REASONS, RequestCounters
from tests.api.serving import SERIES, STEPS, save_bundles, serving

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
ROW = re.compile(r"^\| `(cellstate_\w+)` \| *([^|]*?) *\| ([^|]*) \|$", re.MULTILINE)


def families(text: str) -> dict[str, set[str]]:
    """Names as they are queried, and labels that were seen; without Prometheus' own."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("cellstate_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels}
            found[name] = labels - {"le"}
    return found


def test_every_metric_is_described_and_nothing_else(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    with serving(save_bundles(tmp_path / "bundles"), store=store) as where:
        url = f"{where.url}/v1/models/{SERIES}"
        item = {"session_id": "a", "step": 9, **STEPS[SERIES]}
        assert httpx.post(f"{url}/steps", json={"requests": [item]}, trust_env=False).status_code == 200
        found = families(httpx.get(f"{where.url}/metrics", trust_env=False).raise_for_status().text)
    described = {name: labels for name, labels, _ in ROW.findall(PAGE)}
    assert described.keys() == found.keys()
    for name, labels in found.items():
        missing = {label for label in labels if label not in described[name]}
        assert not missing, name


def test_every_reason_is_described() -> None:
    described = {name: labels for name, labels, _ in ROW.findall(PAGE)}
    for kind, reasons in REASONS.items():
        (labels,) = (
            described[name]
            for name in (f"cellstate_{kind}_total", f"cellstate_sessions_{kind}_total")
            if name in described
        )
        assert all(reason in labels for reason in reasons), kind


def test_the_door_and_a_gpu_have_no_metrics_of_their_own() -> None:
    process = Process({"version": "1"}, lambda: True, replicas=lambda: {"a": 2}, gpu=lambda: {"free": 1.0})
    text = Exposition([], RequestCounters(), process).render()[0].decode()
    described = {name for name, _, _ in ROW.findall(PAGE)}
    assert families(text).keys() <= described
    assert 'cellstate_replicas{model="a"} 2.0' in text
    assert 'cellstate_gpu_memory_bytes{kind="free"} 1.0' in text
