"""Whether clients are told their replica's own address."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from loadtests.bundles import random_bundle
from service.settings import Settings
from service.wiring import build

OWN = "http://10.0.0.7:8100"


@pytest.mark.parametrize(("direct", "told"), [("on", OWN), ("off", "")])
async def test_clients_are_told_the_address_unless_they_cannot_reach_it(
    direct: str, told: str, tmp_path: Path
) -> None:
    random_bundle(tmp_path / "m", 1, 8, 2, "m")
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    settings = Settings(device="cpu", slots=64, max_batch=8, store=store, direct=direct)
    application = build(settings, [tmp_path / "m"])
    application.direct_url = OWN
    await application.startup()
    try:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            opened = await client.post("/v1/models/m/sessions", json={"session_id": "a"})
            facts = await client.get("/v1/models/m/sessions/a")
        assert (opened.json()["direct_url"], facts.json()["direct_url"]) == (told, told)
        assert application.direct_url == OWN, "the other replicas reach it all the same"
    finally:
        await application.shutdown()
