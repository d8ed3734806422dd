"""The service on Ray as its users meet it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from loadtests.bundles import random_bundle
from model.bundle import save
from tests.conftest import RayService, below, free_port, members, shipped_or_made, start, wait_ready

pytestmark = pytest.mark.ray


def first_body(service: RayService, model: str) -> dict[str, object]:
    """The body of the first request that the service proposes for a model."""
    line = next(line for line in service.output.splitlines() if f"/v1/models/{model}/" in line)
    arguments = shlex.split(line)
    body: dict[str, object] = json.loads(arguments[arguments.index("-d") + 1])
    return body


def test_the_first_requests_work_as_they_are_printed(ray_service: RayService) -> None:
    commands = [line for line in ray_service.output.splitlines() if line.strip().startswith("curl")]
    assert len(commands) == len(ray_service.models)
    for command in commands:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["session_id"] == "demo"


def test_the_door_and_the_replicas_own_port_are_one_session(ray_service: RayService) -> None:
    model = ray_service.models[0]
    path = f"/v1/models/{model}/sessions/both/steps"
    body = first_body(ray_service, model)
    one = httpx.post(ray_service.url + path, json=body).json()
    again = httpx.post(ray_service.direct_url + path, json=body).json()
    assert (one["replayed"], again["replayed"]) == (False, True)
    assert one.get("outputs") == again.get("outputs")


async def test_a_stream_goes_through_the_door(ray_service: RayService) -> None:
    model = ray_service.models[0]
    url = ray_service.url.replace("http", "ws", 1) + f"/v1/models/{model}/sessions/streamed/stream"
    body = first_body(ray_service, model)
    async with connect(url, proxy=None) as stream:
        await stream.send(json.dumps(body))
        assert json.loads(await stream.recv())["step"] == 0


def test_the_root_lists_the_models_and_is_ready(ray_service: RayService) -> None:
    assert httpx.get(f"{ray_service.url}/readyz").status_code == 200
    assert httpx.get(f"{ray_service.url}/healthz").status_code == 200
    assert "text/html" in httpx.get(f"{ray_service.url}/docs").headers["content-type"]
    assert httpx.get(f"{ray_service.url}/openapi.json").json()["openapi"].startswith("3.1")


def test_the_doors_metrics_name_the_replica_of_each_sample(ray_service: RayService) -> None:
    text = httpx.get(f"{ray_service.url}/metrics").text
    families = [f for f in text_string_to_metric_families(text) if f.name.startswith("cellstate_")]
    assert families
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    replicas = {sample.labels["replica"] for family in families for sample in family.samples}
    assert len(replicas) == len(ray_service.models) + 1  # and the door's own


@pytest.mark.parametrize("path", ["/nothing", "/v1/models/none", "/v1/models/none/sessions/a/steps"])
def test_an_unknown_path_is_a_problem_at_the_door(ray_service: RayService, path: str) -> None:
    reply = httpx.get(ray_service.url + path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"


def test_serves_own_pages_stay_below_their_path(ray_service: RayService) -> None:
    assert httpx.get(f"{ray_service.url}/-/healthz").text == "success"


def test_the_replicas_listen_on_loopback(ray_service: RayService) -> None:
    assert {urlsplit(url).hostname for url in ray_service.direct_urls.values()} == {"127.0.0.1"}


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_start_leaves_no_process(
    tmp_path_factory: pytest.TempPathFactory, again: bool
) -> None:
    models = shipped_or_made(tmp_path_factory.mktemp("bundles"))
    process = start("--models", str(models), "--port", str(free_port()))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("starting Ray")
    sessions = below(process.pid)
    while len(members(sessions)) < 4:  # Ray is half there
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    if again:
        os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert members(sessions) == []


def test_a_new_version_is_deployed_while_a_session_lives(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "models" / "tiny", layers=1, hidden=8, inputs=2, name="tiny")
    weights = {name: tensor * 0.5 for name, tensor in bundle.weights.items()}
    save(replace(bundle, version="2", weights=weights), tmp_path / "tiny-2")
    port = free_port()
    deploy = [sys.executable, "-m", "service.cli", "deploy", str(tmp_path / "tiny-2"), "--port", str(port)]
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    process = start("--models", str(tmp_path / "models"), "--port", str(port), "--store", store)
    try:
        wait_ready(process, url := f"http://127.0.0.1:{port}")
        session = f"{url}/v1/models/tiny/sessions/a"
        first = httpx.post(f"{session}/steps", json={"step": 0, "inputs": [[0.5, -0.5]]})
        assert first.status_code == 200
        assert httpx.get(session).json()["version"] == "0"
        done = subprocess.run(deploy, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "version 2" in done.stdout
        facts = _get(session)
        assert (facts["version"], facts["next_step"]) == ("2", 1)
        again = subprocess.run(deploy, capture_output=True, text=True, timeout=120)
        assert (again.returncode, again.stderr) == (2, "cellstate: tiny: these weights are served already\n")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    gone = subprocess.run(deploy, capture_output=True, text=True, timeout=120)
    assert gone.returncode == 2
    assert "no `cellstate serve` of yours runs" in gone.stderr


def _get(url: str) -> dict[str, object]:
    """What is there, once the door knows the new replica."""
    while (reply := httpx.get(url)).status_code == 503:
        time.sleep(0.1)
    facts: dict[str, object] = reply.raise_for_status().json()
    return facts
