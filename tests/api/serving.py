"""A really running application with small models, and a witness that its sessions are left alone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn

from model import bundle as bundles
from model.bundle import Bundle
from model.config import Architecture, ModelSpec, Signal
from service.settings import Settings
from service.wiring import Application, build

#: Small limits, so that what goes beyond them is small too. fp32: the numbers are those of any machine.
SETTINGS = Settings(
    device="cpu",
    store="memory:",
    precision="fp32",
    slots=32,
    max_batch=8,
    host_sessions=100_000,
    max_body_bytes=65_536,
    max_steps=200,
    max_horizon=50,
    max_traced_steps=8,
)
VOLTS, AMPERES = Signal("volts", "V", 10.0, 2.0), Signal("amperes", "A", 0.5, 0.1)
SERIES, NARROW, TEXT = "waves", "narrow", "letters"
STEPS: dict[str, dict[str, Any]] = {
    SERIES: {"inputs": [[10.0, 0.5], [11.0, 0.6], [9.5, 0.4], [10.5, 0.45]]},
    NARROW: {"inputs": [[10.0, 0.5], [11.0, 0.6], [9.5, 0.4], [10.5, 0.45]]},
    TEXT: {"text": "abca"},
}


def make_specs() -> dict[str, ModelSpec]:
    both = (VOLTS, AMPERES)
    return {
        SERIES: ModelSpec(Architecture("series", 2, 6, 2, 2, leads=3), both, both),
        # Its outputs are not all of its inputs: it can't go on from its own predictions
        NARROW: ModelSpec(Architecture("series", 2, 5, 1, 1, leads=3), both, (VOLTS,)),
        TEXT: ModelSpec(Architecture("text", 3, 6, 1, 4), vocabulary="abc\n"),
    }


def save_bundles(directory: Path) -> list[Path]:
    """One bundle of seeded random weights for each spec."""
    generator = torch.Generator().manual_seed(7)
    for name, spec in make_specs().items():
        weights = {
            tensor: torch.rand(shape, generator=generator) - 0.5
            for tensor, shape in spec.architecture.shapes().items()
        }
        bundle = Bundle(name, "1", spec, weights, description=f"Random, for tests of {name}.")
        bundles.save(bundle, directory / name)
    return bundles.find(directory)


@dataclass(frozen=True)
class Served:
    """Where the application listens."""

    host: str
    port: int
    application: Application

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://{self.host}:{self.port}"

    def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Sends these bytes on a connection of their own; what comes back until it is closed."""
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65_536):
                parts.append(part)
            return b"".join(parts)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def serving(paths: list[Path], **settings: Any) -> Iterator[Served]:
    """The application under uvicorn, in a thread."""
    application = build(replace(SETTINGS, **settings), paths)
    listener = socket.create_server(("127.0.0.1", 0))
    if application.settings.store != "memory:":  # other replicas must find it
        application.direct_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="websockets-sansio",
        log_config=None,
        access_log=False,
        ws_max_size=application.settings.max_body_bytes,
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert server.up.wait(60), "the application did not start"
        host, port = listener.getsockname()
        yield Served(host, port, application)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


class Witness:
    """A session that has made three steps, and sees whether anything but itself moves it."""

    def __init__(self, client: httpx.Client, model: str, session_id: str) -> None:
        self._client = client
        self.model, self.id = model, session_id
        self.path = f"/v1/models/{model}/sessions/{session_id}"
        self._body = STEPS[model]
        (kind,) = self._body
        sequence = self._body[kind]
        self.next = {kind: sequence[3:]}
        client.post(f"{self.path}/steps", json={"step": 0, kind: sequence[:3]}).raise_for_status()
        self._state = self._export()

    def _export(self) -> bytes:
        return self._client.get(f"{self.path}/state").raise_for_status().content

    def check(self) -> None:
        """The session is where it was, bit by bit, and its next step is what it would have been."""
        assert self._client.get(self.path).json()["next_step"] == 3
        assert self._export() == self._state
        reply = self._client.post(f"{self.path}/steps", json={"step": 3, **self.next}).json()
        whole = self._client.post(f"/v1/models/{self.model}/predict", json=self._body).json()
        assert (reply["step"], reply["next_step"], reply["replayed"]) == (3, 4, False)
        np.testing.assert_allclose(reply["outputs"], whole["outputs"][3:], rtol=1e-5, atol=1e-5)


def problem_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that a response is, checked: status, type, code."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(response.content)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"/docs#{code}"
    assert problem["title"]
    assert problem["detail"]
    return problem


if __name__ == "__main__":
    import sys

    print(*(path.name for path in save_bundles(Path(sys.argv[1]))))
