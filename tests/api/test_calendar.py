"""A model with a calendar over HTTP: its facts say so, and the time is a number in each row."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from model import bundle as bundles
from tests.api.serving import serving
from tests.model.making import make_bundle, make_spec

PATH = "/v1/models/tiny"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    bundles.save(make_bundle(make_spec(calendar=("day", "week"))), path)
    with serving([path]) as where, httpx.Client(base_url=where.url, timeout=20, trust_env=False) as client:
        yield client


def test_the_facts_and_the_page_tell_of_the_calendar(http: httpx.Client) -> None:
    facts = http.get(PATH).raise_for_status().json()
    assert facts["calendar"] == {"features": ["day", "week"], "spacing_s": 3600.0}
    assert facts["inputs"][-1]["unit"] == "s since 1970-01-01"
    assert "of which it reads day, week" in http.get("/docs").raise_for_status().text
    api = http.get("/openapi.json").raise_for_status().json()
    assert "CalendarFacts" in api["components"]["schemas"]


def test_milliseconds_are_refused_and_the_session_has_not_moved(http: httpx.Client) -> None:
    steps = f"{PATH}/sessions/a/steps"
    body = {"step": 0, "inputs": [[0.0, 10.0, 1_732_000_000]], "horizon": 6}
    reply = http.post(steps, json=body).raise_for_status().json()
    assert len(reply["forecast"]) == 6
    refused = http.post(steps, json={"step": 1, "inputs": [[0.0, 10.0, 1_732_003_600_000]]})
    assert refused.status_code == 422
    assert refused.json()["field"] == "inputs[0][2]"
    assert "in seconds since 1970" in refused.json()["detail"]
    bulk = [
        {"session_id": "a", "step": 1, "inputs": [[0.0, 10.0, t]]} for t in (1_732_003_600_000, 1_732_003_600)
    ]
    results = http.post(f"{PATH}/steps", json={"requests": bulk}).raise_for_status().json()["results"]
    assert results[0]["error"]["field"] == "inputs[0][2]"
    assert results[1]["next_step"] == 2
