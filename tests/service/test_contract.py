"""The session contract, sentence by sentence, over HTTP and WebSocket against running services."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from model.bundle import Bundle
from model.network import Scaler
from model.reference import Reference, sigmoid
from tests.service.serving import Service, save_bundles, serving

TOLERANCE = 1e-4  # normalised values, log-probabilities, states and gates
Rows = list[list[float]]
_numbers = itertools.count()


@dataclass
class Session:
    """One session of the series model under test, and the reference that runs beside it."""

    service: Service
    bundle: Bundle
    http: httpx.Client
    id: str

    def __post_init__(self) -> None:
        self.reference = make_reference(self.bundle)
        self.scaler = Scaler(self.bundle.spec)

    @property
    def path(self) -> str:
        return f"/v1/models/{self.bundle.name}/sessions/{self.id}"

    @property
    def kept(self) -> bool:
        """Whether a store keeps it."""
        return bool(self.http.get(self.path).json().get("durability", "journal") != "none")

    def another(self, session_id: str | None = None) -> Session:
        """Another session of the same model."""
        return Session(
            self.service, self.bundle, self.http, session_id or f"c-{next(_numbers)}-{time.time_ns()}"
        )

    def rows(self, steps: int, seed: int = 0) -> Rows:
        """Steps in the model's units."""
        x = np.random.default_rng(seed).standard_normal((steps, len(self.bundle.spec.inputs)))
        rows: Rows = (x * self.scaler.input_std + self.scaler.input_mean).tolist()
        return rows

    def send(self, rows: Rows, step: int | None = None, **more: Any) -> httpx.Response:
        return self.http.post(f"{self.path}/steps", json=body(rows, step, **more))

    def stepped(self, rows: Rows, step: int | None = None, **more: Any) -> dict[str, Any]:
        """A request that must be executed, and its reply; the reference makes the same steps."""
        response = self.send(rows, step, **more)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        assert reply["replayed"] is False
        self.check_outputs(reply, rows)
        return reply

    def check_outputs(self, reply: dict[str, Any], rows: Rows) -> None:
        outputs = (np.array(reply["outputs"]) - self.scaler.output_mean) / self.scaler.output_std
        expected = self.reference.run(self.scaler.normalise(np.array(rows)))
        np.testing.assert_allclose(outputs, expected, atol=TOLERANCE, rtol=0)

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.http.get(self.path).raise_for_status().json()
        return facts

    def check(self, next_step: int) -> None:
        """The session is at that step, and there it is where the reference is."""
        assert self.facts()["next_step"] == next_step
        np.testing.assert_allclose(self.state(), state_of(self.reference), atol=TOLERANCE, rtol=0)

    def state(self) -> NDArray[np.float32]:
        tensors = load_tensors(self.http.get(f"{self.path}/state").raise_for_status().content)
        return np.stack((tensors["h"], tensors["c"]))

    @contextmanager
    def stream(self) -> Iterator[ClientConnection]:
        with connect(f"{self.service.ws}{self.path}/stream", proxy=None, open_timeout=30) as socket:
            yield socket


def make_reference(bundle: Bundle) -> Reference:
    return Reference(bundle.spec, {name: tensor.numpy() for name, tensor in bundle.weights.items()})


def state_of(reference: Reference) -> NDArray[np.float64]:
    return np.stack((reference.h, reference.c))


def body(rows: Rows, step: int | None = None, **more: Any) -> dict[str, Any]:
    return {"inputs": rows, **({} if step is None else {"step": step}), **more}


def say(socket: ClientConnection, rows: Rows, step: int | None = None, **more: Any) -> None:
    socket.send(json.dumps(body(rows, step, **more)))


def hear(socket: ClientConnection) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(socket.recv(timeout=30))
    return reply


def as_first_said(reply: bytes | str) -> bytes:
    """A replayed reply as it was before it was replayed."""
    text = reply.encode() if isinstance(reply, str) else reply
    assert text.count(b'"replayed":true') == 1, text[-200:]
    return text.replace(b'"replayed":true', b'"replayed":false')


