"""Keys as operators and clients meet them: the command, the running service, its logs, and the front door."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from loadtests.bundles import random_bundle
from service import keys
from tests.conftest import START_S, free_port, members, start

MODEL = "tiny"
FIRST = {"step": 0, "inputs": [[0.5, -0.5]]}


def cellstate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def added(path: Path, name: str, *arguments: str) -> str:
    done = cellstate("keys", "add", name, "--keys", str(path), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    random_bundle(tmp_path / "models" / MODEL, layers=1, hidden=8, inputs=2, name=MODEL)
    return tmp_path / "models"


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`cellstate serve`, ready. The list is what it has said; at the end all of it."""
    process = start(*arguments)
    said: list[str] = []
    assert process.stdout is not None
    try:
        while not any("A first request" in line for line in said):
            line = process.stdout.readline()
            assert line, f"the service ended: {said}"
            said.append(line)
        said.append(process.stdout.readline())
        yield process, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        rest, _ = process.communicate(timeout=90)
        said.append(rest)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# The command


def test_a_key_is_shown_once_and_what_is_kept_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    done = cellstate(
        "keys", "add", "plant", "--sessions", "9", "--requests-per-second", "2.5", "--models", "a,b",
        CELLSTATE_KEYS=str(path),
    )  # fmt: skip
    key = done.stdout.strip()
    assert (done.returncode, done.stdout) == (0, key + "\n")
    assert key.startswith(keys.PREFIX)
    assert len(key) == len(keys.PREFIX) + 43  # 256 bits
    assert key not in done.stderr + path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    (kept,) = keys.load(path)
    assert (kept.sessions, kept.requests_per_second, kept.models) == (9, 2.5, ["a", "b"])
    assert kept.sha256 == keys.digest(key.encode()).hex()
    listed = cellstate("keys", "list", "--keys", str(path)).stdout
    assert listed.startswith("plant  client  20")
    assert "models=a,b  sessions=9  requests_per_second=2.5" in listed
    assert key not in listed
    assert kept.sha256 not in listed


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["add", "plant"], "there is a key plant already"),
        (["add", "Plant"], "name: String should match"),
        (["add", "a:b"], "name: String should match"),
        (["add", "b", "--role", "root"], "role: Input should be 'client' or 'operator'"),
        (["add", "b", "--sessions", "-1"], "sessions: Input should be greater"),
        (["add", "b", "--requests-per-second", "nan"], "requests_per_second: Input should be"),
        (["remove", "nobody"], "there is no key nobody; there is plant"),
    ],
)
def test_what_can_not_be_done_is_told_and_changes_nothing(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    added(path, "plant")
    before = path.read_bytes()
    done = cellstate("keys", *arguments, "--keys", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert path.read_bytes() == before


def test_the_file_must_be_named_and_be_there(tmp_path: Path) -> None:
    assert "which file?" in cellstate("keys", "list").stderr
    missing = tmp_path / "none" / "keys.json"
    for what in (["list"], ["remove", "a"], ["add", "a"]):
        done = cellstate("keys", *what, "--keys", str(missing))
        assert done.returncode == 2
        assert done.stderr.startswith("cellstate: ")
    assert not missing.parent.exists()


# A service


@pytest.mark.parametrize("way", [["--local"], []])
def test_a_service_does_not_start_with_a_bad_file(way: list[str], tmp_path: Path, models: Path) -> None:
    path = tmp_path / "keys.json"
    done = cellstate("serve", *way, "--models", str(models), "--keys", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "cellstate keys add NAME" in done.stderr
    path.write_text('{"keys": [{"name": "a", "key": "in the clear"}]}')
    done = cellstate("serve", *way, "--models", str(models), "--keys", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "keys[0].sha256: Field required" in done.stderr
    assert "in the clear" not in done.stderr


def test_an_open_service_on_a_network_is_warned_of(tmp_path: Path, models: Path) -> None:
    arguments = ["--local", "--models", str(models), "--port", str(free_port()), "--host", "0.0.0.0"]
    with running(*arguments) as (_, said):
        pass
    assert "warning: 0.0.0.0 is reachable from outside and there are no keys" in "".join(said)
    added(tmp_path / "keys.json", "plant")
    with running(*arguments, "--keys", str(tmp_path / "keys.json")) as (_, said):
        pass
    assert "there are no keys" not in "".join(said)
    assert "warning: keys go over the network in the clear on 0.0.0.0" in "".join(said)


def used(url: str, good: str, bad: str, operator: str) -> str:
    """Sends these keys in every way, also such as are errors. The exposition."""
    path = f"{url}/v1/models/{MODEL}/sessions/one"
    for key in (good, bad, operator):
        for method, where, body in (
            ("POST", f"{path}/steps", json.dumps(FIRST)),
            ("POST", f"{path}/steps", json.dumps({**FIRST, "step": 9})),
            ("POST", f"{path}/steps", "{not json"),
            ("GET", f"{url}/v1/models/none", ""),
            ("GET", f"{url}/nothing", ""),
            ("GET", f"{url}/metrics", ""),
        ):
            httpx.request(method, where, content=body, headers=bearer(key), trust_env=False)
        httpx.get(path, headers={"authorization": key}, trust_env=False)
        socket = path.replace("http", "ws", 1) + "/stream"
        for how in (
            {"additional_headers": bearer(key)},
            {"subprotocols": ["cellstate", f"bearer.{key}"]},
        ):
            arguments: dict[str, Any] = {"proxy": None, **how}
            if key == good:
                with connect(socket, **arguments) as stream:
                    stream.send("{not json")
                    assert "bad_request" in str(stream.recv(10))
            else:
                with pytest.raises(InvalidStatus):
                    connect(socket, **arguments)
    metrics = httpx.get(f"{url}/metrics", headers=bearer(operator), trust_env=False)
    assert metrics.status_code == 200
    return metrics.text


def secrets_in(text: str, keys_: list[str]) -> list[str]:
    """Those of the keys, or their digests, that a text has."""
    digests = [keys.digest(key.encode()).hex() for key in keys_]
    return [secret for secret in (*keys_, *digests) if secret in text]


def test_no_key_is_in_a_log_or_the_metrics(tmp_path: Path, models: Path) -> None:
    path, port = tmp_path / "keys.json", free_port()
    given = [added(path, "plant"), "cellstate_made_up", added(path, "prom", "--role", "operator")]
    arguments = ["--local", "--models", str(models), "--port", str(port), "--keys", str(path)]
    with running(*arguments, "--log-level", "debug") as (_, said):
        metrics = used(f"http://127.0.0.1:{port}", *given)
    assert 'cellstate_key_requests_total{key="plant"}' in metrics
    assert 'cellstate_unauthorized_total{reason="unknown"}' in metrics
    assert secrets_in(metrics + "".join(said), given) == []


def test_no_key_is_in_what_the_servers_log_at_their_lowest_level(tmp_path: Path, models: Path) -> None:
    """The same with everything logged that uvicorn, websockets and httpx have to say."""
    path, port = tmp_path / "keys.json", free_port()
    given = [added(path, "plant"), "cellstate_made_up", added(path, "prom", "--role", "operator")]
    program = (
        "import logging, sys; logging.basicConfig(level=1); from service.cli import main; sys.exit(main())"
    )
    arguments = ["serve", "--local", "--models", str(models), "--port", str(port), "--keys", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    said = ""
    try:
        while "A first request" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        used(f"http://127.0.0.1:{port}", *given)
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    assert "authorization" in (said + rest).lower(), "the handshakes are logged, so this can fail"
    assert secrets_in(said + rest, given) == []


# Through the front door


@pytest.mark.ray
def test_the_front_door_asks_for_keys_too(tmp_path: Path, models: Path) -> None:
    path, port = tmp_path / "keys.json", free_port()
    given = [added(path, "plant"), "cellstate_made_up", added(path, "prom", "--role", "operator")]
    good, bad, operator = given
    other = added(path, "other")
    url = f"http://127.0.0.1:{port}"
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    arguments = ["--models", str(models), "--port", str(port), "--store", store, "--replicas", "2"]
    with (
        running(*arguments, "--keys", str(path), "--log-level", "debug") as (process, said),
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        first = shlex.split(said[-1].replace("$KEY", good))
        done = subprocess.run(first, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["session_id"] == "demo"
        # The root's paths
        for where, who in (("/v1/models", good), ("/metrics", operator)):
            refused = client.get(where)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get(where, headers=bearer(bad)).status_code == 401
            assert client.get(where, headers=bearer(who)).status_code == 200, where
        assert client.get("/metrics", headers=bearer(good)).status_code == 403
        assert [m["name"] for m in client.get("/v1/models", headers=bearer(good)).json()["models"]] == [MODEL]
        assert MODEL not in client.get("/openapi.json").text + client.get("/v1/models/none").text
        assert MODEL in client.get("/openapi.json", headers=bearer(good)).text
        assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200
        # A session at both replicas, by the door and by their own ports: passed on, or handed over
        session = f"/v1/models/{MODEL}/sessions/both"
        assert client.post(f"{session}/steps", json=FIRST, headers=bearer(good)).json()["next_step"] == 1
        replicas = replicas_behind(client, good, 2)
        for step, at in enumerate([*replicas, *replicas], 1):
            body = {"requests": [{"session_id": "both", "step": step, "inputs": FIRST["inputs"]}]}
            reply = httpx.post(
                f"{at}/v1/models/{MODEL}/steps", json=body, headers=bearer(good), trust_env=False
            )
            (result,) = reply.json()["results"]
            assert (result["session_id"], result["next_step"]) == ("both", step + 1)
            one = httpx.get(at + session, headers=bearer(good), trust_env=False).json()
            assert (one["session_id"], one["next_step"]) == ("both", step + 1)
            for stranger, status in ((other, 404), (bad, 401)):
                told = httpx.get(at + session, headers=bearer(stranger), trust_env=False)
                assert told.status_code == status
        # And nothing of it is written anywhere
        metrics = used(url, *given)
        about = next(line for line in members(_sessions(process)) if "haproxy" in line and " -f " in line)
        directory = Path(about.split(" -f ")[1].split()[0]).parent
        files = [file for file in directory.rglob("*") if file.is_file() and file.stat().st_size < 50_000_000]
        logs = "".join(file.read_text(errors="replace") for file in files)
        assert len(files) > 5
    assert secrets_in(metrics + logs + "".join(said), [*given, other]) == []


def replicas_behind(door: httpx.Client, key: str, count: int) -> set[str]:
    """The own addresses of the replicas behind the door, which learns of one a while after it is ready."""
    found: set[str] = set()
    deadline = time.monotonic() + START_S
    while len(found) < count:
        opened = door.post(f"/v1/models/{MODEL}/sessions", headers=bearer(key)).json()
        found.add(opened["direct_url"])
        assert time.monotonic() < deadline, f"the door leads to {found} alone"
    return found


def _sessions(process: subprocess.Popen[str]) -> set[int]:
    from tests.conftest import below

    return below(process.pid)
