"""Whatever comes in: the right status, a problem that names the place, and no session has moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.api.bad_bodies import BAD, ONE, Bad
from tests.api.serving import SERIES, TEXT, Served, Witness, problem_of

MakeWitness = Callable[[str], Witness]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_request_is_refused_and_moves_nothing(
    bad: Bad, client: httpx.Client, witness: MakeWitness
) -> None:
    session = witness(bad.model)
    path = bad.path.format(session=session.path, model=f"/v1/models/{bad.model}")
    content = bad.content if bad.content is None else bad.content.replace(b"{id}", session.id.encode())
    url = httpx.URL(str(client.base_url).rstrip("/")).copy_with(raw_path=path.encode())
    response = client.request(bad.method, url, content=content, headers=bad.headers)
    problem = problem_of(response, bad.status, bad.code)
    assert bad.says in problem["detail"]
    assert problem.get("field") == bad.place


def test_there_are_kinds_enough() -> None:
    assert len({bad.name for bad in BAD}) == len(BAD) >= 45


def test_405_says_what_is_allowed(client: httpx.Client) -> None:
    assert client.delete("/v1/models").headers["allow"] == "GET, HEAD"
    assert client.get(f"/v1/models/{SERIES}/sessions/a/steps").headers["allow"] == "POST"


def test_a_bad_answer_is_never_a_page_of_megabytes(client: httpx.Client) -> None:
    response = client.post(f"/v1/models/{SERIES}/sessions/a/steps", content=json.dumps({"x" * 60_000: 1}))
    problem_of(response, 422, "invalid_value")
    assert len(response.content) < 2_000


# Bodies that are sent in unusual ways


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: here", "Connection: close", *lines, "", "")).encode()


def test_a_chunked_body_too_large_is_refused_while_it_comes(
    client: httpx.Client, witness: MakeWitness
) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(70):
            yield b" " * 1000

    response = client.post(f"{witness(SERIES).path}/steps", content=parts())
    assert "content-length" not in response.request.headers
    assert problem_of(response, 413, "too_large")["limit"] == 65_536


@pytest.mark.parametrize("length", ["65537", "9" * 19, "99999999999999999"])
def test_a_body_announced_too_large_is_refused_before_it_comes(
    length: str, served: Served, witness: MakeWitness
) -> None:
    reply = served.raw(head(f"{witness(SERIES).path}/steps", f"Content-Length: {length}"))
    assert reply.startswith(b"HTTP/1.1 413") or (len(length) == 19 and reply.startswith(b"HTTP/1.1 4"))


@pytest.mark.parametrize(
    "sent",
    [
        ("Content-Length: 1000", '{"inputs":[[10.0,'),
        ("Content-Length: 1000", json.dumps(ONE)),
        ("Transfer-Encoding: chunked", "10\r\n" + json.dumps(ONE)[:16] + "\r\n"),
    ],
)
def test_a_body_that_breaks_off_is_not_executed(
    sent: tuple[str, str], served: Served, witness: MakeWitness
) -> None:
    line, body = sent
    reply = served.raw(head(f"{witness(SERIES).path}/steps", line) + body.encode(), half_close=True)
    assert b" 200 " not in reply


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /v1/models/α HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode(),
    ],
    ids=["a TLS hello", "no path", "negative length", "two lengths", "bad chunk", "bytes in the path"],
)
def test_what_is_not_http_is_refused_by_the_server(
    request_bytes: bytes, served: Served, witness: MakeWitness
) -> None:
    witness(SERIES)
    reply = served.raw(request_bytes, half_close=True)
    assert not reply or reply.startswith(b"HTTP/1.1 4")


def test_a_huge_header_harms_nobody(served: Served, witness: MakeWitness) -> None:
    reply = served.raw(head(f"{witness(SERIES).path}/steps", f"X-Big: {'x' * 200_000}", "Content-Length: 0"))
    assert not reply or reply.startswith(b"HTTP/1.1 4")


def test_of_two_fields_of_the_same_name_the_last_counts(client: httpx.Client) -> None:
    body = '{"inputs":[[1.0,0.5]],"inputs":[[10.0,0.5]]}'
    twice = client.post(f"/v1/models/{SERIES}/predict", content=body).json()
    assert twice == client.post(f"/v1/models/{SERIES}/predict", json=ONE).json()


def test_head_is_get_without_its_body(client: httpx.Client, witness: MakeWitness) -> None:
    for path in ("/healthz", "/docs", "/v1/models", witness(SERIES).path):
        response, whole = client.head(path), client.get(path)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"] == whole.headers["content-type"]
    problem = client.head("/nowhere")
    assert (problem.status_code, problem.content) == (404, b"")


@pytest.mark.parametrize("written", ["%77itness-of-the-code", "witness-of-the%2Dcode", "witness-of-the-code"])
def test_an_id_is_the_same_however_it_is_encoded(written: str, client: httpx.Client) -> None:
    reply = client.post(f"/v1/models/{SERIES}/sessions/{written}/steps", json={"step": 0, **ONE}).json()
    assert reply["session_id"] == "witness-of-the-code"


@pytest.mark.parametrize("body", [None, "{}"])
def test_opening_and_forking_need_no_body(
    body: str | None, client: httpx.Client, witness: MakeWitness
) -> None:
    opened = client.post(f"/v1/models/{SERIES}/sessions", content=body)
    forked = client.post(f"{witness(SERIES).path}/fork", content=body)
    assert (opened.status_code, forked.status_code) == (201, 201)
    assert (opened.json()["next_step"], forked.json()["next_step"]) == (0, 3)


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
def test_next_to_no_temperature_is_as_good_as_none(temperature: float, client: httpx.Client) -> None:
    def generated(**sampling: float) -> str:
        body = {"text": "abc", "generate": {"length": 20, "seed": 1, **sampling}}
        reply = client.post(f"/v1/models/{TEXT}/predict", json=body).raise_for_status()
        return str(reply.json()["generated"])

    assert generated(temperature=temperature) == generated(temperature=0)
    assert generated(top_k=10**400) == generated()


# Many at once


def test_a_bad_request_among_many_spoils_no_other(client: httpx.Client) -> None:
    one = {"step": 0, **ONE}
    bad = [
        ({"session_id": "b1", "step": 0, "inputs": [[float("nan"), 0.5]]}, "invalid_value", "inputs[0][0]"),
        ({"session_id": "b1", "step": 0, "inputs": [[10**400, 0.5]]}, "invalid_value", "inputs[0][0]"),
        ({"session_id": "b1", "step": 0, "inputs": [[True, 0.5]]}, "invalid_value", "inputs[0][0]"),
        ({"session_id": "b1", "step": 0, "inputs": [[10.0]]}, "invalid_value", "inputs[0]"),
        ({"session_id": "b 1", **one}, "invalid_value", "session_id"),
        (one, "invalid_value", "session_id"),
        ({"session_id": "b1", "step": 1, **ONE}, "session_not_found", None),
        ({"session_id": "b1", "stop": 0, **one}, "invalid_value", "stop"),
        ("b1", "invalid_value", ""),
        (None, "invalid_value", ""),
        ([], "invalid_value", ""),
    ]
    good = [{"session_id": f"bulk-{n}", **one} for n in range(len(bad) + 1)]
    requests = [good[0]]
    for (broken, _, _), fine in zip(bad, good[1:], strict=True):
        requests += [broken, fine]  # type: ignore[list-item]
    response = client.post(f"/v1/models/{SERIES}/steps", content=json.dumps({"requests": requests}))
    results = response.raise_for_status().json()["results"]
    assert [r["session_id"] for r in results[0::2]] == [r["session_id"] for r in good]
    assert all(r["outputs"] == results[0]["outputs"] for r in results[0::2])
    found = [(r["error"]["code"], r["error"].get("field")) for r in results[1::2]]
    assert found == [(code, place) for _, code, place in bad]
    missing = client.get(f"/v1/models/{SERIES}/sessions/b1")
    problem_of(missing, 404, "session_not_found")


def test_many_that_are_fine_answer_as_one_by_one(client: httpx.Client) -> None:
    requests = [{"session_id": f"fine-{n}", "step": 0, **ONE} for n in range(50)]
    results = client.post(f"/v1/models/{SERIES}/steps", json={"requests": requests}).json()["results"]
    alone = client.post(f"/v1/models/{SERIES}/sessions/fine-0/steps", json={"step": 0, **ONE}).json()
    assert alone["replayed"]
    assert alone["outputs"] == results[0]["outputs"]
    assert [r["session_id"] for r in results] == [r["session_id"] for r in requests]


# Snapshots


def tampered(blob: bytes, h: object = None, **metadata: str) -> bytes:
    """A snapshot with other metadata, or another h."""
    told = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    tensors = load(blob)
    if h is not None:
        tensors["h"] = np.asarray(h)
    return save(tensors, {**told, **metadata})


H = np.zeros((2, 6), np.float32)
SNAPSHOTS: dict[str, tuple[Callable[[bytes], bytes], int, str | None]] = {
    "nothing": (lambda blob: b"", 400, None),
    "garbage": (lambda blob: b"garbage" * 100, 400, None),
    "JSON": (lambda blob: b"{}", 400, None),
    "cut short": (lambda blob: blob[:-4], 400, None),
    "a byte too many": (lambda blob: blob + b"\0", 400, None),
    "a header without end": (lambda blob: (2**62).to_bytes(8, "little") + blob[8:], 400, None),
    "no metadata": (lambda blob: save(load(blob)), 400, None),
    "a step that is no number": (lambda blob: tampered(blob, next_step="three"), 400, None),
    "a step of 5000 digits": (lambda blob: tampered(blob, next_step="9" * 5000), 400, None),
    "a negative step": (lambda blob: tampered(blob, next_step="-1"), 422, "next_step"),
    "a step beyond 2**53": (lambda blob: tampered(blob, next_step=str(2**53)), 422, "next_step"),
    "another format": (lambda blob: tampered(blob, format="cellstate-snapshot-9"), 422, "format"),
    "another digest": (lambda blob: tampered(blob, model_digest="0" * 64), 422, "model_digest"),
    "another shape": (lambda blob: tampered(blob, H[:1]), 422, "h"),
    "float64": (lambda blob: tampered(blob, H.astype(np.float64)), 422, "h"),
    "NaN": (lambda blob: tampered(blob, H + np.float32("nan")), 422, "h"),
    "infinity": (lambda blob: tampered(blob, H + np.float32("inf")), 422, "h"),
    "an h that no LSTM gives": (lambda blob: tampered(blob, H + np.float32(3e38)), 422, "h"),
}


@pytest.mark.parametrize("what", SNAPSHOTS)
def test_a_bad_snapshot_is_refused(what: str, client: httpx.Client, witness: MakeWitness) -> None:
    session = witness(SERIES)
    make, status, place = SNAPSHOTS[what]
    blob = make(client.get(f"{session.path}/state").content)
    code = "bad_request" if status == 400 else "invalid_value"
    for path in (session.path, f"/v1/models/{SERIES}/sessions/never-opened"):
        problem = problem_of(client.put(f"{path}/state", content=blob), status, code)
        assert problem.get("field") == place
    problem_of(client.get(f"/v1/models/{SERIES}/sessions/never-opened"), 404, "session_not_found")


def test_a_snapshot_of_another_model_is_refused(client: httpx.Client, witness: MakeWitness) -> None:
    blob = client.get(f"{witness(TEXT).path}/state").content
    problem = problem_of(client.put(f"{witness(SERIES).path}/state", content=blob), 422, "invalid_value")
    assert problem["field"] == "model_digest"


def test_a_snapshot_of_its_own_is_taken(client: httpx.Client, witness: MakeWitness) -> None:
    session = witness(SERIES)
    blob = client.get(f"{session.path}/state").content
    assert client.put(f"{session.path}/state", content=blob).status_code == 200


def test_a_cell_state_as_large_as_can_be_gives_numbers(client: httpx.Client, witness: MakeWitness) -> None:
    path = f"/v1/models/{SERIES}/sessions/saturated"
    blob = client.get(f"{witness(SERIES).path}/state").content
    told = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    huge = save({"h": H + 1, "c": H + np.float32(3.4e38)}, told)
    assert client.put(f"{path}/state", content=huge).status_code == 201
    reply = client.post(f"{path}/steps", json={**ONE, "return": ["outputs", "state", "gates"], "horizon": 5})
    assert reply.status_code == 200, reply.text
    assert np.isfinite(reply.json()["outputs"]).all()
