"""A watch model over HTTP: the contract is that of every model, and its outputs are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from model import bundle as bundles
from model.watch.detector import Detector
from tests.api.serving import Served, serving
from tests.model.watch.making import make_series, make_watch_bundle

VALUES = make_series(60)
PATH = "/v1/models/watch"


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bundle = make_watch_bundle()
    path = tmp_path_factory.mktemp("bundles") / "watch"
    bundles.save(bundle, path)
    with serving([path]) as where:
        yield where


@pytest.fixture
def http(watching: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=watching.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> Any:
    detector = Detector(make_watch_bundle())
    readings = [detector.step(value) for value in VALUES]
    return np.array([(r.expected, r.low, r.high, r.score, r.likelihood) for r in readings])


def rows(start: int, stop: int) -> list[list[float]]:
    return [[value] for value in VALUES[start:stop]]


def check(outputs: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(outputs), expected, rtol=1e-4, atol=1e-4)


def test_the_model_names_what_it_reads_and_says(http: httpx.Client) -> None:
    facts = http.get(PATH).raise_for_status().json()
    assert facts["task"] == "watch"
    assert [s["name"] for s in facts["inputs"]] == ["value"]
    assert [s["name"] for s in facts["outputs"]] == ["expected", "low", "high", "score", "likelihood"]


def test_steps_bulk_stream_and_a_whole_sequence_say_what_the_detector_says(
    watching: Served, http: httpx.Client, expected: Any
) -> None:
    steps = f"{PATH}/sessions/w/steps"
    for step in range(5):
        reply = (
            http.post(steps, json={"step": step, "inputs": rows(step, step + 1)}).raise_for_status().json()
        )
        check(reply["outputs"], expected[step : step + 1])
    items = [
        {"session_id": "w", "step": 5, "inputs": rows(5, 6)},
        {"session_id": "v", "step": 0, "inputs": rows(0, 1)},
    ]
    results = http.post(f"{PATH}/steps", json={"requests": items}).raise_for_status().json()["results"]
    check(results[0]["outputs"], expected[5:6])
    check(results[1]["outputs"], expected[:1])
    with connect(f"{watching.ws}{PATH}/sessions/w/stream", proxy=None, open_timeout=30) as socket:
        for step in range(6, 30):
            socket.send(json.dumps({"step": step, "inputs": rows(step, step + 1)}))
            check(json.loads(socket.recv())["outputs"], expected[step : step + 1])
    again = http.post(steps, json={"step": 20, "inputs": rows(20, 21)}).raise_for_status().json()
    assert again["replayed"]
    whole = http.post(f"{PATH}/predict", json={"inputs": rows(0, 60)}).raise_for_status().json()
    check(whole["outputs"], expected)


def test_an_exported_session_goes_on_elsewhere(http: httpx.Client, expected: Any) -> None:
    http.post(f"{PATH}/sessions/x/steps", json={"step": 0, "inputs": rows(0, 40)}).raise_for_status()
    blob = http.get(f"{PATH}/sessions/x/state").raise_for_status().content
    http.put(f"{PATH}/sessions/y/state", content=blob).raise_for_status()
    http.post(f"{PATH}/sessions/y/fork", json={"session_id": "z"}).raise_for_status()
    for name in "yz":
        path = f"{PATH}/sessions/{name}/steps"
        reply = http.post(path, json={"step": 40, "inputs": rows(40, 60)}).raise_for_status().json()
        check(reply["outputs"], expected[40:])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"inputs": [[1.0, 2.0]]}, "invalid_value"),
        ({"inputs": [[1e31]]}, "invalid_value"),
        ({"text": "a"}, "invalid_value"),
        ({"inputs": [[1.0]], "horizon": 2}, "invalid_value"),
    ],
)
def test_what_it_can_not_do_is_said(http: httpx.Client, body: dict[str, Any], code: str) -> None:
    response = http.post(f"{PATH}/predict", json=body)
    assert (response.status_code, response.json()["code"]) == (422, code), response.text