def assert_problem(response: httpx.Response, status: int, code: str, **facts: object) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert {name: problem.get(name) for name in facts} == facts


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def session(service: Service, http: httpx.Client) -> Session:
    """A session that is not open yet."""
    bundle = service.of("series")
    assert bundle is not None
    return Session(service, bundle, http, "").another()


# The client may number its steps: "step": n is the number of the first step in the request.


def test_n_equal_to_next_step_is_executed_committed_and_answered(session: Session) -> None:
    """`n == next_step`: executed, committed, answered."""
    at = 0
    for seed, count in enumerate((1, 5, 50, 1)):
        reply = session.stepped(session.rows(count, seed), at)
        assert (reply["session_id"], reply["step"], reply["next_step"]) == (session.id, at, at + count)
        at += count
        session.check(at)


@pytest.mark.parametrize(
    "more",
    [{}, {"return": ["outputs", "gates", "state"]}, {"horizon": 4}, {"return": ["state"], "horizon": 1}],
)
def test_a_retry_is_the_stored_reply_byte_for_byte(session: Session, more: dict[str, Any]) -> None:
    """`n < next_step`, the whole request inside the replay window: the stored reply again, byte for byte,
    with `"replayed": true`; nothing is stepped."""
    requests = [(0, session.rows(4, 1)), (4, session.rows(1, 2)), (5, session.rows(9, 3))]
    said = [session.send(rows, step, **more).raise_for_status().content for step, rows in requests]
    state = session.state()
    for _ in range(2):
        for (step, rows), first in zip(requests, said, strict=True):
            again = session.send(rows, step, **more)
            assert again.status_code == 200
            assert as_first_said(again.content) == first
    assert session.facts()["next_step"] == 14
    np.testing.assert_array_equal(session.state(), state)


def test_a_retry_over_a_stream_has_the_bytes_of_the_reply_over_http(session: Session) -> None:
    rows = session.rows(3)
    first = session.send(rows, 0).content
    with session.stream() as socket:
        say(socket, rows, 0)
        assert as_first_said(socket.recv(timeout=30)) == first


def test_the_replay_window_is_the_newest_256_steps(session: Session) -> None:
    """The newest 256 steps by default; outside the window: 409 `step_conflict` with `expected_step`."""
    rows = session.rows(310)
    session.stepped(rows[:10], 0)
    session.stepped(rows[10:309], 10)
    session.stepped(rows[309:], 309)
    inside = session.send(rows[54:], 54).raise_for_status().json()
    assert (inside["step"], inside["next_step"], inside["replayed"]) == (54, 310, True)
    assert_problem(session.send(rows[53:], 53), 409, "step_conflict", expected_step=310)
    assert_problem(session.send(rows[:10], 0), 409, "step_conflict", expected_step=310)
    session.check(310)


def test_a_retry_in_other_pieces_has_the_same_outputs(session: Session) -> None:
    rows = session.rows(12)
    first = session.stepped(rows[:5], 0)["outputs"] + session.stepped(rows[5:], 5)["outputs"]
    for begin, end in ((0, 12), (3, 7), (6, 7)):
        again = session.send(rows[begin:end], begin).raise_for_status().json()
        assert again["replayed"] is True
        assert again["outputs"] == first[begin:end]
    session.check(12)


def test_a_retry_with_other_inputs_is_a_conflict(session: Session) -> None:
    """If the inputs differ from those committed: 409 `step_conflict`."""
    rows = session.rows(6)
    session.stepped(rows[:3], 0)
    session.stepped(rows[3:], 3)
    other = [[value + 1e-9 for value in row] for row in rows]
    for begin, end in ((0, 3), (3, 6), (0, 6), (2, 4)):
        assert_problem(session.send(other[begin:end], begin), 409, "step_conflict", expected_step=6)
    session.check(6)


