"""What a key may have: requests a second, sessions, bytes; and what a change of the file does to a service
that runs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service import keys
from service.api.access import Access, Bucket
from service.keys import KeysError
from tests.api.keyed import Keyed, keyed, make_key
from tests.api.serving import SERIES, problem_of, save_bundles

ROW = [10.0, 0.5]
BASE = f"/v1/models/{SERIES}"
FIRST = {"step": 0, "inputs": [ROW]}


@pytest.fixture(scope="module", params=["memory:", "sqlite:"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    place = tmp_path_factory.mktemp("quotas")
    store = request.param if request.param == "memory:" else f"sqlite:{place / 'sessions.db'}"
    with keyed(save_bundles(place / "bundles"), place, store=store) as service:
        yield service


def until(true: Callable[[], bool]) -> None:
    """Waits for what a second look at the file brings."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def new_client(service: Keyed, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=service.served.url, timeout=20, trust_env=False, headers=headers)


# Requests a second


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    now = [0.0]
    bucket = Bucket(2.0, 3.0, lambda: now[0])
    assert [bucket.take(1) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert bucket.wait_s == pytest.approx(0.5)
    now[0] = 0.5
    assert (bucket.take(1), bucket.take(1)) == (1, 0)
    now[0] = 100.0
    assert bucket.take(10) == 3, "what is not used is not saved up beyond the burst"
    assert [bucket.reserve() for _ in range(3)] == pytest.approx([0.5, 1.0, 1.5])
    assert bucket.take(1) == 0
    bucket.set(10.0, 1.0)
    assert bucket.wait_s == pytest.approx(0.4)


def test_more_requests_than_the_key_may_send_are_refused_and_counted(service: Keyed) -> None:
    slow = service["slow"]
    requests = [{"session_id": f"s{n}", **FIRST} for n in range(8)]
    results = slow.post(f"{BASE}/steps", json={"requests": requests}).json()["results"]
    assert [r.get("next_step") for r in results] == [1] * 5 + [None] * 3  # the first ones, in order
    assert {r["error"]["code"] for r in results[5:]} == {"quota_exceeded"}
    refused = slow.get(BASE)
    problem = problem_of(refused, 429, "quota_exceeded")
    assert int(refused.headers["retry-after"]) == problem["retry_after_s"] > 900
    assert "0.001 requests a second" in problem["detail"]
    metrics = service["prom"].get("/metrics").text
    assert 'cellstate_key_requests_total{key="slow"} 9.0' in metrics
    assert 'cellstate_key_rejected_total{key="slow",reason="rate"} 4.0' in metrics
    assert service["anna"].get(BASE).status_code == 200


def test_a_stream_beyond_its_rate_is_slowed_down(service: Keyed) -> None:
    key = make_key(service.path, f"pace-{time.monotonic_ns()}", requests_per_second=20.0, burst=1)
    with new_client(service, key) as client:
        until(lambda: client.get("/docs").status_code != 401)
    url = f"{service.served.ws}{BASE}/sessions/paced/stream"
    with connect(url, proxy=None, additional_headers={"authorization": f"Bearer {key}"}) as stream:
        began = time.monotonic()
        for step in range(5):
            stream.send(json.dumps({"step": step, "inputs": [ROW]}))
        assert [json.loads(stream.recv(10))["step"] for _ in range(5)] == list(range(5))
        assert time.monotonic() - began >= 0.19  # four of them waited 50 ms each


# Sessions


def opened(client: httpx.Client, how: str, session_id: str) -> httpx.Response:
    if how == "open":
        return client.post(f"{BASE}/sessions", json={"session_id": session_id})
    if how == "step 0":
        return client.post(f"{BASE}/sessions/{session_id}/steps", json=FIRST)
    if how == "fork":
        return client.post(f"{BASE}/sessions/one/fork", json={"session_id": session_id})
    if how == "bulk":
        body = {"requests": [{"session_id": session_id, **FIRST}]}
        whole = client.post(f"{BASE}/steps", json=body)
        (result,) = whole.json()["results"]
        problem = result.get("error")
        return whole if problem is None else httpx.Response(problem["status"], json=problem)
    snapshot = client.get(f"{BASE}/sessions/one/state").content
    return client.put(f"{BASE}/sessions/{session_id}/state", content=snapshot)


@pytest.mark.parametrize("how", ["open", "step 0", "fork", "import", "bulk"])
def test_no_way_opens_more_sessions_than_the_key_may_have(service: Keyed, how: str) -> None:
    few = service["few"]
    assert opened(few, "step 0", "one").is_success
    assert opened(few, how, "two").is_success
    for _ in range(2):
        refused = opened(few, how, "three")
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert "retry_after_s" in refused.json()
        assert few.get(f"{BASE}/sessions/three").status_code == 404
    problem_of(few.post(f"{BASE}/sessions", json={"session_id": "two"}), 409, "session_exists")
    more = few.post(f"{BASE}/sessions/two/steps", json={"inputs": [ROW]})
    assert more.status_code == 200, "those that are open go on"
    assert service["anna"].post(f"{BASE}/sessions", json={"session_id": "one"}).status_code == 201
    few.delete(f"{BASE}/sessions/two").raise_for_status()
    assert opened(few, how, "three").is_success, "and one that ended makes room"
    for session_id in ("one", "three"):
        few.delete(f"{BASE}/sessions/{session_id}").raise_for_status()
    service["anna"].delete(f"{BASE}/sessions/one").raise_for_status()


def test_a_session_whose_time_ran_out_makes_room(service: Keyed) -> None:
    few = service["few"]
    for session_id in ("a", "b"):
        few.post(f"{BASE}/sessions", json={"session_id": session_id, "ttl_s": 0.05}).raise_for_status()
    until(lambda: few.post(f"{BASE}/sessions", json={"session_id": "c"}).status_code == 201)
    few.delete(f"{BASE}/sessions/c").raise_for_status()


# Bytes


def test_a_body_larger_than_the_keys_is_too_large(service: Keyed) -> None:
    small = service["small"]
    path = f"{BASE}/sessions/small/steps"
    assert small.post(path, json=FIRST).status_code == 200
    body = json.dumps({"step": 1, "inputs": [ROW]}).ljust(201)
    refused = small.post(path, content=body, headers={"content-type": "application/json"})
    assert problem_of(refused, 413, "too_large")["limit"] == 200
    url = f"{service.served.ws}{BASE}/sessions/small/stream"
    with connect(url, proxy=None, additional_headers=service.bearer("small")) as stream:
        for text, expected in ((body, None), (body.rstrip(), 2)):
            stream.send(text)
            assert json.loads(stream.recv(10)).get("next_step") == expected
    small.delete(f"{BASE}/sessions/small").raise_for_status()


# The file changes


def test_a_key_that_is_added_works_and_one_that_is_removed_does_not(service: Keyed) -> None:
    name = f"brief-{time.monotonic_ns()}"
    key = make_key(service.path, name)
    url = f"{service.served.ws}{BASE}/sessions/brief/stream"
    with new_client(service, key) as client:
        until(lambda: client.get(BASE).status_code == 200)
        with connect(url, proxy=None, additional_headers={"authorization": f"Bearer {key}"}) as stream:
            stream.send(json.dumps(FIRST))
            assert json.loads(stream.recv(10))["next_step"] == 1
            keys.remove(service.path, name)
            assert json.loads(stream.recv(10))["error"]["code"] == "unauthorized"
            with pytest.raises(ConnectionClosed) as closed:
                stream.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        problem_of(client.get(BASE), 401, "unauthorized")
        # Who gets a key of that name has its sessions: that is how a key is changed for another
        with new_client(service, make_key(service.path, name)) as again:
            until(lambda: again.get(BASE).status_code == 200)
            assert again.get(f"{BASE}/sessions/brief").json()["next_step"] == 1
    keys.remove(service.path, name)


def test_a_bad_file_leaves_the_keys_as_they_are(service: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    good = service.path.read_text()
    try:
        service.path.write_text('{"version": 1, "keys": [{"name": "anna"}]}')
        until(lambda: "the keys stay as they were" in caplog.text)
        assert "keys[0].sha256: Field required" in caplog.text
        assert service["anna"].get(BASE).status_code == 200
        service.path.unlink()
        until(lambda: "there is no" in caplog.text)
        assert service["anna"].get(BASE).status_code == 200
        errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert len(errors) == 2, "each reason once, not every second"
    finally:
        service.path.write_text(good)


async def test_limits_are_changed_where_a_key_is_known(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = make_key(path, "one", requests_per_second=1.0, burst=2)
    access = Access(str(path))
    changes: list[int] = []
    access.on_change = lambda: changes.append(1)
    header = {b"authorization": b"Bearer " + key.encode()}
    identity = access.identify(header)
    identity.spend()
    identity.spend()
    await access.look()
    assert changes == []
    text = json.loads(path.read_text())
    text["keys"][0] |= {"burst": 100, "sessions": 7}
    path.write_text(json.dumps(text))
    await access.look()
    assert (access.identify(header), access.session_limit("one"), changes) == (identity, 7, [1])
    assert identity.bucket is not None
    assert identity.bucket.take(100) == 0, "what was used stays used"
    text["keys"][0]["namespace"] = "other"
    path.write_text(json.dumps(text))
    await access.look()
    assert identity.revoked, "its streams are of another's sessions now"
    assert access.identify(header).prefix == "other:"


# The file itself

SHA = "0" * 64
GOOD = {"name": "a", "sha256": SHA}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ('{"keys": []}x', "Invalid JSON"),
        ({"version": 2, "keys": []}, "version: Input should be 1"),
        ({"keys": [{"name": "a"}]}, r"keys\[0\].sha256: Field required"),
        ({"keys": [{**GOOD, "sha256": "secret"}]}, r"keys\[0\].sha256: String should match"),
        ({"keys": [{**GOOD, "name": "a:b"}]}, r"keys\[0\].name: String should match"),
        ({"keys": [{**GOOD, "namespace": "A"}]}, r"keys\[0\].namespace: String should match"),
        ({"keys": [{**GOOD, "session": 1}]}, r"keys\[0\].session: Extra inputs"),
        ({"keys": [{**GOOD, "sessions": -1}]}, r"keys\[0\].sessions: Input should be greater"),
        ({"keys": [{**GOOD, "requests_per_second": 0}]}, "requests_per_second: Input should be greater"),
        ({"keys": [{**GOOD, "requests_per_second": True}]}, "requests_per_second: Input should be a valid"),
        ({"keys": [{**GOOD, "role": "root"}]}, r"keys\[0\].role: Input should be 'client' or 'operator'"),
        ({"keys": [GOOD, {**GOOD, "sha256": "1" * 64}]}, "key a is there twice, by its name"),
        ({"keys": [GOOD, {**GOOD, "name": "b"}]}, "key b is there twice, by its sha256"),
    ],
)
def test_a_bad_file_stops_the_start_with_the_place_and_never_the_value(
    text: Any, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(KeysError, match=reason) as refused:
        Access(str(path))
    assert str(path) in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_without_keys_lets_nobody_in_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(KeysError, match="cellstate keys add NAME"):
        Access(str(path))
    path.write_text('{"version": 1, "keys": []}')
    assert Access(str(path)).on
    path.chmod(0o666)
    with pytest.raises(KeysError, match="written by everybody"):
        Access(str(path))


def test_the_file_is_replaced_whole_and_is_its_owners(tmp_path: Path) -> None:
    path, link = tmp_path / "keys.json", tmp_path / "link.json"
    make_key(path, "one")
    link.symlink_to(path)
    was = path.stat().st_ino
    make_key(link, "two")
    assert link.is_symlink()
    assert path.stat().st_ino != was
    assert path.stat().st_mode & 0o777 == 0o600
    assert [key.name for key in keys.load(path)] == ["one", "two"]
    with pytest.raises(KeysError, match="there is a key one already"):
        make_key(path, "one")
    assert sorted(os.listdir(tmp_path)) == ["keys.json", "link.json"]
