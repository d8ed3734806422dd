"""With keys: who may what, and that nobody learns anything of another's sessions, on any route.

The routes are those of the OpenAPI document: one that is added is tested here or fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.api.access import rule_of
from service.api.operations import OPERATIONS
from tests.api.keyed import WHO, Keyed, keyed
from tests.api.serving import SERIES, TEXT, problem_of, save_bundles

ROW = [10.0, 0.5]
BASE = f"/v1/models/{SERIES}"
OTHERS = "pump-1"  # a session of anna's, at step 3
UNKNOWN = "pump-2"  # nobody's

#: Paths that name a session: their bodies, some of them wrong in a way that depends on the session
OF_A_SESSION: dict[str, list[dict[str, Any] | bytes | None]] = {
    "getSession": [None],
    "endSession": [None],
    "step": [{"inputs": [ROW]}, {"step": 3, "inputs": [ROW]}, {"step": 1, "inputs": [ROW]}, {"step": 9}, {}],
    "exportState": [None],
    "importState": [b"not a snapshot"],
    "forkSession": [None, {"session_id": "fork-of-it"}, {"at_step": 1}],
    "rewindSession": [{"to_step": 1}],
}
#: Those that name none in the path; `test_keys` and `test_quotas` have a test for each that can name one
OTHER_ROUTES = {
    "openSession",
    "stepMany",
    "predict",
    "listModels",
    "getModel",
    "health",
    "readiness",
    "metrics",
    "metricsTargets",
    "metricsOfProcess",
    "openapi",
    "docs",
}
OPEN = {"health", "readiness", "openapi", "docs"}


@pytest.fixture(scope="module", params=["memory:", "sqlite:"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    place = tmp_path_factory.mktemp("keyed")
    store = request.param if request.param == "memory:" else f"sqlite:{place / 'sessions.db'}"
    with keyed(save_bundles(place / "bundles"), place, store=store) as service:
        anna = service["anna"]
        body = {"step": 0, "inputs": [ROW] * 3}
        anna.post(f"{BASE}/sessions/{OTHERS}/steps", json=body).raise_for_status()
        yield service


@pytest.fixture(autouse=True)
def _left_alone(service: Keyed) -> Iterator[None]:
    """Whatever a test does, anna's session is where it was, bit by bit."""
    before = service["anna"].get(f"{BASE}/sessions/{OTHERS}/state").raise_for_status().content
    yield
    assert service["anna"].get(f"{BASE}/sessions/{OTHERS}").json()["next_step"] == 3
    assert service["anna"].get(f"{BASE}/sessions/{OTHERS}/state").content == before


def filled(path: str, session_id: str) -> str:
    return path.replace("{model}", SERIES).replace("{session_id}", session_id)


#: So that two replies differ by nothing but what they tell
SAME = {"x-request-id": "same"}


def sent(client: httpx.Client, method: str, path: str, body: Any = None) -> httpx.Response:
    if isinstance(body, bytes):
        headers = {**SAME, "content-type": "application/octet-stream"}
        return client.request(method, path, content=body, headers=headers)
    return client.request(method, path, headers=SAME, json=body)


def seen(response: httpx.Response, session_id: str) -> tuple[object, ...]:
    """All that a client learns from a response, but for the id that it sent itself."""
    headers = {k: v for k, v in response.headers.items() if k != "date"}
    return response.status_code, response.text.replace(session_id, "ID"), headers


def stream_of(service: Keyed, who: str, session_id: str, query: str = "") -> ClientConnection:
    url = f"{service.served.ws}{BASE}/sessions/{session_id}/stream{query}"
    return connect(url, proxy=None, additional_headers={**service.bearer(who), **SAME})


def told(stream: ClientConnection, **message: Any) -> dict[str, Any]:
    stream.send(json.dumps({"inputs": [ROW], **message}))
    reply: dict[str, Any] = json.loads(stream.recv(10))
    return reply


# Isolation