def test_a_gap_is_a_conflict(session: Session) -> None:
    """`n > next_step`: 409 `step_conflict` with `expected_step`."""
    session.stepped(session.rows(3), 0)
    for step in (4, 5, 2**53 - 1):
        assert_problem(session.send(session.rows(1), step), 409, "step_conflict", expected_step=3)
    session.check(3)


def test_a_request_that_is_partly_committed_is_a_conflict(session: Session) -> None:
    """Neither a retry of what was nor what comes next."""
    rows = session.rows(5)
    session.stepped(rows[:3], 0)
    assert_problem(session.send(rows, 0), 409, "step_conflict", expected_step=3)
    assert_problem(session.send(rows[2:], 2), 409, "step_conflict", expected_step=3)
    session.check(3)


def test_without_a_step_a_request_is_executed_at_next_step(session: Session) -> None:
    """Without `step` the request is executed at `next_step` (at most once)."""
    session.stepped(session.rows(2), 0)
    for at in (2, 5, 8):
        assert session.stepped(session.rows(3))["step"] == at
    session.check(11)


async def test_the_same_step_twice_at_the_same_time_is_executed_once(session: Session) -> None:
    """One execution, the same reply to both. Here sixteen, on connections of their own."""
    steps = session.service.metric("cellstate_steps_total", model=session.bundle.name)
    again = session.service.metric("cellstate_deduplicated_steps_total", model=session.bundle.name)
    rows = session.rows(40)
    url = f"{session.service.url}{session.path}/steps"
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for turn in range(3):
            message = body(rows, 40 * turn)
            responses = await asyncio.gather(*(client.post(url, json=message) for _ in range(16)))
            assert [r.status_code for r in responses] == [200] * 16
            executed = [r.content for r in responses if not r.json()["replayed"]]
            assert len(executed) == 1
            for response in responses:
                if response.json()["replayed"]:
                    assert as_first_said(response.content) == executed[0]
            session.check_outputs(json.loads(executed[0]), rows)
    session.check(120)
    assert session.service.metric("cellstate_steps_total", model=session.bundle.name) == steps + 120
    deduplicated = session.service.metric("cellstate_deduplicated_steps_total", model=session.bundle.name)
    assert deduplicated == again + 3 * 15 * 40


# A request is all or nothing


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: [*rows[:-1], rows[-1][:-1]],
        lambda rows: [*rows[:-1], ["1.0", *rows[-1][1:]]],
        lambda rows: [*rows[:-1], [None, *rows[-1][1:]]],
        lambda rows: [*rows[:-1], [1e300, *rows[-1][1:]]],
    ],
)
def test_an_error_leaves_the_session_before_the_request(session: Session, wrong: Any) -> None:
    """A request is all or nothing: here its last step is bad, and none of the others is made."""
    session.stepped(session.rows(3), 0)
    assert_problem(session.send(wrong(session.rows(50)), 3), 422, "invalid_value")
    session.check(3)
    session.stepped(session.rows(1), 3)


def hang_up(session: Session, message: bytes, share: float) -> None:
    """Sends a part of a request, and leaves without waiting for anything."""
    url = urlsplit(session.service.url)
    head = (
        f"POST {session.path}/steps HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(message)}\r\n\r\n"
    ).encode()
    assert url.hostname is not None
    with socket.create_connection((url.hostname, url.port or 80), timeout=30) as connection:
        connection.sendall(head + message[: int(len(message) * share)])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_client_that_hangs_up_in_the_middle_of_its_request_has_asked_nothing(
    session: Session, share: float
) -> None:
    session.stepped(session.rows(3), 0)
    for _ in range(3):
        hang_up(session, json.dumps(body(session.rows(30, 5), 3)).encode(), share)
        session.check(3)
    session.stepped(session.rows(4), 3)


