"""Every scenario, for a second or two, against a service of one process; its counters and outputs agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.bundles import random_bundle
from loadtests.generator.arrivals import read_trace
from loadtests.generator.senders import Senders
from loadtests.progress import Progress
from loadtests.report.page import page, shown, value
from loadtests.running import Options, run
from loadtests.scenarios.standing import ALL, STANDING
from loadtests.started import NoService, started, subject
from tests.service.serving import Service, serving

#: Requests a second, sessions, steps: small, for a busy machine
SMALL: dict[str, dict[str, Any]] = {
    "steps": {"rate": 30, "sessions": 16},
    "streams": {"rate": 40, "sessions": 8},
    "bulk": {"rate": 10, "sessions": 64, "bulk": 16},
    "chunks": {"rate": 20, "sessions": 16, "steps": 20},
    "mixed": {"rate": 40, "sessions": 96},
    "churn": {"rate": 8, "sessions": 1, "life": 3},
    "idle": {"rate": 30, "sessions": 800},
    "burst": {"rate": 20, "sessions": 32},
    "door": {"rate": 1, "sessions": 512},
    "soak": {"rate": 0, "sessions": 1, "life": 2},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one small model."""
    directory = tmp_path_factory.mktemp("models")
    random_bundle(directory / "lstm", 1, 16, 3, name="lstm")
    with serving(directory, precision="fp32") as running:
        yield running


def measured(service: Service, name: str, **changes: Any) -> dict[str, Any]:
    scenario = STANDING[name]
    given = {"steps": scenario.steps, **SMALL[name], **changes}
    options = Options(seconds=1.5, senders=2, url=service.url, model="lstm", **given)
    return run(scenario, options, Progress())


@pytest.mark.parametrize("name", STANDING)
def test_a_scenario_is_answered_and_the_service_counted_the_same(service: Service, name: str) -> None:
    if name == "door" and not shutil.which("wrk"):
        pytest.skip("wrk is not installed (Debian: apt-get install wrk)")
    result = measured(service, name)
    assert result["errors"] == {}
    failed = [check for check in result["checks"] if not check["ok"] and "p99" not in check["what"]]
    assert failed == []
    assert {"steps committed", "sessions opened", "sessions ended"} <= {c["what"] for c in result["checks"]}
    for phase in result["phases"]:
        assert phase["answered"] == phase["scheduled"] > 0
        assert phase["latency"]["count"] == phase["service"]["count"]
        # wrk corrects what its closed loop hid: it adds the times of requests that it could not send
        assert phase["latency"]["count"] >= phase["answered"]
        assert name == "door" or phase["latency"]["count"] == phase["answered"]
        assert name == "door" or sum(second["ok"] for second in phase["series"]) == phase["answered"]
    assert service.metric("cellstate_sessions") == 0  # another's service is left as it was
    page([json.loads(json.dumps(result))])


def test_all_runs_what_there_is() -> None:
    assert set(ALL) | {"soak"} == set(STANDING) == set(SMALL)


def test_kinds_of_mixed_are_told_apart(service: Service) -> None:
    kinds = measured(service, "mixed")["phases"][0]["kinds"]
    assert {"step", "chunk"} <= set(kinds) <= {"step", "chunk", "forecast", "bulk", "facts", "predict"}


def test_idle_compares_both_phases(service: Service) -> None:
    result = measured(service, "idle")
    assert [phase["name"] for phase in result["phases"]] == ["8 sessions alone", "the same among 800"]
    (check,) = [check for check in result["checks"] if "p99" in check["what"]]
    alone, among = (phase["latency"]["p99_ms"] for phase in result["phases"])
    assert float(check["found"]) == pytest.approx(among / alone, abs=0.006)
    assert check["ok"] == (among / alone <= 1.5)