def test_every_route_is_thought_of(service: Keyed) -> None:
    api = service["anna"].get("/openapi.json").json()
    operations = {
        operation["operationId"]: path
        for path, item in api["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }
    assert {id for id, path in operations.items() if "{session_id}" in path} == set(OF_A_SESSION)
    assert {id for id, path in operations.items() if "{session_id}" not in path} == OTHER_ROUTES


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        pytest.param(path, method, body, id=f"{operation.id}-{number}")
        for (path, method), operation in OPERATIONS.items()
        for number, body in enumerate(OF_A_SESSION.get(operation.id, []))
    ],
)
def test_another_keys_session_is_as_one_that_never_was(
    service: Keyed, path: str, method: str, body: Any
) -> None:
    bert = service["bert"]
    of_hers = sent(bert, method, filled(path, OTHERS), body)
    of_nobody = sent(bert, method, filled(path, UNKNOWN), body)
    assert seen(of_hers, OTHERS) == seen(of_nobody, UNKNOWN)
    assert of_hers.status_code in (400, 404, 422)
    if of_hers.status_code == 404:
        assert of_hers.json()["code"] == "session_not_found"


def test_the_same_id_is_opened_by_both(service: Keyed) -> None:
    for who in ("anna", "bert"):
        body = {"session_id": "both"}
        assert service[who].post(f"{BASE}/sessions", json=body).status_code == 201
        problem = problem_of(service[who].post(f"{BASE}/sessions", json=body), 409, "session_exists")
        assert problem["session_id"] == "both"
        assert problem["detail"] == "session both is open already"
    service["anna"].delete(f"{BASE}/sessions/both").raise_for_status()
    assert service["bert"].get(f"{BASE}/sessions/both").status_code == 200
    service["bert"].delete(f"{BASE}/sessions/both").raise_for_status()


def test_a_step_0_on_anothers_id_opens_ones_own(service: Keyed) -> None:
    bert = service["bert"]
    path = f"{BASE}/sessions/{OTHERS}"
    reply = bert.post(f"{path}/steps", json={"step": 0, "inputs": [ROW]}).json()
    assert (reply["session_id"], reply["next_step"], reply["replayed"]) == (OTHERS, 1, False)
    assert bert.get(path).json()["session_id"] == OTHERS
    bert.delete(path).raise_for_status()


def test_a_fork_and_an_import_under_anothers_id_are_ones_own(service: Keyed) -> None:
    bert = service["bert"]
    bert.post(f"{BASE}/sessions/mine/steps", json={"step": 0, "inputs": [ROW]}).raise_for_status()
    fork = bert.post(f"{BASE}/sessions/mine/fork", json={"session_id": OTHERS})
    assert (fork.status_code, fork.json()["session_id"], fork.json()["next_step"]) == (201, OTHERS, 1)
    bert.delete(f"{BASE}/sessions/{OTHERS}").raise_for_status()
    snapshot = bert.get(f"{BASE}/sessions/mine/state").content
    put = bert.put(f"{BASE}/sessions/{OTHERS}/state", content=snapshot)
    assert (put.status_code, put.json()["session_id"]) == (201, OTHERS)
    bert.delete(f"{BASE}/sessions/{OTHERS}").raise_for_status()
    bert.delete(f"{BASE}/sessions/mine").raise_for_status()


def test_a_snapshot_is_its_holders(service: Keyed) -> None:
    snapshot = service["anna"].get(f"{BASE}/sessions/{OTHERS}/state").content
    assert b"anna" not in snapshot
    put = service["bert"].put(f"{BASE}/sessions/given/state", content=snapshot)
    assert (put.status_code, put.json()["next_step"]) == (201, 3)
    service["bert"].delete(f"{BASE}/sessions/given").raise_for_status()


def test_bulk_items_are_of_the_key(service: Keyed) -> None:
    requests = [{"session_id": id, "step": 3, "inputs": [ROW]} for id in (OTHERS, UNKNOWN)]
    requests.append({"session_id": OTHERS, "step": 0, "inputs": [ROW]})
    requests.append({"session_id": OTHERS, "step": 7, "inputs": [ROW]})
    hers, nobodys, own, ahead = (
        service["bert"].post(f"{BASE}/steps", json={"requests": requests}).json()["results"]
    )
    assert json.dumps(hers).replace(OTHERS, "ID") == json.dumps(nobodys).replace(UNKNOWN, "ID")
    assert (own["session_id"], own["next_step"]) == (OTHERS, 1)
    assert ahead["error"]["expected_step"] == 1
    service["bert"].delete(f"{BASE}/sessions/{OTHERS}").raise_for_status()


