"""Replicas whose wall clocks are minutes apart, over one store: leases, claims, hand-overs and times to live
go by the store's clock and by steady ones. A process's own wall clock is never compared with another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.conftest import free_port
from tests.service.serving import SERIES, save_bundles
from tests.sessions.stores.redis_servers import serving

ROOT = Path(__file__).resolve().parents[2]
LEASE_S, MINUTES_10, SETTLED_S = 1.0, 600.0, 1.1


class Replica:
    """A process of the service at a wall clock of its own."""

    def __init__(self, models: Path, store: str, shift_s: float, log: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "tests.service.launched", "serve", "--local", "--device", "cpu"]
        command += ["--port", str(self.port), "--models", str(models), "--store", store]
        command += ["--lease-s", str(LEASE_S), "--precision", "fp32", "--durability", "journal"]
        environment = os.environ | {"CLOCK_SHIFT_S": str(shift_s)}
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        self._log = log
        self.sessions = f"http://127.0.0.1:{self.port}/v1/models/{SERIES}/sessions"

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self._log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError(self._log.read_text())

    def open(self, session: str, ttl_s: float) -> None:
        asked = {"session_id": session, "ttl_s": ttl_s}
        answer = httpx.post(self.sessions, json=asked, trust_env=False, timeout=20)
        assert answer.status_code == 201, answer.text

    def step(self, session: str, step: int) -> httpx.Response:
        body = {"step": step, "inputs": [[10.0, 0.5, -3.0]]}
        return httpx.post(f"{self.sessions}/{session}/steps", json=body, trust_env=False, timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)


@contextmanager
def replicas(models: Path, store: str, logs: Path, *shifts: float) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        started = [Replica(models, store, shift, logs / f"{n}.log") for n, shift in enumerate(shifts)]
        for replica in started:
            stack.callback(replica.kill)
        for replica in started:
            replica.wait_ready()
        yield started


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundles(tmp_path_factory.mktemp("models"))


@pytest_asyncio.fixture(params=["redis", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'sessions.db'}"
        return
    async with serving(tmp_path / "redis") as server:
        yield server.url


def test_replicas_ten_minutes_apart_hand_over_take_over_and_keep_time(
    models: Path, store: str, tmp_path: Path
) -> None:
    with replicas(models, store, tmp_path, -MINUTES_10, MINUTES_10) as (early, late):
        # In SQLite a time to live is by the machine's wall clock: a jump of it counts as idle time
        ttl_s = 3600.0 if store.startswith("sqlite") else 300.0
        for session, first in (("a", early), ("b", late)):  # each opened by one, and moved to the other
            first.open(session, ttl_s)
            assert first.step(session, 0).status_code == 200
        time.sleep(SETTLED_S)  # the leases were renewed meanwhile
        for session, second in (("a", late), ("b", early)):
            answer = second.step(session, 1)
            assert (answer.status_code, answer.json().get("next_step")) == (200, 2), answer.text
            assert second.step(session, 1).json()["replayed"]
            facts = httpx.get(f"{second.sessions}/{session}", trust_env=False).json()
            assert ttl_s - 10 < facts["expires_in_s"] <= ttl_s
        for replica in (early, late):
            replica.process.send_signal(signal.SIGUSR1)  # the clock jumps by ten minutes more
        time.sleep(2 * LEASE_S / 3)
        for session, owner in (("a", late), ("b", early)):
            assert owner.step(session, 2).json()["next_step"] == 3
        late.kill()
        began = time.monotonic()
        answer = early.step("a", 3)
        assert (answer.status_code, answer.json().get("next_step")) == (200, 4), answer.text
        assert time.monotonic() - began < LEASE_S + 1.5