def test_a_recorded_run_is_sent_again(service: Service, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    first = measured(service, "chunks", record=str(trace))
    origin, arrivals = read_trace(trace)
    assert len(arrivals) == first["phases"][0]["answered"]
    assert "`chunks`" in origin
    again = measured(service, "steps", arrivals=str(trace))["phases"][0]
    assert again["answered"] == len(arrivals)
    assert again["series"][0]["steps"] == first["phases"][0]["series"][0]["steps"]


def test_what_the_service_refuses_is_counted_by_its_code(tmp_path: Path) -> None:
    random_bundle(tmp_path / "lstm", 1, 16, 3, name="lstm")
    with serving(tmp_path, max_steps=4) as small:
        result = measured(small, "chunks")
    phase = result["phases"][0]
    assert set(result["errors"]) == {"too_large"}
    assert phase["errors"]["too_large"] == phase["scheduled"]
    assert phase["answered"] == phase["latency"]["count"] == 0
    assert not result["passed"]
    assert [check for check in result["checks"] if not check["ok"]] == []  # nothing was executed
    page([result])


def test_a_service_that_counts_otherwise_is_found(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of somebody else's meanwhile."""
    finish = Senders.finish

    def meddled(senders: Any) -> Any:
        body = {"step": 0, "inputs": [[0.0, 0.0, 0.0]]}
        path = f"{service.url}/v1/models/lstm/sessions/somebody"
        httpx.post(f"{path}/steps", json=body, trust_env=False).raise_for_status()
        httpx.delete(path, trust_env=False).raise_for_status()
        return finish(senders)

    monkeypatch.setattr(Senders, "finish", meddled)
    result = measured(service, "steps")
    failed = {check["what"] for check in result["checks"] if not check["ok"]}
    assert {"steps committed", "sessions opened"} <= failed
    assert not result["passed"]


def test_every_number_of_the_page_is_from_the_json(service: Service) -> None:
    one, other = measured(service, "steps"), measured(service, "churn")
    found = page([one, other])
    cells = re.findall(r'<td data-from="([^"]+)">([^<]*)</td>', found)
    assert len(cells) > 40
    for where, text in cells:
        keys = [int(key) if key.isdigit() and n in (0, 2) else key for n, key in enumerate(where.split("/"))]
        assert shown(value([one, other], keys)) == text.replace("&#x27;", "'")
    distinct = 123.4375
    one["phases"][0]["latency"]["p99_ms"] = distinct
    assert f">{shown(distinct)}<" in page([one, other])
    assert f">{shown(distinct)}<" not in found


def test_a_page_needs_nothing_from_outside(service: Service) -> None:
    result = measured(service, "steps")
    result["phases"][0]["name"] = "<script>alert(1)</script>"
    found = page([result, {**result, "file": "b.json"}])
    assert not re.findall(r"(?:src|href)=|@import|url\(", found)
    assert "<script>" not in found
    assert found.count("<svg") > 8


def test_a_service_of_our_own_is_stopped(tmp_path: Path) -> None:
    random_bundle(tmp_path / "lstm", 1, 16, 3, name="lstm")
    settings = {"models": str(tmp_path), "store": "memory:"}
    with pytest.raises(ZeroDivisionError), subject(None, settings=settings, local=True) as at:  # noqa: PT012
        assert at.bundle is not None
        assert at.root is not None
        url, root = at.url, at.root
        raise ZeroDivisionError
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    assert not Path(f"/proc/{root}").exists()


def test_a_service_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(NoService, match="no such directory of bundles"),
        started({"models": "/nonexistent", "store": "memory:"}, local=True, say=print),
    ):
        pass


def test_the_service_ends_when_the_load_test_is_killed(tmp_path: Path) -> None:
    random_bundle(tmp_path / "lstm", 1, 16, 3, name="lstm")
    command = [sys.executable, "-m", "loadtests", "steps", "--local", "--rate", "5", "--seconds", "60"]
    command += ["--set", f"models={tmp_path}", "--set", "store=memory:", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "opening the sessions" in line)
        assert line
        below = _below(process.pid)
        assert any("service.cli" in command for command in below.values())
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 30
    while left := [pid for pid in below if Path(f"/proc/{pid}/cmdline").exists() and _alive(pid)]:
        assert time.monotonic() < deadline, [below[pid] for pid in left]
        time.sleep(0.05)


def _below(pid: int) -> dict[int, str]:
    from loadtests.chaos import tree

    return {process.pid: process.command for process in tree.below(pid)}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
