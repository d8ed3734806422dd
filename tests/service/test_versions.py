"""A new version of a model comes while sessions are being stepped, from one application to the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from loadtests.bundles import random_bundle
from model import bundle as bundles
from model.bundle import Bundle
from model.errors import BundleConflict
from model.network import Scaler
from model.reference import Reference
from service import listener
from service.listener import Listener
from service.settings import Settings
from service.wiring import Application, build
from tests.sessions.stores.redis_servers import Server

SESSIONS, STEPS, BEFORE = 50, 16, 4
PATH = "/v1/models/tiny"


@dataclass(frozen=True)
class Versions:
    """Two versions on disk."""

    old: Bundle
    new: Bundle
    paths: tuple[Path, Path]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    place = tmp_path_factory.mktemp("models")
    old = random_bundle(place / "one", layers=2, hidden=12, inputs=3, name="tiny")
    weights = {name: tensor * 0.7 for name, tensor in old.weights.items()}
    new = bundles.save(replace(old, version="2", weights=weights), place / "two")
    return Versions(old, new, (place / "one", place / "two"))


@asynccontextmanager
async def running(settings: Settings, *paths: Path) -> AsyncIterator[Application]:
    """An application that listens on a port of its own, until the block ends."""
    application = build(settings, paths)
    socket = listener.bind("127.0.0.1", [0])
    application.direct_url = listener.url(socket, "127.0.0.1")
    await application.startup()
    server = Listener(application, socket, settings)
    server.open()
    try:
        yield application
    finally:
        await application.shutdown()
        await server.close()


def rows(session: int) -> NDArray[np.float64]:
    return np.random.default_rng(session).standard_normal((STEPS, 3))


def states(bundle: Bundle, session: int, first: int) -> NDArray[np.float64]:
    """h and c [2, layers, hidden] by the reference, over the session's inputs from a step on."""
    reference = Reference(bundle.spec, bundle.weights)
    for row in Scaler(bundle.spec).normalise(rows(session))[first:]:
        reference.step(row)
    return np.stack((reference.h, reference.c))