def test_a_client_that_hangs_up_before_the_reply_finds_the_session_before_or_after(session: Session) -> None:
    """Never between; and its retry gets the reply either way."""
    session.stepped(session.rows(3), 0)
    rows, at = session.rows(30, 5), 3
    for _ in range(5):
        hang_up(session, json.dumps(body(rows, at)).encode(), 1.0)
        assert session.facts()["next_step"] in (at, at + 30)
        reply = session.send(rows, at).raise_for_status().json()
        session.check_outputs(reply, rows)
        at += 30
        session.check(at)


# Opening


def test_step_0_on_an_unknown_id_opens_the_session(session: Session) -> None:
    """`"step": 0` on an unknown id opens the session."""
    assert_problem(session.http.get(session.path), 404, "session_not_found")
    session.stepped(session.rows(2), 0)
    session.check(2)


@pytest.mark.parametrize("step", [1, 100, None])
def test_any_other_step_on_an_unknown_id_is_not_found(session: Session, step: int | None) -> None:
    """Any other step on an unknown id: 404 `session_not_found`."""
    assert_problem(session.send(session.rows(1), step), 404, "session_not_found")
    assert_problem(session.http.get(session.path), 404, "session_not_found")


def test_a_step_0_that_fails_opens_nothing(session: Session) -> None:
    assert_problem(session.send([[1.0] * 99], 0), 422, "invalid_value")
    assert_problem(session.http.get(session.path), 404, "session_not_found")


def test_an_ended_session_is_unknown_and_may_begin_again(session: Session) -> None:
    session.stepped(session.rows(2), 0)
    assert session.http.delete(session.path).status_code == 204
    assert_problem(session.send(session.rows(1), 2), 404, "session_not_found")
    session.reference = make_reference(session.bundle)
    session.stepped(session.rows(2), 0)
    session.check(2)


# Order


async def test_requests_that_come_together_are_as_if_one_came_after_the_other(session: Session) -> None:
    """Requests of one session execute in order of arrival. On connections of their own nobody knows that
    order; but there is one, and the replies tell it."""
    session.stepped(session.rows(1), 0)
    sent = {n: session.rows(1 + n, seed=100 + n) for n in range(12)}
    url = f"{session.service.url}{session.path}/steps"
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        responses = await asyncio.gather(*(client.post(url, json=body(rows)) for rows in sent.values()))
    replies = sorted((r.json()["step"], n, r.json()) for n, r in enumerate(responses))
    at = 1
    for step, n, reply in replies:
        assert (step, reply["next_step"]) == (at, at + 1 + n)
        session.check_outputs(reply, sent[n])
        at = reply["next_step"]
    session.check(at)


def test_a_stream_answers_in_order_what_was_sent_ahead(session: Session) -> None:
    """Each reply in order: of requests of one step and of many, errors between them."""
    with session.stream() as socket:
        at, expected = 0, []
        for n in range(40):
            rows = session.rows(1 + n % 7, seed=n)
            say(socket, rows, at if n % 2 else None if n else 0)
            expected.append((at, rows))
            at += len(rows)
            if n % 10 == 9:
                say(socket, rows, at + 5)
                expected.append((-1, rows))
        for step, rows in expected:
            reply = hear(socket)
            if step < 0:
                assert reply["error"]["code"] == "step_conflict"
            else:
                assert reply["step"] == step
                session.check_outputs(reply, rows)
    session.check(at)