def test_a_stream_is_of_the_key(service: Keyed) -> None:
    answers = []
    for session_id in (OTHERS, UNKNOWN):
        with stream_of(service, "bert", session_id, "?resume=1") as stream:
            first = json.loads(stream.recv(10))
            second = told(stream, step=3)
        answers.append(json.dumps([first, second]).replace(session_id, "ID"))
    assert answers[0] == answers[1]
    assert "session_not_found" in answers[0]
    with stream_of(service, "bert", OTHERS, "?resume=0") as stream:
        reply = told(stream, step=0)
        assert (reply["session_id"], reply["step"], reply["replayed"]) == (OTHERS, 0, False)
        assert told(stream, step=5)["error"]["expected_step"] == 1
    service["bert"].delete(f"{BASE}/sessions/{OTHERS}").raise_for_status()


def test_how_anothers_session_ended_is_not_told(service: Keyed) -> None:
    anna, bert = service["anna"], service["bert"]
    path = f"{BASE}/sessions/pump-0"
    anna.post(f"{BASE}/sessions", json={"session_id": "pump-0", "ttl_s": 0.05}).raise_for_status()
    time.sleep(0.1)
    assert anna.get(path).status_code == 410
    hers, nobodys = (sent(bert, "GET", each) for each in (path, f"{BASE}/sessions/{UNKNOWN}"))
    assert seen(hers, "pump-0") == seen(nobodys, UNKNOWN)
    assert "anna" not in anna.get(path).text
    assert bert.post(f"{path}/steps", json={"step": 0, "inputs": [ROW]}).status_code == 200
    bert.delete(path).raise_for_status()


def test_an_issued_id_is_of_the_key_that_it_was_issued_to(service: Keyed) -> None:
    opened = service["anna"].post(f"{BASE}/sessions").json()
    path = f"{BASE}/sessions/{opened['session_id']}"
    assert ":" not in opened["session_id"]
    assert service["anna"].get(path).status_code == 200
    problem_of(service["bert"].get(path), 404, "session_not_found")
    service["anna"].delete(path).raise_for_status()


def test_keys_of_one_namespace_share_its_sessions(service: Keyed) -> None:
    assert service["twin"].get(f"{BASE}/sessions/{OTHERS}").json()["next_step"] == 3


def test_no_reply_names_the_namespace(service: Keyed) -> None:
    anna = service["anna"]
    path = f"{BASE}/sessions/{OTHERS}"
    replies = [
        anna.get(path),
        anna.post(f"{path}/steps", json={"step": 0, "inputs": [ROW] * 3}),
        anna.post(f"{path}/steps", json={"step": 0, "inputs": [ROW] * 3, "return": ["outputs", "gates"]}),
        anna.post(f"{path}/steps", json={"step": 8, "inputs": [ROW]}),
        anna.post(f"{path}/rewind", json={"to_step": 9}),
        anna.post(f"{path}/fork", json={"session_id": OTHERS}),
        anna.get(f"{BASE}/sessions/none"),
        anna.get(f"{BASE}/sessions/a%3Ab"),
    ]
    for reply in replies:
        assert "anna" not in reply.text, reply.text
    assert replies[1].json()["replayed"]


def test_a_client_is_told_of_its_own_sessions_alone(service: Keyed) -> None:
    for path in (BASE, "/v1/models"):
        for who, count in (("anna", 1), ("bert", 0)):
            found = service[who].get(path).json()
            model = next(m for m in found["models"] if m["name"] == SERIES) if "models" in found else found
            assert model["sessions"] == {"open": count}
            assert model["versions"][0]["sessions"] == {"open": count}
    assert sum(service["prom"].get(BASE).json()["sessions"].values()) >= 1


# Who may what


