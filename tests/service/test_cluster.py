"""The root application, over replicas that are ASGI callables in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from service.api.cluster import Cluster, Facts, Replica
from service.asgi import Message, Receive, Scope, Send
from service.metrics_merge import merge

Answer = tuple[int, str, bytes]
METRICS = b"# TYPE cellstate_steps_total counter\ncellstate_steps_total 1.0\n"


class FakeReplica:
    """What a replica answers on its own port."""

    def __init__(self, model: str, sessions: int = 0, ready: bool = True, hangs: bool = False) -> None:
        facts = {"name": model, "version": "1", "sessions": {"device": sessions, "host": 0}}
        models = json.dumps({"models": [facts]}).encode()
        self.hangs = hangs
        self.answers: dict[str, Answer] = {
            "/v1/models": (200, "application/json", models),
            "/metrics": (200, "text/plain", METRICS),
            "/readyz": (200 if ready else 503, "application/json", b"{}"),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        status, kind, body = self.answers[scope["path"]]
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def describe(models: list[Facts]) -> tuple[bytes, bytes]:
    names = ",".join(m["name"] for m in models)
    return json.dumps({"openapi": "3.1.0", "names": names}).encode(), f"<p>{names}</p>".encode()


def make_cluster(models: list[str], door: str = "", **replicas: FakeReplica) -> Cluster:
    """A cluster of replicas named by keyword, each at http://<name>."""
    mounts = {f"http://{name}": httpx.ASGITransport(app) for name, app in replicas.items()}
    client = httpx.AsyncClient(transport=httpx.ASGITransport(_unreachable), mounts=mounts)
    entries = [
        Replica(json.loads(app.answers["/v1/models"][2])["models"][0]["name"], name, f"http://{name}")
        for name, app in replicas.items()
    ]

    async def listed() -> list[Replica]:
        return entries

    return Cluster(models, listed, merge, describe, client, timeout_s=0.2, door=door)


async def _unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise httpx.ConnectError("connection refused")


async def ask(cluster: Cluster, path: str, method: str = "GET") -> httpx.Response:
    transport = httpx.ASGITransport(cluster)
    async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
        return await client.request(method, path)


async def test_the_models_of_all_replicas_are_one_list_by_name() -> None:
    cluster = make_cluster(["b", "a"], r1=FakeReplica("b"), r2=FakeReplica("a"))
    reply = await ask(cluster, "/v1/models")
    assert reply.status_code == 200
    assert [m["name"] for m in reply.json()["models"]] == ["a", "b"]


async def test_the_sessions_of_a_models_replicas_are_added_up() -> None:
    cluster = make_cluster(["a"], r1=FakeReplica("a", sessions=2), r2=FakeReplica("a", sessions=5))
    (model,) = (await ask(cluster, "/v1/models")).json()["models"]
    assert model["sessions"] == {"device": 7, "host": 0}


async def test_a_model_without_a_replica_is_told_not_left_out() -> None:
    reply = await ask(make_cluster(["a", "b"], r1=FakeReplica("a")), "/v1/models")
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert "b" in reply.json()["detail"]


async def test_metrics_carry_the_replica_and_a_dead_one_is_left_out() -> None:
    cluster = make_cluster(["a"], r1=FakeReplica("a"), r2=FakeReplica("a", hangs=True), r3=FakeReplica("a"))
    reply = await ask(cluster, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in reply.text.splitlines() if not line.startswith("#")]
    assert lines == ['cellstate_steps_total{replica="r1"} 1.0', 'cellstate_steps_total{replica="r3"} 1.0']


async def test_a_text_that_is_no_exposition_costs_its_replica_only() -> None:
    broken = FakeReplica("a")
    broken.answers["/metrics"] = (200, "text/plain", b"x{ 1\n")
    reply = await ask(make_cluster(["a"], r1=FakeReplica("a"), r2=broken), "/metrics")
    assert reply.status_code == 200
    assert 'replica="r1"' in reply.text


async def test_ready_when_every_model_has_a_ready_replica() -> None:
    cluster = make_cluster(
        ["a", "b"], r1=FakeReplica("a", ready=False), r2=FakeReplica("a"), r3=FakeReplica("b")
    )
    assert (await ask(cluster, "/readyz")).status_code == 200


@pytest.mark.parametrize("b", [FakeReplica("b", ready=False), FakeReplica("b", hangs=True)])
async def test_not_ready_while_a_model_has_none(b: FakeReplica) -> None:
    reply = await ask(make_cluster(["a", "b"], r1=FakeReplica("a"), r2=b), "/readyz")
    assert reply.status_code == 503
    assert reply.json()["detail"] == "no replica of b is ready"


async def test_alive_without_any_replica() -> None:
    assert (await ask(make_cluster(["a"]), "/healthz")).json() == {"status": "ok"}


async def test_the_description_is_of_all_models() -> None:
    cluster = make_cluster(["a", "b"], r1=FakeReplica("a"), r2=FakeReplica("b"))
    assert (await ask(cluster, "/openapi.json")).json()["names"] == "a,b"
    page = await ask(cluster, "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == "<p>a,b</p>"


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/v1/models/c", "/v1/models/c/sessions/x/steps", "/metrics/"]
)
async def test_an_unknown_path_is_a_problem(path: str) -> None:
    reply = await ask(make_cluster(["a"], r1=FakeReplica("a")), path, "POST")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["code"] == "not_found"


async def test_an_unknown_model_is_told_which_there_are() -> None:
    reply = await ask(make_cluster(["a", "b"]), "/v1/models/c/predict", "POST")
    assert reply.json()["detail"] == "no model 'c'; served here: a, b"


async def test_only_reading_is_allowed() -> None:
    reply = await ask(make_cluster(["a"]), "/metrics", "DELETE")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "GET, HEAD"


async def test_head_is_get_without_the_body() -> None:
    reply = await ask(make_cluster(["a"]), "/healthz", "HEAD")
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-length"] == "15"


async def test_a_stream_to_nowhere_is_closed() -> None:
    sent: list[Message] = []

    def receiver() -> Callable[[], Awaitable[Any]]:
        async def receive() -> Any:
            return {"type": "websocket.connect"}

        return receive

    async def send(message: Message) -> None:
        sent.append(message)

    await make_cluster(["a"])({"type": "websocket", "path": "/x"}, receiver(), send)
    assert [m["type"] for m in sent] == ["websocket.close"]
    assert sent[0]["code"] == 4404


async def test_it_is_not_ready_before_the_front_door_leads_to_the_models() -> None:
    closed = await ask(make_cluster(["a"], r1=FakeReplica("a"), door="http://no-door"), "/readyz")
    assert closed.status_code == 503
    assert "front door" in closed.json()["detail"]
    leads = FakeReplica("a")
    leads.answers["/v1/models/a"] = (200, "application/json", b"{}")
    opened = await ask(make_cluster(["a"], r1=leads, door="http://r1"), "/readyz")
    assert opened.status_code == 200


async def test_prometheus_is_told_of_every_replica() -> None:
    cluster = make_cluster(["a", "b"], r2=FakeReplica("b"), r1=FakeReplica("a"))
    reply = await ask(cluster, "/metrics/targets")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == [
        {"targets": ["r1"], "labels": {"replica": "r1", "__meta_cellstate_model": "a"}},
        {"targets": ["r2"], "labels": {"replica": "r2", "__meta_cellstate_model": "b"}},
        {
            "targets": ["door"],
            "labels": {
                "replica": "door",
                "__meta_cellstate_model": "",
                "__metrics_path__": "/metrics/process",
            },
        },
    ]
