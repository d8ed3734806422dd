"""The description says what the service does: nothing more, nothing less."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from service.api.openapi import document
from service.api.operations import OPERATIONS, TAGS, example_bodies, horizon
from service.api.pages import page
from service.api.problems import TABLE
from service.api.routes import ROUTES, STREAM
from service.api.schemas import SESSION_ID_PATTERN
from service.sessions.register import SESSION_ID
from tests.api.serving import NARROW, SERIES, TEXT, Served, Witness

Object = dict[str, Any]


@pytest.fixture(scope="module")
def api(client: httpx.Client) -> Object:
    found: Object = client.get("/openapi.json").raise_for_status().json()
    return found


@pytest.fixture(scope="module")
def docs(client: httpx.Client) -> str:
    return client.get("/docs").raise_for_status().text


def resolved(api: Object, schema: Object) -> Object:
    """A schema of the document that can stand alone."""
    return {**schema, "components": api["components"]}


def reply_schema(api: Object, path: str, method: str, response: httpx.Response) -> Object:
    """What the document says of a response; that it says anything of it is asserted."""
    replies = api["paths"][path][method]["responses"]
    assert str(response.status_code) in replies, response.text
    media = response.headers["content-type"].partition(";")[0]
    return resolved(api, replies[str(response.status_code)]["content"][media]["schema"])


def test_every_route_is_described_and_nothing_else(api: Object) -> None:
    described = {
        (path, method.upper())
        for path, item in api["paths"].items()
        for method in item
        if method != "parameters"
    }
    served = {(path, method) for path, methods in ROUTES.items() for method in methods}
    assert described == served == set(OPERATIONS)


def test_operation_ids_are_unique_and_their_tags_explained(api: Object) -> None:
    ids = [operation.id for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)
    assert {operation.tag for operation in OPERATIONS.values()} | {"Stream"} == set(TAGS)
    assert {link for operation in OPERATIONS.values() for link in operation.links} <= set(ids)


def test_the_document_is_openapi(api: Object) -> None:
    from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

    assert api["openapi"] == "3.1.0"
    OPENAPI_31_VALIDATOR.validate(api)
    for schema in api["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere(api: Object) -> None:
    text = json.dumps(api)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(api["components"]["schemas"])
    assert set(api["components"]["schemas"]) <= names, "described and never used"


def test_the_stream_and_every_code_are_described(api: Object) -> None:
    assert api["x-websocket"]["path"] == STREAM
    assert set(api["x-errors"]) == {kind.code for kind in TABLE.values()}
    closes = {str(kind.close) for kind in TABLE.values() if kind.close is not None}
    assert all(close in api["x-websocket"]["description"] for close in closes | {"1009"})


def test_one_pattern_of_ids_is_told_and_checked() -> None:
    assert f"^{SESSION_ID.pattern}$" == SESSION_ID_PATTERN


def test_models_are_named(api: Object, client: httpx.Client) -> None:
    served = [model["name"] for model in client.get("/v1/models").json()["models"]]
    parameters = api["paths"]["/v1/models/{model}/predict"]["parameters"]
    assert parameters[0]["schema"]["enum"] == served == [TEXT, NARROW, SERIES]


WITH_EXAMPLES = sorted((path, method.lower()) for (path, method), o in OPERATIONS.items() if o.examples)


@pytest.mark.parametrize(("path", "method"), WITH_EXAMPLES)
def test_every_example_works_and_is_answered_as_described(
    path: str, method: str, api: Object, client: httpx.Client
) -> None:
    content = api["paths"][path][method]["requestBody"]["content"]["application/json"]
    assert {name.partition("/")[0] for name in content["examples"]} == {TEXT, NARROW, SERIES}
    for name, example in content["examples"].items():  # those of a model are for one session, in order
        model = name.partition("/")[0]
        jsonschema.validate(example["value"], resolved(api, content["schema"]))
        of_its_own = path.endswith(("/fork", "/rewind"))  # they need a session that is open
        session = f"example-of-{method}-{path.rsplit('/', 1)[1]}" if of_its_own else "example"
        if of_its_own:
            client.post(f"/v1/models/{model}/sessions", json={"session_id": session}).raise_for_status()
        url = path.replace("{model}", model).replace("{session_id}", session)
        response = client.request(method, url, json=example["value"])
        assert response.status_code in (200, 201), response.text
        jsonschema.validate(response.json(), reply_schema(api, path, method, response))
        assert "error" not in response.text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": [[1.0]], "text": "a"},
        {"inputs": []},
        {"inputs": [[]]},
        {"text": ""},
        {"text": "a", "horizon": 1},
        {"inputs": [[1.0]], "generate": {"length": 1}},
        {"inputs": [[1.0]], "step": -1},
        {"inputs": [[1.0]], "surplus": 1},
        {"inputs": [["1"]]},
        {"inputs": [[True]]},
    ],
)
def test_what_no_model_takes_the_schema_refuses(body: Object, api: Object, client: httpx.Client) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, resolved(api, {"$ref": "#/components/schemas/StepBody"}))
    for model in (SERIES, TEXT):
        path = "/v1/models/{model}/sessions/{session_id}/steps"
        response = client.post(f"/v1/models/{model}/sessions/refused/steps", json={"step": 0, **body})
        assert response.status_code == 422
        jsonschema.validate(response.json(), reply_schema(api, path, "post", response))


def test_absent_may_be_written_null(client: httpx.Client) -> None:
    body = {"inputs": [[10.0, 0.5]], "text": None, "horizon": None, "generate": None}
    assert client.post(f"/v1/models/{SERIES}/predict", json=body).status_code == 200


def test_an_example_asks_no_more_than_the_model_sees(client: httpx.Client) -> None:
    models = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert (horizon(models[SERIES]), horizon(models[NARROW])) == (6, 3)


def test_a_service_without_models_can_be_described() -> None:
    assert "enum" not in document([])["paths"]["/v1/models/{model}"]["parameters"][0]["schema"]
    assert "<h1>Cellstate" in page(document([]), [])


def test_the_description_is_built_once(client: httpx.Client) -> None:
    assert client.get("/openapi.json").content == client.get("/openapi.json").content
    assert client.get("/docs").content == client.get("/docs").content


# The page


class Outline(HTMLParser):
    """The ids, links, and addresses of a page; that its elements are closed in order."""

    VOID = ("meta", "link", "br", "hr", "input", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "srcset", "action"):
                self.loads.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(docs: str) -> None:
    outline = Outline(docs)
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link for link in outline.links if link.startswith("#")} <= {f"#{i}" for i in outline.ids}
    assert outline.loads == ["data:,"]
    assert "url(" not in docs
    assert "@import" not in docs
    assert "prefers-color-scheme: dark" in docs


def test_the_type_of_every_problem_is_a_place_on_the_page(docs: str) -> None:
    ids = set(Outline(docs).ids)
    assert {kind.code for kind in TABLE.values()} <= ids
    assert {operation.id for operation in OPERATIONS.values()} <= ids


def test_a_bundle_can_put_no_markup_into_the_page(client: httpx.Client) -> None:
    (model,) = (m for m in client.get("/v1/models").json()["models"] if m["name"] == SERIES)
    evil = "</code></script><script>alert('x')</script><b onclick=\"x\">"
    signal = {"name": evil, "unit": evil, "mean": 0.0, "std": 1.0}
    series = {
        **model,
        "name": evil,
        "description": evil,
        "version": evil,
        "inputs": [signal],
        "quality": {"part": evil, "table": {evil: {evil: evil}}},
    }
    text = {**series, "task": "text", "vocabulary": evil, "inputs": [], "outputs": []}
    for models in ([series], [text]):
        shown = page(document(models), models)
        assert shown.count("<script") == 1
        assert "<b onclick" not in shown
        Outline(shown)


@pytest.mark.parametrize(
    "quality", [{}, {"table": None}, {"table": {"model": 1}}, {"table": {"model": {"mae": None}}}]
)
def test_a_page_can_show_any_quality(quality: Object, client: httpx.Client) -> None:
    (model,) = (m for m in client.get("/v1/models").json()["models"] if m["name"] == SERIES)
    Outline(page(document([model]), [{**model, "quality": quality}]))


def test_the_commands_on_the_page_work(client: httpx.Client) -> None:
    for model in client.get("/v1/models").json()["models"]:
        base = f"/v1/models/{model['name']}"
        steps, predict = example_bodies("step", model), example_bodies("predict", model)
        first = client.post(f"{base}/sessions/pasted/steps", json=steps[""]).raise_for_status().json()
        again = client.post(f"{base}/sessions/pasted/steps", json=steps[""]).raise_for_status().json()
        assert again == {**first, "replayed": True}
        onward = {"step": first["next_step"], **steps["onward"]}
        reply = client.post(f"{base}/sessions/pasted/steps", json=onward).raise_for_status().json()
        whole = client.post(f"{base}/predict", json=predict["onward"]).raise_for_status().json()
        assert set(whole) - {"outputs"} == set(reply) & {"forecast", "generated"} != set()


# Everything at once

CONFIGURATION = """
seed = 1
continue-on-failure = true
request-timeout = 20
color = false
warnings.enabled = false
generation.max-examples = 20
generation.database = "none"
phases.stateful.enabled = false  # its rules of resources are others: step 0 opens what was deleted

[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]  # of a timeout_ms that is short
positive_data_acceptance.enabled = false  # a schema for all models can't know one's width
use_after_free.enabled = false
ensure_resource_availability.enabled = false

[[operations]]
include-operation-id = "stepMany"
checks.negative_data_rejection.enabled = false  # an item's error is in the item's place, under status 200
"""


def test_nothing_that_the_description_allows_or_forbids_breaks_the_service(
    served: Served, tmp_path: Path, witness: Callable[[str], Witness]
) -> None:
    witness(SERIES), witness(TEXT)
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    url = f"{served.url}/openapi.json"
    command = [sys.executable, "-c", program, "--config-file", str(configuration), "run", url]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
