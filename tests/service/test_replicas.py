"""Several replicas of the real application over one real store: sessions follow the traffic."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service import listener
from tests.api.serving import SERIES, Served, problem_of, save_bundles, serving
from tests.sessions.stores.redis_servers import Server

LEASE_S = 1.0
SETTLED_S = 1.2  # a session that has moved may move again after that
ROWS = [[10.0 + n % 3, 0.5 - n % 2 / 10] for n in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles")
    save_bundles(directory)
    return directory


@contextmanager
def running(path: Path) -> Iterator[Server]:
    """A Redis server."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = Server(path, "--appendonly", "yes")
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store's address."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path_factory.mktemp('sqlite') / 'sessions.db'}"
        return
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield f"{server.url}/0"


class Replica:
    """A replica's API, as its clients see it."""

    def __init__(self, where: Served | str) -> None:
        self.url = where if isinstance(where, str) else where.url
        self.http = httpx.Client(base_url=f"{self.url}/v1/models/{SERIES}", timeout=30, trust_env=False)

    def close(self) -> None:
        self.http.close()

    def step(self, session_id: str, step: int, count: int = 1) -> httpx.Response:
        body = {"step": step, "inputs": ROWS[step : step + count]}
        return self.http.post(f"/sessions/{session_id}/steps", json=body)

    def owner(self, session_id: str) -> str:
        """The address of the replica that has a session."""
        facts = self.http.get(f"/sessions/{session_id}").raise_for_status().json()
        return str(facts["direct_url"])

    def stream(self, session_id: str, query: str = "") -> ClientConnection:
        path = f"/v1/models/{SERIES}/sessions/{session_id}/stream{query}"
        return connect(self.url.replace("http", "ws") + path, proxy=None)


@pytest.fixture(scope="module")
def pair(store: str, models: Path) -> Iterator[list[Replica]]:
    """Two replicas, in threads."""
    with ExitStack() as stack:
        paths, replicas = sorted(models.iterdir()), []
        for _ in range(2):
            served = stack.enter_context(serving(paths, store=store, lease_s=LEASE_S))
            replicas.append(stack.enter_context(closing(Replica(served))))
        yield replicas


@pytest.fixture(scope="module")
def expected(pair: list[Replica]) -> list[list[float]]:
    """The outputs of ROWS, from zeros."""
    reply = pair[0].http.post("/predict", json={"inputs": ROWS}).raise_for_status().json()
    rows: list[list[float]] = reply["outputs"]
    return rows


def same(reply: Any, expected: list[list[float]]) -> None:
    """The reply is that of its steps."""
    rows = expected[reply["step"] : reply["next_step"]]
    assert [pytest.approx(row, rel=1e-5) for row in rows] == reply["outputs"]


def say(stream: ClientConnection, step: int) -> Any:
    stream.send(json.dumps({"step": step, "inputs": [ROWS[step]]}))
    return json.loads(stream.recv(timeout=30))


def test_a_session_follows_the_traffic(pair: list[Replica], expected: list[list[float]]) -> None:
    one, two = pair
    same(one.step("moves", 0).raise_for_status().json(), expected)
    same(two.step("moves", 1).raise_for_status().json(), expected)
    assert two.owner("moves") == one.url  # it has only just moved there: passed on
    assert two.step("moves", 0).json()["replayed"]
    time.sleep(SETTLED_S)
    same(two.step("moves", 2).raise_for_status().json(), expected)
    assert one.owner("moves") == two.url
    same(one.step("moves", 3).raise_for_status().json(), expected)
    state = one.http.get("/sessions/moves/state").raise_for_status().content
    assert state == two.http.get("/sessions/moves/state").raise_for_status().content
    problem_of(one.step("moves", 9), 409, "step_conflict")
    assert one.http.delete("/sessions/moves").status_code == 204
    problem_of(two.step("moves", 4), 404, "session_not_found")


def test_a_bulk_request_is_passed_on_by_owner(pair: list[Replica], expected: list[list[float]]) -> None:
    one, two = pair
    names = [f"bulk-{n}" for n in range(6)]
    for n, name in enumerate(names[:4]):
        pair[n % 2].step(name, 0).raise_for_status()
    time.sleep(SETTLED_S)
    requests = [{"session_id": name, "step": 1, "inputs": [ROWS[1]]} for name in names]
    requests[5]["step"], requests[5]["inputs"] = 0, [ROWS[0]]
    results = two.http.post("/steps", json={"requests": requests}).raise_for_status().json()["results"]
    for name, result in zip(names[:4], results[:4], strict=True):
        assert result["session_id"] == name
        same(result, expected)
    assert results[4]["error"]["code"] == "session_not_found"
    same(results[5], expected)
    assert [two.owner(name) for name in names[:4]] == [one.url, two.url] * 2


def test_a_session_in_memory_alone_stays_and_can_be_reached(
    pair: list[Replica], expected: list[list[float]]
) -> None:
    one, two = pair
    one.http.post("/sessions", json={"session_id": "alone", "durability": "none"}).raise_for_status()
    one.step("alone", 0).raise_for_status()
    time.sleep(SETTLED_S)
    same(two.step("alone", 1).raise_for_status().json(), expected)
    assert two.owner("alone") == one.url


