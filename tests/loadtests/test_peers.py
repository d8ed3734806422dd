"""The rivals' load test: what it reads, what it concludes, and one rival started for real."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from loadtests.bundles import random_bundle
from loadtests.chaos.subject import free_port
from loadtests.peers import crash, environments, table
from loadtests.peers.load import Cell, Failed, Form, open_sessions, parse_wrk, sessions_for
from loadtests.peers.rounds import Results
from loadtests.peers.servers import APPS, OURS, TRITON, Uvicorn

PRINTED = """Running 3s test @ http://127.0.0.1:21010
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.20ms    1.10ms   1.94s    77.50%
    Req/Sec    13.90k    14.80    50.00     90.00%
  Latency Distribution
     50%  950.00us
     75%    4.30ms
     90%    1.40s{space}
     99%    1.94s{space}
  41700 requests in 3.00s, 12.26MB read
{errors}Requests/sec:  13900.25
Transfer/sec:      6.05MB
"""


def test_wrk_s_result_is_read_in_any_unit() -> None:
    cell = parse_wrk(PRINTED.format(space=" ", errors=""))
    assert (cell.rate, cell.p50_ms, cell.p99_ms, cell.errors) == pytest.approx((13900.25, 0.95, 1940.0, 0))


def test_replies_that_are_errors_or_missing_are_counted() -> None:
    errors = "  Socket errors: connect 1, read 2, write 0, timeout 3\n  Non-2xx or 3xx responses: 40\n"
    assert parse_wrk(PRINTED.format(space="", errors=errors)).errors == 46


@pytest.mark.parametrize("printed", ["", "unable to connect", PRINTED.replace("13900.25", "0.00")])
def test_a_run_without_replies_is_no_measurement(printed: str) -> None:
    with pytest.raises(Failed, match="wrk"):
        parse_wrk(printed.replace("{space}", "").replace("{errors}", ""))


def test_the_same_step_in_each_rival_s_words() -> None:
    x = "0.0,0.1,0.2,0.3,0.4,0.5,0.6,0.7"
    assert json.loads(OURS.body("7", x, 3)) == {"step": 3, "inputs": [[float(v) for v in x.split(",")]]}
    opening, second = json.loads(TRITON.body("7", x, 0)), json.loads(TRITON.body("7", x, 1))
    assert opening["parameters"] == {"sequence_id": 7, "sequence_start": True}
    assert second["parameters"] == {"sequence_id": 7}
    assert second["inputs"][0]["data"] == opening["inputs"][0]["data"] == [float(v) for v in x.split(",")]
    assert TRITON.outputs({"outputs": [{"data": [1, 2]}]}) == [1.0, 2.0]


def test_a_target_is_met_missed_or_not_measured() -> None:
    results = Results()
    for way, rate in (
        ("Triton, HTTP", 1000.0),
        ("Cellstate, memory:, own port", 1200.0),
        ("LitServe", 100.0),
    ):
        results.http[way][64].append(Cell(rate, 1.0, 2.0))
    results.http["Cellstate, memory:, door"][64] += [Cell(400.0, 1.0, 2.0), Cell(440.0, 1.0, 2.0)]
    found = {it.what: it for it in table.targets(results)}
    assert found["Cellstate, memory:: rate at 64, own port, by Triton's"].met
    door = found["Cellstate, memory:: rate at 64, door, by Triton's"]
    assert (door.found, door.met) == (0.42, False)
    assert found["Cellstate, sqlite:: rate at 64, door, by Triton's"].found is None
    assert any("not measured" in line for line in table.checks(list(found.values())))
    assert "| 0.42 |" in next(
        line for line in table.rates("", results.http, "Triton, HTTP", 64) if "door" in line
    )


def test_every_rival_s_packages_are_pinned() -> None:
    for name in environments.NAMES:
        lines = environments.Environment(name).requirements.read_text().splitlines()
        assert all(line.count("==") == 1 for line in lines)
        assert environments.Environment(name).version("torch") == "2.13.0"


class _ByHand(Uvicorn):
    """With this environment's packages, not with one of its own."""

    def command(self) -> list[str]:
        port = free_port()
        self.ways = {self.name: f"http://127.0.0.1:{port}"}
        command = [sys.executable, "-m", "uvicorn", "byhand:app", "--app-dir", str(APPS)]
        return [*command, "--port", str(port), "--log-level", "warning"]


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="fastapi is not installed")
def test_what_one_writes_by_hand_is_the_same_model_and_forgets_it_in_silence(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "lstm", 2, 16, name="lstm")
    form = Form("/sessions/{id}/steps", '{"inputs":[[{x}]]}')
    server = _ByHand("by hand", form, tmp_path / "by", tmp_path / "lstm")
    try:
        server.start()
        url = server.ways["by hand"]
        open_sessions(url, form, "1", sessions_for(1), "0")  # it wants to be told of none
        sessions = crash.check(server, url, bundle, "2")
        assert max(session.worst for session in sessions) < 1e-5
        outcome = crash.killed(server, "by hand", sessions)
    finally:
        server.kill()
    assert (outcome.sessions, outcome.zero, outcome.kept) == (crash.SESSIONS - 1, crash.SESSIONS - 1, 0)
    assert outcome.again == "a second step"
    assert not server.alive()
