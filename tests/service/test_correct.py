"""Hundreds of sessions at once, in random pieces, each the float64 reference over its whole sequence alone.

The shipped models on real data; where a model or its data is not there, made ones take their place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from websockets.asyncio.client import connect

from model import bundle as bundles
from model.bundle import Bundle
from model.data import read_series, read_text
from model.network import Scaler
from model.reference import Reference
from service.settings import SHIPPED_BUNDLES, Settings
from tests.service.references import References
from tests.service.serving import SERIES, TEXT, Service, save_bundles, serving

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
#: Of normalised values (series) and log-probabilities (text), by the service's precision. Measured of the
#: shipped models: fp32 2.3e-5, 4e-5; bf16 where rows are rounded too (AVX-512's pairs, AMX) 0.015, 0.074.
TOLERANCES = {"fp32": {"series": 1e-4, "text": 1e-4}, "bf16": {"series": 0.03, "text": 0.15}}
#: Of h and c after 20,000 steps; measured 1.1e-6 and 0.0026
DRIFTS = {"fp32": 1e-3, "bf16": 0.01}
SESSIONS = 200
STEPS = {"series": 300, "text": 200}  # of each session
#: Different sequences among the sessions. Of the large text model fewer, each cut in several ways: the
#: reference in float64 takes longer than the service.
SEQUENCES = {"series": 200, "text": 40}
LONG = 20_000


@dataclass(frozen=True)
class Material:
    """A model, and what its sessions are fed: `prepared` for the reference, `raw` for the wire."""

    bundle: Bundle
    prepared: NDArray[np.generic]  # [N, I] normalised, or [N] tokens
    raw: Any  # N rows in units, or N characters

    def message(self, begin: int, end: int, step: int, **more: Any) -> str:
        key = "text" if self.bundle.spec.architecture.task == "text" else "inputs"
        return json.dumps({"step": step, key: self.raw[begin:end], **more})

    def normalised(self, outputs: Any) -> NDArray[np.float64]:
        array = np.array(outputs, np.float64)
        if self.bundle.spec.architecture.task == "text":
            return array
        scaler = Scaler(self.bundle.spec)
        return np.asarray((array - scaler.output_mean) / scaler.output_std)


def make_material(bundle: Bundle) -> Material:
    """Real data for a shipped model; a skip says where it should be. Made data for a made model."""
    spec = bundle.spec
    if spec.architecture.task == "text":
        index = {character: token for token, character in enumerate(spec.vocabulary)}
        if bundle.name == TEXT:
            text = "".join(Random(5).choices(spec.vocabulary, k=5000))
        else:
            text = read_text(need(DATA / "tinyshakespeare.txt")).characters[-200_000:]
        return Material(bundle, np.array([index[character] for character in text]), text)
    if bundle.name == SERIES:
        scaler = Scaler(spec)
        x = np.random.default_rng(5).standard_normal((5000, len(spec.inputs))) * scaler.input_std
        values = x + scaler.input_mean
    else:
        series = read_series(need(DATA / "ETTh1.csv"))
        values = series.columns([s.name for s in spec.inputs])
    return Material(bundle, Scaler(spec).normalise(values), values.tolist())


def need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"the data is not there: {path.name} in shared/data beside the repository")
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The service has the other core; threads that wait for each other on a busy one take far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series and a text model: the shipped ones, or in their place made ones."""
    directory, made = tmp_path_factory.mktemp("models"), save_bundles(tmp_path_factory.mktemp("made"))
    for shipped, other in (("ett", SERIES), ("shakespeare", TEXT)):
        source = SHIPPED_BUNDLES / shipped
        source = source if (source / bundles.MANIFEST).exists() else made / other
        (directory / source.name).symlink_to(source)
    return directory


