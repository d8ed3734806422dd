"""Whatever is asked, /metrics has it once: by route and status, by code, by item, by stream."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from tests.api.serving import SERIES, STEPS, Served, save_bundles, serving

Labels = frozenset[tuple[str, str]]
STEP = "/v1/models/{model}/sessions/{session_id}/steps"
STREAM = "/v1/models/{model}/sessions/{session_id}/stream"
UNKNOWN = "session_not_found"
ROW = STEPS[SERIES]["inputs"][0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(save_bundles(tmp_path_factory.mktemp("bundles"))) as found:
        yield found


def samples(served: Served) -> dict[tuple[str, Labels], float]:
    text = httpx.get(f"{served.url}/metrics", trust_env=False).raise_for_status().text
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def change(served: Served, what: Callable[[], Any], *names: str) -> dict[tuple[str, ...], float]:
    """What happened to these counters meanwhile: name and label values by label name; /metrics apart."""
    before = samples(served)
    what()
    after = samples(served)
    found = {}
    for (name, labels), value in after.items():
        moved = value - before.get((name, labels), 0)
        if name in names and moved and ("route", "/metrics") not in labels:
            found[name.removeprefix("cellstate_"), *(v for _, v in sorted(labels))] = moved
    return found


def post(served: Served, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{served.url}/v1/models/{path}", content=content, trust_env=False)


@pytest.mark.parametrize(
    ("path", "body", "labels", "code"),
    [
        (f"{SERIES}/sessions/a/steps", {"inputs": "no"}, (SERIES, STEP, "422"), "invalid_value"),
        (f"{SERIES}/sessions/a/steps", b"{", (SERIES, STEP, "400"), "bad_request"),
        (f"{SERIES}/sessions/-/steps", {"inputs": [ROW]}, (SERIES, STEP, "422"), "invalid_value"),
        (f"{SERIES}/sessions/a/steps", {"inputs": [ROW], "step": 4}, (SERIES, STEP, "404"), UNKNOWN),
        (f"{SERIES}/sessions/a/stream", b"", (SERIES, STREAM, "405"), "method_not_allowed"),
        ("invented-0815/sessions/a/steps", {"inputs": [ROW]}, ("", STEP, "404"), "not_found"),
        (f"{SERIES}/nothing/0815", b"", ("", "none", "404"), "not_found"),
        (f"{SERIES}/handover", b"{}", (SERIES, "/v1/models/{model}/handover", "404"), "not_found"),
    ],
)  # fmt: skip
def test_an_error_is_a_request_of_its_status_and_a_code(
    served: Served, path: str, body: Any, labels: tuple[str, ...], code: str
) -> None:
    names = ("cellstate_requests_total", "cellstate_errors_total", "cellstate_request_seconds_count")
    assert change(served, lambda: post(served, path, body), *names) == {
        ("requests_total", *labels): 1,
        ("request_seconds_count", *labels[:2]): 1,
        ("errors_total", code, labels[0]): 1,
    }


def test_the_items_of_a_bulk_body_are_counted_each_and_the_body_once(served: Served) -> None:
    requests: list[Any] = [{"session_id": f"bulk-{n}", "step": 0, "inputs": [ROW]} for n in range(5)]
    requests += [{"session_id": "bulk-0", "step": 9, "inputs": [ROW]}, {"session_id": "bulk-1"}, 7]
    kinds = ("requests", "bulk_items", "errors", "steps", "conflicts")
    names = [f"cellstate_{kind}_total" for kind in kinds]
    assert change(served, lambda: post(served, f"{SERIES}/steps", {"requests": requests}), *names) == {
        ("requests_total", SERIES, "/v1/models/{model}/steps", "200"): 1,
        ("bulk_items_total", SERIES, "200"): 5,
        ("bulk_items_total", SERIES, "409"): 1,
        ("bulk_items_total", SERIES, "422"): 2,
        ("errors_total", "step_conflict", SERIES): 1,
        ("errors_total", "invalid_value", SERIES): 2,
        ("steps_total", SERIES, "1"): 5,
        ("conflicts_total", SERIES, "gap", "1"): 1,
    }


STREAMS = (
    "cellstate_requests_total",
    "cellstate_errors_total",
    "cellstate_streams",
    "cellstate_streams_opened_total",
    "cellstate_streams_closed_total",
)


def stream(served: Served, session: str, *messages: Any, model: str = SERIES) -> list[Any]:
    with connect(f"{served.ws}/v1/models/{model}/sessions/{session}/stream", proxy=None) as talk:
        replies = []
        for message in messages:
            talk.send(message if isinstance(message, bytes | str) else json.dumps(message))
            replies.append(json.loads(talk.recv(timeout=30)))
        return replies


def test_a_stream_is_a_request_for_each_message(served: Served) -> None:
    good = [{"step": n, "inputs": [ROW]} for n in range(3)]

    def talks() -> None:
        stream(served, "s", *good, "{", b"\0", good[0])
        settled(served)

    assert change(served, talks, *STREAMS) == {
        ("requests_total", SERIES, STREAM, "200"): 4,
        ("requests_total", SERIES, STREAM, "400"): 2,
        ("errors_total", "bad_request", SERIES): 2,
        ("streams_opened_total", SERIES): 1,
        ("streams_closed_total", "client", SERIES): 1,
    }  # fmt: skip


def settled(served: Served) -> None:
    """Until the service knows that the stream's client has left."""
    while any(value for (name, _), value in samples(served).items() if name == "cellstate_streams"):
        time.sleep(0.02)


