"""A process that serves alone tells Prometheus where it is."""

from __future__ import annotations

import httpx
import jsonschema  # type: ignore[import-untyped]

from tests.api.serving import NARROW, SERIES, TEXT


def test_a_process_names_itself_as_it_was_asked(client: httpx.Client) -> None:
    (group,) = client.get("/metrics/targets").raise_for_status().json()
    assert group["targets"] == [f"{client.base_url.host}:{client.base_url.port}"]
    assert group["labels"]["__meta_cellstate_model"] == ",".join(sorted((NARROW, SERIES, TEXT)))
    again = client.get("/metrics/targets", headers={"host": "replica.internal:81"}).json()
    assert again[0]["targets"] == ["replica.internal:81"]
    assert again[0]["labels"] == group["labels"]


def test_a_process_behind_encryption_is_scraped_through_it(client: httpx.Client) -> None:
    (group,) = client.get("/metrics/targets", headers={"x-forwarded-proto": "https"}).json()
    assert group["labels"]["__scheme__"] == "https"


def test_the_targets_are_as_described(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    reply = api["paths"]["/metrics/targets"]["get"]["responses"]["200"]["content"]["application/json"]
    schema = {**reply["schema"], "components": api["components"]}
    jsonschema.validate(client.get("/metrics/targets").json(), schema)