class Clients:
    """Each steps its session to the end, by whichever of the addresses answers."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.steps = [0] * SESSIONS
        self.http = httpx.AsyncClient(timeout=30, trust_env=False)
        self.go_on, self.moved = asyncio.Event(), asyncio.Condition()

    async def run(self, session: int) -> None:
        choose = random.Random(session)
        for step, row in enumerate(rows(session).tolist()):
            if step == BEFORE:
                await self.go_on.wait()
            body = {"step": step, "inputs": [row]}
            while True:
                url = f"{choose.choice(self.addresses)}{PATH}/sessions/s{session}/steps"
                try:
                    reply = await self.http.post(url, json=body)
                except httpx.TransportError:
                    continue
                if reply.status_code == 503:
                    await asyncio.sleep(0.01)
                    continue
                assert reply.status_code == 200, reply.text
                assert reply.json()["step"] == step
                break
            async with self.moved:
                self.steps[session] = step + 1
                self.moved.notify_all()
            await asyncio.sleep(0.01)

    async def at(self, step: int) -> None:
        async with self.moved:
            await self.moved.wait_for(lambda: min(self.steps) >= step)


@pytest.mark.parametrize("store", ["sqlite", "redis"])
@pytest.mark.parametrize("upgrade", ["pin", "replay", "reset"])
async def test_live_sessions_go_over_to_a_new_version(
    versions: Versions, tmp_path: Path, store: str, upgrade: str
) -> None:
    server = Server(tmp_path / "redis", "--appendonly", "yes") if store == "redis" else None
    if server is not None:
        await server.start()
    address = f"sqlite:{tmp_path / 'sessions.db'}" if server is None else server.url
    settings = Settings(
        device="cpu", precision="fp32", slots=64, max_batch=16, store=address, upgrade=upgrade
    )
    clients = Clients()
    try:
        async with asyncio.timeout(60), clients.http:
            old_one = running(settings, versions.paths[0])
            old = await old_one.__aenter__()
            clients.addresses.append(old.direct_url)
            tasks = [asyncio.create_task(clients.run(n)) for n in range(SESSIONS)]
            await clients.at(BEFORE)
            async with running(settings, *versions.paths) as new:
                clients.addresses.append(new.direct_url)
                clients.go_on.set()
                await clients.at(BEFORE + 4)
                leaving = asyncio.create_task(old_one.__aexit__(None, None, None))
                clients.addresses.remove(old.direct_url)
                await asyncio.gather(leaving, *tasks)
                await check(versions, clients.http, new.direct_url, upgrade)
    finally:
        if server is not None:
            server.kill()


async def check(versions: Versions, http: httpx.AsyncClient, url: str, upgrade: str) -> None:
    expected = versions.old if upgrade == "pin" else versions.new
    for n in range(SESSIONS):
        path = f"{url}{PATH}/sessions/s{n}"
        facts = (await http.get(path)).json()
        assert (facts["next_step"], facts["version"]) == (STEPS, expected.version)
        tensors = load_tensors((await http.get(f"{path}/state")).content)
        state = np.stack((tensors["h"], tensors["c"]))
        begins = range(BEFORE, STEPS) if upgrade == "reset" else (0,)
        off = min(float(np.abs(state - states(expected, n, first)).max()) for first in begins)
        assert off < 1e-4
    opened = (await http.post(f"{url}{PATH}/sessions", json={})).json()
    assert opened["version"] == "2"
    model = (await http.get(f"{url}{PATH}")).json()
    counts = {v["version"]: (sum(v["sessions"].values()), v["new_sessions"]) for v in model["versions"]}
    if upgrade == "pin":
        assert counts == {"2": (1, True), "0": (SESSIONS, False)}
    else:
        assert counts == {"2": (SESSIONS + 1, True)}
    metrics = (await http.get(f"{url}/metrics")).text
    assert 'cellstate_steps_total{model="tiny",version="2"}' in metrics
    assert ('version="0"' in metrics) == (upgrade == "pin")


async def test_a_snapshot_of_an_older_version_opens_a_session_of_it_or_is_refused(
    versions: Versions, tmp_path: Path
) -> None:
    settings = Settings(device="cpu", slots=16, store=f"sqlite:{tmp_path / 's.db'}", upgrade="pin")
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        async with running(settings, versions.paths[0]) as old:
            await http.post(
                f"{old.direct_url}{PATH}/sessions/a/steps", json={"step": 0, "inputs": [[1.0, 0.2, 0.3]]}
            )
            snapshot = (await http.get(f"{old.direct_url}{PATH}/sessions/a/state")).content
        async with running(settings, *versions.paths) as new:
            put = await http.put(f"{new.direct_url}{PATH}/sessions/b/state", content=snapshot)
            assert put.status_code == 201, put.text
            assert (put.status_code, put.json()["version"], put.json()["next_step"]) == (201, "0", 1)
        async with running(replace(settings, upgrade="replay"), *versions.paths) as new:
            put = await http.put(f"{new.direct_url}{PATH}/sessions/c/state", content=snapshot)
            assert (put.status_code, put.json()["field"]) == (422, "model_digest")


def test_bundles_that_can_not_be_versions_of_one_model_are_refused(
    versions: Versions, tmp_path: Path
) -> None:
    same = bundles.save(replace(versions.old, version="7"), tmp_path / "same")
    with pytest.raises(BundleConflict, match="same weights"):
        bundles.lineages([versions.old, same])
    with pytest.raises(BundleConflict, match="two bundles"):
        bundles.lineages([versions.new, replace(versions.old, version="02")])
    order = [replace(versions.old, version=v, digest=v) for v in ("2", "10", "1.10", "1.2")]
    assert [b.version for b in bundles.lineages(order)[0]] == ["10", "2", "1.10", "1.2"]
