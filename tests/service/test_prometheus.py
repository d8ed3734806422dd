"""Three replicas on Ray and a real Prometheus that finds them by itself: it counts what clients did, to the
request and to the step; and goes on when a replica is killed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import yaml

from loadtests.bundles import random_bundle
from loadtests.chaos import tree
from tests.conftest import free_port, start, wait_ready
from tests.deploy.prometheus import DEPLOY, SHIPPED, Prometheus, eventually, prometheus
from tests.service.traffic import ROUTES, STREAM, Traffic

pytestmark = pytest.mark.ray

MODEL, REPLICAS = "tiny", 3
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "cellstate.json"
#: What a machine without a GPU has no samples of
ABSENT_HERE = ("cellstate_gpu_memory_bytes",)


@dataclass(frozen=True, slots=True)
class Watched:
    """The service, its processes, and the Prometheus that watches it."""

    url: str
    pid: int
    prometheus: Prometheus

    def targets(self) -> dict[str, str]:
        """The addresses of the replicas that live, by name."""
        groups = httpx.get(f"{self.url}/metrics/targets", trust_env=False).raise_for_status().json()
        found = {group["labels"]["replica"]: group["targets"][0] for group in groups}
        assert found.pop("door") == self.url.removeprefix("http://")
        return found

    def doors(self) -> list[str]:
        """The front door, then each replica's own port."""
        return [self.url, *(f"http://{address}" for address in self.targets().values())]

    def scraped(self) -> bool:
        """Whether Prometheus has all of them."""
        return self.prometheus.targets() == {*self.targets(), "door"} and len(self.targets()) == REPLICAS


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    directory = tmp_path_factory.mktemp("watched")
    random_bundle(directory / "models" / MODEL, layers=1, hidden=8, inputs=2, name=MODEL)
    port = free_port()
    flags = {
        "models": directory / "models",
        "port": port,
        "replicas": REPLICAS,
        "store": f"sqlite:{directory / 'sessions.db'}",
    }
    process = start(*(text for name, value in flags.items() for text in (f"--{name}", str(value))))
    try:
        wait_ready(process, url := f"http://127.0.0.1:{port}")
        with prometheus(directory, url) as server:
            found = Watched(url, process.pid, server)
            eventually(found.scraped, 120, lambda: (found.targets(), server.targets()))
            yield found
    finally:
        process.terminate()
        process.communicate(timeout=60)


def counted(server: Prometheus, expression: str, *labels: str) -> dict[Any, int]:
    """The samples of an expression by the values of these labels, without those that are 0."""
    found = {
        tuple(metric[label] for label in labels): int(value) for metric, value in server.query(expression)
    }
    return {key[0] if len(key) == 1 else key: value for key, value in found.items() if value}


def run(traffic: Traffic, *parts: Callable[[], Awaitable[None]]) -> None:
    """The parts, all at once."""

    async def all_() -> None:
        try:
            await asyncio.gather(*(part() for part in parts))
        finally:
            await traffic.close()

    asyncio.run(all_())


def test_every_request_and_every_step_is_counted_once(watched: Watched) -> None:
    server, traffic = watched.prometheus, Traffic(MODEL, watched.doors())
    run(
        traffic,
        lambda: traffic.singles("single", sessions=12, steps=10),
        lambda: traffic.bulk("bulk", bodies=6, items=20),
        *(lambda n=n: traffic.stream(f"stream-{n}", 10) for n in range(4)),
        lambda: traffic.others("other", 5),
    )
    unknown = httpx.get(f"{watched.url}/v1/models/nobody", trust_env=False)
    assert unknown.status_code == 404
    traffic.answers["none", 404] += 1  # at the door itself
    traffic.codes["not_found"] += 1

    routes = "|".join(map(re.escape, ROUTES)).replace("\\", "\\\\")
    told = f'sum by (route, status) (cellstate_requests_total{{route=~"{routes}"}})'
    expected = {(route, str(status)): count for (route, status), count in traffic.answers.items()}
    eventually(lambda: counted(server, told, "route", "status") == expected, 15, lambda: (
        {k: (v, expected.get(k)) for k, v in counted(server, told, "route", "status").items()}
    ))  # fmt: skip

    # What one replica did for another is counted at both: neither may be from before
    done = datetime.now(UTC)
    eventually(lambda: server.scraped_since(done), 15)

    def total(name: str, by: str) -> dict[str, int]:
        return counted(server, f"sum by ({by}) ({name})", by)

    assert total("cellstate_steps_total", "model") == {MODEL: traffic.steps}
    assert total("cellstate_deduplicated_steps_total", "model") == {MODEL: traffic.again}
    assert total("cellstate_predicted_steps_total", "model") == {MODEL: traffic.predicted}
    assert total("cellstate_bulk_items_total", "status") == {str(k): v for k, v in traffic.items.items()}
    assert total('cellstate_errors_total{code!="unavailable"}', "code") == {
        code: count for code, count in traffic.codes.items() if code != "unavailable"
    }
    assert total("cellstate_streams_opened_total", "model") == {MODEL: traffic.streams}
    assert server.value("sum(cellstate_streams)") == 0
    seconds = server.value(f'sum(cellstate_request_seconds_count{{route="{STREAM}"}})')
    assert seconds == sum(count for (route, _), count in traffic.answers.items() if route == STREAM)
    # Three replicas shared the work, and some of it went from one to another
    assert len(server.query("cellstate_steps_total > 0")) == REPLICAS
    assert server.value("sum(cellstate_peer_requests_total)") > 0
    assert server.value("sum(cellstate_engine_steps_total)") >= traffic.steps + traffic.predicted
    open_now = counted(server, "sum by (model) (cellstate_sessions)", "model")
    opened, ended = (
        server.value(f"sum({name})")
        for name in ("cellstate_sessions_opened_total", "cellstate_sessions_ended_total")
    )
    assert open_now == {MODEL: opened - ended} == {MODEL: 12 + 20 + 4}