def test_an_open_stream_is_seen_and_that_its_connection_broke(served: Served) -> None:
    with connect(f"{served.ws}/v1/models/{SERIES}/sessions/open/stream", proxy=None) as talk:
        talk.send(json.dumps({"step": 0, "inputs": [ROW]}))
        talk.recv(timeout=30)
        assert samples(served)["cellstate_streams", frozenset({("model", SERIES)})] == 1

        def breaks() -> None:
            talk.socket.shutdown(socket.SHUT_RDWR)
            settled(served)

        found = change(served, breaks, "cellstate_streams_closed_total")
    assert found == {("streams_closed_total", "client", SERIES): 1}


def test_a_stream_to_no_model_of_ours_has_no_label_of_its_own(served: Served) -> None:
    def opens() -> None:
        with connect(f"{served.ws}/v1/models/invented-4711/sessions/s/stream", proxy=None) as talk:
            assert json.loads(talk.recv(timeout=30))["error"]["status"] == 404

    assert change(served, opens, *STREAMS) == {
        ("requests_total", "", STREAM, "404"): 1,
        ("errors_total", "not_found", ""): 1,
    }


def test_a_client_that_hangs_up_is_a_499(served: Served) -> None:
    def hangs_up() -> None:
        head = f"POST /v1/models/{SERIES}/sessions/h/steps HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
        served.raw(head.encode() + b"{", half_close=True)
        end = time.monotonic() + 10
        while not any(("status", "499") in labels for _, labels in samples(served)):
            assert time.monotonic() < end
            time.sleep(0.02)

    assert change(served, hangs_up, "cellstate_requests_total", "cellstate_errors_total") == {
        ("requests_total", SERIES, STEP, "499"): 1
    }


def test_predictions_and_retries_are_no_steps(served: Served) -> None:
    def asks() -> None:
        post(served, f"{SERIES}/predict", {"inputs": [ROW] * 3, "horizon": 2}).raise_for_status()
        for _ in range(3):
            body = {"step": 0, "inputs": [ROW] * 2}
            post(served, f"{SERIES}/sessions/again/steps", body).raise_for_status()

    names = [f"cellstate_{kind}steps_total" for kind in ("", "predicted_", "deduplicated_", "engine_")]
    assert change(served, asks, *names) == {
        ("steps_total", SERIES, "1"): 2,
        ("predicted_steps_total", SERIES, "1"): 3,
        ("deduplicated_steps_total", SERIES, "1"): 4,
        ("engine_steps_total", SERIES, "1"): 2 + 3,  # two steps ahead are among the leads of the model
    }


def test_reasons_are_there_before_they_happen(tmp_path: Path) -> None:
    with serving(save_bundles(tmp_path)) as fresh:
        found = samples(fresh)
    for name, reason in (("rejected", "queue"), ("lost", "process"), ("takeovers", "lease")):
        labels = frozenset({("model", SERIES), ("version", "1"), ("reason", reason)})
        assert found[f"cellstate_{name}_total", labels] == 0