@pytest.mark.parametrize(("path", "method"), sorted(OPERATIONS), ids=lambda part: part)
def test_what_needs_a_key_says_so_and_is_refused_without(service: Keyed, path: str, method: str) -> None:
    operation = service[""].get("/openapi.json").json()["paths"][path][method.lower()]
    needs = OPERATIONS[path, method].id not in OPEN
    assert needs == ("403" in operation["responses"])
    assert ("security" in operation) == (rule_of(path) != "open")
    url = filled(path, OTHERS)
    if not needs:
        assert service[""].request(method, url).status_code == 200
        return
    key = service.keys["anna"]
    challenge = operation["responses"]["401"]["headers"]["WWW-Authenticate"]["schema"]["const"]
    for wrong in (
        None,
        "Bearer",
        "Bearer wrong",
        f"Bearer {key[:-1]}",
        f"Bearer {key}x",
        f"Basic {key}",
        key,
        "Bearer " + "x" * 5000,
        f"Bearer {json.loads(service.path.read_text())['keys'][0]['sha256']}",
    ):
        headers = {} if wrong is None else {"authorization": wrong}
        refused = service[""].request(method, url, headers=headers)
        problem = problem_of(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == challenge == "Bearer"
        assert key[:12] not in problem["detail"]


def test_the_scheme_is_of_any_case_and_the_peers_header_is_not_believed(service: Keyed) -> None:
    key = service.keys["anna"]
    for good in (f"bearer {key}", f"BEARER   {key}"):
        assert service[""].get(BASE, headers={"authorization": good}).status_code == 200
    forged = {"x-cellstate-namespace": "anna", "x-cellstate-peer": "anna"}
    path = f"{BASE}/sessions/{OTHERS}"
    problem_of(service[""].get(path, headers=forged), 401, "unauthorized")
    problem_of(service["bert"].get(path, headers=forged), 404, "session_not_found")
    handover = service["bert"].post(f"{BASE}/handover", json={"session_id": f"anna:{OTHERS}"}, headers=forged)
    assert handover.status_code == 404


@pytest.mark.parametrize(("path", "method"), sorted(OPERATIONS), ids=lambda part: part)
def test_a_role_is_for_its_paths_alone(service: Keyed, path: str, method: str) -> None:
    for who in ("anna", "prom"):
        role = WHO[who].get("role", "client")
        allowed = rule_of(path) in ("open", "page", "both", role)
        if allowed and OPERATIONS[path, method].id in OF_A_SESSION:
            continue  # other tests do that
        response = service[who].request(method, filled(path, "nothing"))
        assert (response.status_code == 403) == (not allowed), response.text
        if not allowed:
            problem_of(response, 403, "forbidden")


def test_a_key_is_for_its_models_alone(service: Keyed) -> None:
    client = service["waves-only"]
    assert client.get(BASE).status_code == 200
    assert [m["name"] for m in client.get("/v1/models").json()["models"]] == [SERIES]
    for method, path in (("GET", ""), ("POST", "/steps"), ("POST", "/predict"), ("GET", "/sessions/a")):
        problem_of(client.request(method, f"/v1/models/{TEXT}{path}", json={}), 403, "forbidden")
    url = f"{service.served.ws}/v1/models/{TEXT}/sessions/a/stream"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, proxy=None, additional_headers=service.bearer("waves-only"))
    assert refused.value.response.status_code == 403


def test_without_a_key_the_description_tells_nothing_of_the_models(service: Keyed) -> None:
    for path in ("/openapi.json", "/docs"):
        assert SERIES not in service[""].get(path).text
        assert SERIES in service["anna"].get(path).text
        assert service[""].get(path, headers={"authorization": "Bearer wrong"}).status_code == 401


def test_a_stream_needs_a_key_in_a_header_or_a_protocol(service: Keyed) -> None:
    url = f"{service.served.ws}{BASE}/sessions/browser/stream"
    for extra in (
        {},
        {"additional_headers": {"authorization": "Bearer wrong"}},
        {"subprotocols": ["cellstate", "bearer.wrong"]},
        {"additional_headers": service.bearer("prom")},
    ):
        with pytest.raises(InvalidStatus) as refused:
            connect(url, proxy=None, **extra)
        response = refused.value.response
        role = "additional_headers" in extra and extra["additional_headers"] == service.bearer("prom")
        assert response.status_code == (403 if role else 401)
        assert role or response.headers["WWW-Authenticate"] == "Bearer"
        assert json.loads(response.body or b"")["code"] == ("forbidden" if role else "unauthorized")
    protocols: Any = ["cellstate", f"bearer.{service.keys['bert']}"]
    with connect(url, proxy=None, subprotocols=protocols) as stream:
        assert stream.subprotocol == "cellstate"
        assert told(stream, step=0)["session_id"] == "browser"
    service["bert"].delete(f"{BASE}/sessions/browser").raise_for_status()
    problem_of(service["bert"].get(f"{BASE}/sessions/browser"), 404, "session_not_found")
    in_url = service[""].get(f"{BASE}?key={service.keys['bert']}&access_token={service.keys['bert']}")
    assert in_url.status_code == 401