def test_a_replica_that_is_killed_is_replaced_and_rates_stay_right(watched: Watched) -> None:
    server, before = watched.prometheus, watched.targets()
    replicas = tree.matching(watched.pid, lambda c: c.startswith(f"ray::ServeReplica:model-{MODEL}"))
    assert len(replicas) == REPLICAS
    tree.send(replicas[0], signal.SIGKILL)
    # Seconds at the door; what takes longer is Ray, which starts the new one
    eventually(lambda: len(watched.targets().keys() & before.keys()) == REPLICAS - 1, 30)
    eventually(watched.scraped, 180, lambda: (before, watched.targets(), server.targets()))
    after = watched.targets()
    assert len(after.keys() - before.keys()) == 1

    traffic, began = Traffic(MODEL, watched.doors()), time.monotonic()
    run(traffic, lambda: traffic.singles("after", sessions=12, steps=25))
    eventually(lambda: server.value('sum(cellstate_steps_total{replica!="door"})') >= traffic.steps, 15)
    # So that the last scrapes of the window see nothing new, as its first; and that it is long
    time.sleep(14)
    window = f"{int(time.monotonic() - began) + 4}s"
    for name, expected in (
        ("cellstate_steps_total", traffic.steps),
        ("cellstate_deduplicated_steps_total", traffic.again),
    ):
        found = server.value(f"sum(increase({name}[{window}]))")
        # Prometheus extrapolates to the edges of the window: by less than two scrapes, of twenty
        assert found == pytest.approx(expected, rel=0.15), name
    assert server.query('{__name__=~"cellstate_.*_total"} < 0') == []
    names = {m["__name__"] for m, _ in server.query('{__name__=~"cellstate_.*_total"}')}
    for name in names:
        assert server.query(f"rate({name}[1m]) < 0") == []


# What is shown and what alarms: every expression on the real thing


def expressions() -> dict[str, str]:
    """Of the dashboard and of the rules, by where they are."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shown = {
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in panels
        for target in panel.get("targets", ())
    }
    return {**shown, **rules_shipped()}


def rules_shipped() -> dict[str, str]:
    """The expressions of the rules by their names."""
    texts = [path.read_text() for path in sorted((SHIPPED / "rules").glob("*.yml"))]
    groups = [group for text in texts for group in yaml.safe_load(text)["groups"]]
    return {rule.get("alert") or rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


SELECTOR = re.compile(
    r"\b((?:model_route:|model:)?(?:cellstate|process|prometheus)_[a-z0-9_]+(?::[a-z0-9_]+)?|up)(\{[^}]*\})?"
)


def substituted(expression: str) -> str:
    expression = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$(model|version|replica)\b", ".*", expression)


def test_every_expression_runs_and_what_it_selects_is_there(watched: Watched) -> None:
    server = watched.prometheus
    eventually(lambda: bool(server.query("model:cellstate_errors:ratio1h")), 30)
    empty = {}
    for where, expression in expressions().items():
        expression = substituted(expression)
        found = server.query(expression)
        if not found and not re.search(r"[<>=]=? [\d.]+|absent", expression):  # but an alert is silent
            empty[where] = expression
        for name, labels in SELECTOR.findall(expression):
            if name not in ABSENT_HERE and not server.query(f"{name}{labels}"):
                empty[f"{where}: {name}{labels}"] = expression
    assert {w: e for w, e in empty.items() if not any(name in e for name in ABSENT_HERE)} == {}


def test_the_shipped_rules_are_evaluated_without_an_error(watched: Watched) -> None:
    groups = watched.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == rules_shipped().keys()
    assert [rule for rule in rules if rule["health"] != "ok"] == []


def test_the_service_says_what_runs_and_that_it_is_well(watched: Watched) -> None:
    server = watched.prometheus
    builds = {metric["replica"]: metric for metric, _ in server.query("cellstate_build_info")}
    assert {"version", "python", "ray"} <= builds.pop("door").keys()
    assert len(builds) == REPLICAS
    assert all(
        {"version", "torch", "device", "precision", "store"} <= build.keys() for build in builds.values()
    )
    assert server.value("min(cellstate_ready)") == 1
    assert server.value("max(cellstate_draining)") == 0
    assert server.value(f'cellstate_replicas{{model="{MODEL}"}}') == REPLICAS
    assert len(server.query("cellstate_store_up == 1")) == REPLICAS