def test_different_sessions_do_not_wait_for_each_other(session: Session) -> None:
    """Different sessions never wait for each other beyond their share of a tick: while one makes 10,000 steps
    in one request, the other makes many, one request after the other, by a client that takes little time."""
    other, address = session.another(), urlsplit(session.service.url)
    long, meanwhile = session.rows(10_000), 0
    whole, headers = json.dumps(body(long, 0)), {"content-type": "application/json"}

    def ask() -> Any:
        url = f"{session.service.url}{session.path}/steps"
        return httpx.post(url, content=whole, headers=headers, timeout=120, trust_env=False).json()

    connection = HTTPConnection(address.hostname or "", address.port, timeout=120)
    with ThreadPoolExecutor(1) as pool, closing(connection):
        answer = pool.submit(ask)
        while not answer.done():
            message = json.dumps(body(other.rows(1), meanwhile))
            connection.request("POST", f"{other.path}/steps", message, headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            response.read()
            meanwhile += not answer.done()
        session.check_outputs(answer.result(), long)
    assert meanwhile >= 10


async def test_what_a_session_computes_does_not_depend_on_its_neighbours(session: Session) -> None:
    """Not beyond a stated tolerance: the reference, alone, within 1e-4, while forty others run beside it."""
    crowd = [session.another() for _ in range(40)]
    async with httpx.AsyncClient(base_url=session.service.url, timeout=60, trust_env=False) as client:
        for turn in range(4):
            rows = {s.id: s.rows(5 + (n + turn) % 9, seed=n) for n, s in enumerate(crowd)}
            responses = await asyncio.gather(
                *(client.post(f"{s.path}/steps", json=body(rows[s.id], None if turn else 0)) for s in crowd)
            )
            for one, response in zip(crowd, responses, strict=True):
                one.check_outputs(response.json(), rows[one.id])


# Ends that are not the client's


def test_an_idle_session_ends_at_its_ttl_and_says_so(session: Session) -> None:
    """They end at their TTL, then 410 `session_expired`; who opens it again knows that it is new."""
    opened = session.http.post(
        f"/v1/models/{session.bundle.name}/sessions", json={"session_id": session.id, "ttl_s": 0.2}
    )
    assert opened.status_code == 201
    session.stepped(session.rows(2), 0)
    deadline = time.monotonic() + 30
    while session.http.get(session.path).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # only time ends it
    for step in (0, 2, None):
        assert_problem(session.send(session.rows(1), step), 410, "session_expired")
    assert_problem(session.http.get(session.path), 410, "session_expired")
    with session.stream() as socket:
        say(socket, session.rows(1), 2)
        assert hear(socket)["error"]["code"] == "session_expired"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4410
    again = session.http.post(f"/v1/models/{session.bundle.name}/sessions", json={"session_id": session.id})
    assert (again.status_code, again.json()["next_step"]) == (201, 0)


def test_a_session_that_another_process_had_is_lost_and_never_a_silent_zero_state(session: Session) -> None:
    """With none, a lost session answers 410 `session_lost`."""
    session.stepped(session.rows(1), 0)
    if session.kept:
        pytest.skip("a store knows of every session that there was")
    elsewhere = session.another("s-00000000-0123456789abcdef")
    for step in (0, 7, None):
        assert_problem(elsewhere.send(session.rows(1), step), 410, "session_lost")
    assert_problem(session.http.get(elsewhere.path), 410, "session_lost")


def test_after_a_kill_its_sessions_are_lost(tmp_path: Path) -> None:
    """The same with a process that really dies."""
    models = save_bundles(tmp_path)
    with (
        serving(models, precision="fp32") as first,
        httpx.Client(base_url=first.url, timeout=30, trust_env=False) as http,
    ):
        bundle = first.of("series")
        assert bundle is not None
        issued = http.post(f"/v1/models/{bundle.name}/sessions").json()["session_id"]
        session = Session(first, bundle, http, issued)
        session.stepped(session.rows(3), 0)
        assert first.process is not None
        first.process.kill()
        first.process.wait(30)
    with serving(models) as second, httpx.Client(base_url=second.url, timeout=30, trust_env=False) as http:
        orphan = Session(second, bundle, http, issued)
        for step in (3, 0, None):
            assert_problem(orphan.send(orphan.rows(1), step), 410, "session_lost")


# Copies


def test_a_fork_goes_its_own_way(session: Session) -> None:
    session.stepped(session.rows(7), 0)
    answer = session.http.post(f"{session.path}/fork", json={"at_step": 7})
    assert answer.status_code == 201
    fork = session.another(answer.json()["session_id"])
    assert answer.json()["next_step"] == 7
    fork.reference.h, fork.reference.c = session.reference.h.copy(), session.reference.c.copy()
    fork.stepped(session.rows(5, seed=1), 7)
    session.stepped(session.rows(3, seed=2), 7)
    fork.check(12)
    session.check(10)
    past = session.http.post(f"{session.path}/fork", json={"at_step": 7})
    if session.kept:
        assert past.json()["next_step"] == 7
    else:
        assert_problem(past, 409, "step_conflict", expected_step=10)
    ahead = session.http.post(f"{session.path}/fork", json={"at_step": 11})
    assert_problem(ahead, 409, "step_conflict", expected_step=10)
    taken = session.http.post(f"{session.path}/fork", json={"session_id": fork.id})
    assert_problem(taken, 409, "session_exists")
    assert session.http.delete(session.path).status_code == 204
    fork.check(12)


def test_a_state_is_exported_and_imported(session: Session) -> None:
    session.stepped(session.rows(7), 0)
    blob = session.http.get(f"{session.path}/state").content
    other = session.another()
    put = session.http.put(f"{other.path}/state", content=blob)
    assert (put.status_code, put.json()["next_step"]) == (201, 7)
    other.reference.h, other.reference.c = session.reference.h.copy(), session.reference.c.copy()
    other.stepped(session.rows(4, seed=1), 7)
    other.check(11)
    session.check(7)
    back = session.http.put(f"{other.path}/state", content=blob)  # onto the session that lives
    assert (back.status_code, back.json()["next_step"]) == (200, 7)
    assert session.http.get(f"{other.path}/state").content == blob


def test_a_horizon_does_not_move_the_session(session: Session) -> None:
    """`horizon` and `generate` run on a copy: the session does not move."""
    plain = session.another()
    horizon = session.bundle.spec.architecture.leads + (20 if session.bundle.spec.closes_loop else 0)
    for seed, at in ((1, 0), (2, 6), (3, 12)):
        rows = session.rows(6, seed)
        reply = session.stepped(rows, at, horizon=horizon)
        assert np.array(reply["forecast"]).shape == (horizon, len(session.bundle.spec.outputs))
        assert plain.stepped(rows, at)["outputs"] == pytest.approx(np.array(reply["outputs"]), abs=1e-3)
    session.check(18)


def test_generated_text_does_not_move_the_session(service: Service, http: httpx.Client) -> None:
    bundle = service.of("text")
    if bundle is None:
        pytest.skip("this service has no text model")
    path = f"/v1/models/{bundle.name}/sessions/g-{time.time_ns()}"
    characters = [c for c in bundle.spec.vocabulary if c.isalpha()]
    text = "".join(characters[(7 * k) % len(characters)] for k in range(24))
    reference = make_reference(bundle)
    said = []
    for at in range(0, 24, 6):
        message = {
            "step": at,
            "text": text[at : at + 6],
            "generate": {"length": 20, "seed": 3, "temperature": 0.8},
        }
        reply = http.post(f"{path}/steps", json=message).raise_for_status().json()
        expected = reference.run(np.array([bundle.spec.vocabulary.index(c) for c in text[at : at + 6]]))
        np.testing.assert_allclose(reply["outputs"], expected, atol=TOLERANCE, rtol=0)
        assert len(reply["generated"]) == 20
        said.append(reply["generated"])
        again = http.post(f"{path}/steps", json=message).json()
        assert (again["replayed"], again["generated"]) == (True, reply["generated"])
    tensors = load_tensors(http.get(f"{path}/state").content)
    np.testing.assert_allclose(np.stack((tensors["h"], tensors["c"])), state_of(reference), atol=TOLERANCE)
    whole = {"text": text, "generate": {"length": 20, "seed": 3, "temperature": 0.8}}
    predicted = http.post(f"/v1/models/{bundle.name}/predict", json=whole).raise_for_status().json()
    assert predicted["generated"] == said[-1]


def test_the_gates_are_the_references_gates(session: Session) -> None:
    """`gates` gives i, f, g, o, c, h of the requested steps, per layer."""
    session.stepped(session.rows(4), 0)
    rows = session.rows(6, seed=1)
    twin = make_reference(session.bundle)
    twin.h, twin.c = session.reference.h.copy(), session.reference.c.copy()
    reply = session.stepped(rows, 4, **{"return": ["outputs", "gates", "state"]})
    gates = {name: np.array(values) for name, values in reply["gates"].items()}
    assert list(reply["gates"]) == ["i", "f", "g", "o", "c", "h"]
    for t, row in enumerate(session.scaler.normalise(np.array(rows))):
        before = twin.h.copy()
        twin.step(row)
        layer_in = row
        for k in range(session.bundle.spec.architecture.num_layers):
            w = {name: twin.w[f"lstm.{name}_l{k}"] for name in ("weight_ih", "weight_hh", "bias")}
            i, f, g, o = np.split(w["weight_ih"] @ layer_in + w["weight_hh"] @ before[k] + w["bias"], 4)
            layer_in = twin.h[k]
            expected = {
                "i": sigmoid(i), "f": sigmoid(f), "g": np.tanh(g), "o": sigmoid(o),
                "c": twin.c[k], "h": twin.h[k],
            }  # fmt: skip
            for name, values in expected.items():
                np.testing.assert_allclose(gates[name][t, k], values, atol=TOLERANCE, rtol=0)
    state = np.array([reply["state"]["h"], reply["state"]["c"]])
    np.testing.assert_allclose(state, state_of(twin), atol=TOLERANCE, rtol=0)
    session.check(10)


# The stream: the same contract


def test_a_stream_keeps_the_same_contract_and_errors_keep_it_open(session: Session) -> None:
    rows = session.rows(6)
    with session.stream() as socket:

        def error(status: int, code: str) -> dict[str, Any]:
            problem: dict[str, Any] = hear(socket)["error"]
            assert (problem["status"], problem["code"]) == (status, code)
            return problem

        say(socket, rows, 3)
        error(404, "session_not_found")
        say(socket, rows)
        error(404, "session_not_found")
        say(socket, rows[:3], 0)
        first = socket.recv(timeout=30)
        session.check_outputs(json.loads(first), rows[:3])
        say(socket, rows[:3], 0)
        assert as_first_said(socket.recv(timeout=30)) == str(first).encode()
        say(socket, rows[:3], 9)
        assert error(409, "step_conflict")["expected_step"] == 3
        say(socket, rows[1:4], 0)
        error(409, "step_conflict")
        for nonsense in (
            "",
            "{",
            "[]",
            '{"inputs": []}',
            '{"inputs": [["a"]]}',
            '{"step": -1}',
            "\ud83d\ude00",
        ):
            socket.send(nonsense.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
            assert hear(socket)["error"]["status"] in (400, 422)
        socket.send(b"\x00\x01")
        error(400, "bad_request")
        say(socket, rows[3:])
        reply = hear(socket)
        assert reply["step"] == 3
        session.check_outputs(reply, rows[3:])
    session.check(6)


def test_two_streams_and_http_step_one_session(session: Session) -> None:
    rows = session.rows(9)
    with session.stream() as one, session.stream() as two:
        say(one, rows[:3], 0)
        session.check_outputs(hear(one), rows[:3])
        say(two, rows[3:6], 3)
        session.check_outputs(hear(two), rows[3:6])
        session.stepped(rows[6:], 6)
        say(one, rows[3:6], 3)
        assert hear(one)["replayed"] is True
    session.check(9)


def test_a_stream_whose_client_leaves_without_a_word_leaves_the_session_before_or_after(
    session: Session,
) -> None:
    session.stepped(session.rows(2), 0)
    rows, at = session.rows(200, seed=1), 2
    for _ in range(3):
        with session.stream() as socket:
            say(socket, rows, at)
            socket.socket.close()  # no close frame
        reply = session.send(rows, at).raise_for_status().json()
        session.check_outputs(reply, rows)
        at += 200
        session.check(at)