def test_a_session_goes_back_at_any_replica(pair: list[Replica], expected: list[list[float]]) -> None:
    one, two = pair
    one.step("back", 0, 5).raise_for_status()
    facts = two.http.post("/sessions/back/rewind", json={"to_step": 2}).raise_for_status().json()
    assert (facts["next_step"], facts["direct_url"]) == (2, one.url)
    same(two.step("back", 2).raise_for_status().json(), expected)
    fork = two.http.post("/sessions/back/fork", json={"session_id": "branch", "at_step": 2}).json()
    assert fork["next_step"] == 2
    same(one.step("branch", 2).raise_for_status().json(), expected)


def test_strangers_find_no_handover(pair: list[Replica]) -> None:
    one, _ = pair
    one.step("mine", 0).raise_for_status()
    for headers in ({}, {"x-cellstate-peer": ""}, {"x-cellstate-peer": "guess"}):
        problem_of(one.http.post("/handover", json={"session_id": "mine"}, headers=headers), 404, "not_found")
    assert one.owner("mine") == one.url


def test_a_stream_goes_on_where_it_broke(pair: list[Replica], expected: list[list[float]]) -> None:
    one, two = pair
    with one.stream("broken") as stream:
        for step in range(4):
            same(say(stream, step), expected)
    with two.stream("broken", "?resume=2") as stream:
        for step in (2, 3):
            reply = json.loads(stream.recv(timeout=30))
            assert (reply["step"], reply["replayed"]) == (step, True)
            same(reply, expected)
        same(say(stream, 4), expected)
    with two.stream("broken", "?resume=9") as stream:
        assert json.loads(stream.recv(timeout=30))["error"]["expected_step"] == 5
        same(say(stream, 5), expected)
    with two.stream("broken", "?resume=x") as stream:
        assert json.loads(stream.recv(timeout=30))["error"]["field"] == "resume"
    with one.stream("fresh", "?resume=0") as stream:
        same(say(stream, 0), expected)


def test_a_stream_stays_while_its_session_goes_and_comes(
    pair: list[Replica], expected: list[list[float]]
) -> None:
    one, two = pair
    with one.stream("away") as stream:
        same(say(stream, 0), expected)
        time.sleep(SETTLED_S)
        same(two.step("away", 1).raise_for_status().json(), expected)
        assert one.owner("away") == two.url
        same(say(stream, 2), expected)  # passed on
        time.sleep(SETTLED_S)
        same(say(stream, 3), expected)
        assert two.owner("away") == one.url
        two.http.delete("/sessions/away").raise_for_status()
        assert say(stream, 4)["error"]["code"] == "session_not_found"


# Processes that end, and stores that do


@contextmanager
def process(models: Path, store: str) -> Iterator[tuple[Replica, subprocess.Popen[bytes]]]:
    """A replica in a process of its own."""
    with listener.bind("127.0.0.1", [0]) as free:
        port = free.getsockname()[1]
    flags = {"port": port, "models": models, "store": store, "lease-s": LEASE_S, "device": "cpu"}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "service.cli", "serve", "--local", *arguments, "--precision", "fp32"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ})
    replica = Replica(f"http://127.0.0.1:{port}")
    try:
        eventually(lambda: httpx.get(f"{replica.url}/readyz", trust_env=False).is_success, 60)
        yield replica, started
    finally:
        replica.close()
        started.kill()
        started.wait()


def eventually(true: Callable[[], bool], seconds: float) -> None:
    """Waits until it is true; no answer is not."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_a_stopped_replica_says_where_its_streams_are_and_a_killed_one_is_followed(
    pair: list[Replica], store: str, models: Path, expected: list[list[float]]
) -> None:
    one, _ = pair
    with process(models, store) as (own, started):
        own.step("killed", 0, 3).raise_for_status()
        started.kill()
        began = time.monotonic()
        reply = one.step("killed", 3)
        if reply.status_code == 503:  # its owner did not answer yet
            eventually(lambda: one.step("killed", 3).is_success, 5)
            reply = one.step("killed", 3)
        same(reply.json(), expected)
        assert time.monotonic() - began < LEASE_S + 2
    with process(models, store) as (own, started), own.stream("stopped") as stream:
        same(say(stream, 0), expected)
        started.send_signal(signal.SIGTERM)
        assert json.loads(stream.recv(timeout=30))["error"]["code"] == "unavailable"
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, '{"next_step":1}')
        began = time.monotonic()
        same(one.step("stopped", 1).raise_for_status().json(), expected)
        assert time.monotonic() - began < LEASE_S


def test_a_store_that_dies_is_waited_for(tmp_path: Path, models: Path) -> None:
    with (
        running(tmp_path / "redis") as server,
        serving(sorted(models.iterdir()), store=f"{server.url}/0", lease_s=LEASE_S) as first,
        serving(sorted(models.iterdir()), store=f"{server.url}/0", lease_s=LEASE_S) as second,
        closing(Replica(first)) as one,
        closing(Replica(second)) as two,
    ):
        one.step("a", 0, 2).raise_for_status()
        two.step("b", 0, 2).raise_for_status()
        server.kill()
        for replica, name in ((one, "a"), (two, "b"), (two, "a"), (one, "new")):
            response = replica.step(name, 0 if name == "new" else 2)
            assert response.status_code == 503
            assert "retry-after" in response.headers
        time.sleep(LEASE_S)
        assert one.step("a", 2).status_code == 503
        asyncio.run(server.start())
        for replica, name in ((two, "a"), (one, "b"), (one, "a")):
            eventually(lambda replica=replica, name=name: replica.step(name, 2).is_success, 10)  # type: ignore[misc]
            assert replica.step(name, 2).json()["replayed"]