@pytest.fixture(scope="module", params=list(TOLERANCES))
def precision(request: pytest.FixtureRequest) -> str:
    """The nearest one, and what a service has that was not asked for any."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def roomy(models: Path, precision: str) -> Iterator[Service]:
    """A service with a slot for everybody."""
    with serving(models, precision=precision, max_wait_ms=600_000) as service:
        yield service


@pytest.fixture(scope="module")
def crowded(models: Path, precision: str) -> Iterator[Service]:
    """A service with 8 slots: whoever steps comes from the host and goes back to it."""
    with serving(models, slots=8, max_batch=8, precision=precision, max_wait_ms=600_000) as service:
        yield service


def material_of(service: Service, task: str) -> Material:
    bundle = service.of(task)
    assert bundle is not None
    return make_material(bundle)


class Line:
    """One session's two ways to the service, each a connection that is kept: HTTP and a stream."""

    def __init__(self, service: Service, material: Material, session_id: str) -> None:
        self.material = material
        self._path = f"/v1/models/{material.bundle.name}/sessions/{session_id}"
        self._url, self._ws = urlsplit(service.url), service.ws

    async def open(self) -> Line:
        url = f"{self._ws}{self._path}/stream"
        self._stream = await connect(url, proxy=None, max_size=None, ping_interval=None)
        self._reader, self._writer = await asyncio.open_connection(
            self._url.hostname, self._url.port, limit=2**24
        )
        return self

    async def close(self) -> None:
        await self._stream.close()
        self._writer.close()
        await self._writer.wait_closed()

    async def over_http(self, message: str) -> Any:
        """By hand: a client's pool of connections would cost more than all else here."""
        body = message.encode()
        self._writer.write(
            f"POST {self._path}/steps HTTP/1.1\r\nHost: {self._url.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return json.loads(await self._reader.readexactly(length))

    async def over_the_stream(self, message: str) -> Any:
        await self._stream.send(message)
        return json.loads(await self._stream.recv())

    async def converse(self, begin: int, seed: int) -> NDArray[np.float64]:
        """Requests of 1 to 50 steps, each by the one way or the other; their outputs, normalised."""
        material = self.material
        random, steps = Random(seed), STEPS[material.bundle.spec.architecture.task]
        outputs: list[Any] = []
        while len(outputs) < steps:
            at = len(outputs)
            count = min(random.choice((1, random.randint(1, 50))), steps - at)
            way = random.choice((self.over_http, self.over_the_stream))
            reply = await way(material.message(begin + at, begin + at + count, at))
            assert reply.get("next_step") == at + count, reply
            outputs += reply["outputs"]
        return material.normalised(outputs)


async def converse_all(service: Service, material: Material, name: str) -> float:
    """200 sessions at once; the largest deviation of any output from the reference."""
    task = material.bundle.spec.architecture.task
    steps, sequences = STEPS[task], SEQUENCES[task]
    random = Random(name)
    begins = [random.randrange(len(material.prepared) - steps) for _ in range(sequences)]
    lines = [await Line(service, material, f"{name}-{n}").open() for n in range(SESSIONS)]
    outputs = await asyncio.gather(
        *(line.converse(begins[n % sequences], seed=n) for n, line in enumerate(lines))
    )
    await asyncio.gather(*(line.close() for line in lines))
    references, worst = References(material.bundle, sequences), 0.0
    rows = np.array(begins)
    answered = np.array(outputs).reshape(SESSIONS // sequences, sequences, steps, -1)
    for t in range(steps):
        expected = references.step(material.prepared[rows + t])
        worst = max(worst, float(np.abs(answered[:, :, t] - expected).max()))
    print(f"{material.bundle.name}: largest deviation {worst:.3g}")  # shown by -rP
    return worst


def test_the_default_precision_is_one_of_those_that_are_tried() -> None:
    assert Settings().precision in TOLERANCES


@pytest.mark.parametrize("task", ["series", "text"])
def test_side_by_side_the_references_are_the_reference(models: Path, task: str) -> None:
    """The oracle of this file against the oracle of the house."""
    material = next(
        make_material(b) for b in map(bundles.load, bundles.find(models)) if b.spec.architecture.task == task
    )
    weights = {name: tensor.numpy() for name, tensor in material.bundle.weights.items()}
    batch, begins = References(material.bundle, 3), np.array([0, 100, 999])
    alone = [Reference(material.bundle.spec, weights) for _ in begins]
    for t in range(40):
        together = batch.step(material.prepared[begins + t])
        for b, begin in enumerate(begins):
            np.testing.assert_allclose(
                together[b], alone[b].step(material.prepared[begin + t])[0], atol=1e-12
            )
    np.testing.assert_allclose(batch.h[:, 1], alone[1].h, atol=1e-12)
    np.testing.assert_allclose(batch.c[:, 1], alone[1].c, atol=1e-12)


@pytest.mark.parametrize("task", ["series", "text"])
async def test_every_session_is_the_reference_alone(roomy: Service, precision: str, task: str) -> None:
    material = material_of(roomy, task)
    worst = await converse_all(roomy, material, f"roomy-{task}")
    assert worst <= TOLERANCES[precision][task], f"{material.bundle.name}: largest deviation {worst:.3g}"
    assert roomy.metric("cellstate_evictions_total", model=material.bundle.name) == 0
    assert roomy.metric("cellstate_steps_total", model=material.bundle.name) >= SESSIONS * STEPS[task]


@pytest.mark.parametrize("task", ["series", "text"])
async def test_sessions_that_spill_all_the_time_are_the_reference_too(
    crowded: Service, precision: str, task: str
) -> None:
    material = material_of(crowded, task)
    worst = await converse_all(crowded, material, f"crowded-{task}")
    assert worst <= TOLERANCES[precision][task], f"{material.bundle.name}: largest deviation {worst:.3g}"
    for moves in ("evictions", "restores"):
        assert crowded.metric(f"cellstate_{moves}_total", model=material.bundle.name) > 500


async def test_20_000_single_steps_over_one_stream_do_not_drift(roomy: Service, precision: str) -> None:
    material = material_of(roomy, "series")
    weights = {name: tensor.numpy() for name, tensor in material.bundle.weights.items()}
    reference, rows = Reference(material.bundle.spec, weights), len(material.prepared)
    url = f"{roomy.ws}/v1/models/{material.bundle.name}/sessions/long/stream"
    worst, reply = 0.0, {}
    # No pings: on a slow machine a pong may be long behind what was sent ahead
    async with connect(url, proxy=None, ping_interval=None) as stream:
        ahead = asyncio.Semaphore(256)

        async def talk() -> None:
            for step in range(LONG):
                await ahead.acquire()
                at, last = step % rows, step == LONG - 1
                more = {"return": ["outputs", "state"]} if last else {}
                await stream.send(material.message(at, at + 1, step, **more))

        talking = asyncio.ensure_future(talk())
        for step in range(LONG):
            reply = json.loads(await stream.recv())
            ahead.release()
            assert reply.get("next_step") == step + 1, reply
            expected = reference.step(material.prepared[step % rows])[0]
            worst = max(worst, float(np.abs(material.normalised(reply["outputs"][0]) - expected).max()))
        await talking
    drift = max(
        float(np.abs(np.array(reply["state"]["h"]) - reference.h).max()),
        float(np.abs(np.array(reply["state"]["c"]) - reference.c).max()),
    )
    print(f"drift {drift:.3g}, largest deviation of an output {worst:.3g}")
    assert drift <= DRIFTS[precision], f"after {LONG} steps the state has drifted by {drift:.3g}"
    assert worst <= TOLERANCES[precision]["series"], f"largest deviation of an output {worst:.3g}"
