"""The application under uvicorn in a process of its own, and what its tests need to know about it.

`python -m tests.service.serving` serves the bundles of CELLSTATE_MODELS and prints its port when it is ready.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
import uvicorn

from model import bundle as bundles
from model.bundle import Bundle
from model.config import Architecture, ModelSpec, Signal
from service.settings import ENVIRONMENT_PREFIX, read
from service.wiring import build

SERIES, TEXT = "waves", "letters"


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: its address and the bundles it serves. `process`: if it is the test's own."""

    url: str
    models: Mapping[str, Bundle]
    process: subprocess.Popen[str] | None = None

    @property
    def ws(self) -> str:
        return self.url.replace("http", "ws", 1)

    def of(self, task: str) -> Bundle | None:
        """The first model of that task."""
        found = (b for _, b in sorted(self.models.items()) if b.spec.architecture.task == task)
        return next(found, None)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).raise_for_status().text
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = (line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(w in line for w in wanted))


def make_specs() -> dict[str, ModelSpec]:
    signals = (
        Signal("volts", "V", 10.0, 2.0),
        Signal("amperes", "A", 0.5, 0.1),
        Signal("load", "kW", -3.0, 4.0),
    )
    vocabulary = "\n abcdefghij"
    return {
        SERIES: ModelSpec(Architecture("series", 3, 24, 2, 3, leads=4), signals, signals),
        TEXT: ModelSpec(Architecture("text", 8, 24, 2, len(vocabulary)), vocabulary=vocabulary),
    }


def save_bundles(directory: Path) -> Path:
    """A bundle of seeded random weights for each spec."""
    generator = torch.Generator().manual_seed(7)
    for name, spec in make_specs().items():
        scale = 2 * spec.architecture.hidden_size**-0.5  # large enough that the state matters
        weights = {
            tensor: (torch.rand(shape, generator=generator) * 2 - 1) * scale
            for tensor, shape in spec.architecture.shapes().items()
        }
        bundles.save(Bundle(name, "1", spec, weights, description="Random, for tests."), directory / name)
    return directory


@contextmanager
def serving(directory: Path, **settings: object) -> Iterator[Service]:
    """Serves a directory of bundles. In the end the service stops as it should, without a word."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
    for name, value in {"models": directory, "device": "cpu", "store": "memory:", **settings}.items():
        environment[ENVIRONMENT_PREFIX + name.upper()] = str(value)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.serving"],
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port, f"the service did not start: {process.communicate()[1]}"
        loaded = {path.name: bundles.load(path) for path in bundles.find(directory)}
        yield Service(f"http://127.0.0.1:{port}", {b.name: b for b in loaded.values()}, process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            # What was refused or slow is told, in a line a second; nothing else is worth a word
            told = ("refused: ", "a request was slow")
            odd = [line for line in said.splitlines() if not line.startswith(told)]
            assert not odd, said
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            print(sockets[0].getsockname()[1], flush=True)


def main() -> None:
    settings = read({})
    application = build(settings, bundles.find(Path(settings.models)))
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        log_level="warning",
        access_log=False,
        ws_max_size=settings.max_body_bytes,
        timeout_keep_alive=600,  # a test decides when its connections end, however slow the machine
        ws_ping_timeout=None,  # the pong of a client that sent ahead is behind what it sent
        timeout_graceful_shutdown=10,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(config)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve([listener]))


if __name__ == "__main__":
    main()
