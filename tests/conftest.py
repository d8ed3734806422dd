"""What tests of several folders share: one running service."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loadtests.bundles import random_bundle
from model.bundle import find
from model.errors import BundleMissing
from service import listener
from service.settings import SHIPPED_BUNDLES

START_S = 120.0

# What a test starts without saying where its sessions are kept: nowhere, and never in a user's own file
os.environ["CELLSTATE_STORE"] = "memory:"
os.environ["XDG_STATE_HOME"] = "/nonexistent"


@dataclass(frozen=True, slots=True)
class RayService:
    """A running `cellstate serve`. `url` is the door; `direct_urls` the replicas' own ports, by model."""

    url: str
    direct_urls: dict[str, str]
    process: subprocess.Popen[str]
    output: str

    @property
    def models(self) -> list[str]:
        return sorted(self.direct_urls)

    @property
    def direct_url(self) -> str:
        """The own port of a replica of the first model."""
        return self.direct_urls[self.models[0]]


@pytest.fixture(scope="session")
def ray_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayService]:
    """One service on Ray for the whole run: of the shipped bundles or, where there are none, of made ones; in
    fp32, so that a reply can be held against the reference.

    In the end it is stopped as by Ctrl-C on a terminal, and must leave no process behind.
    """
    models = shipped_or_made(tmp_path_factory.mktemp("bundles"))
    port = free_port()
    process = start("--models", str(models), "--port", str(port), "--precision", "fp32")
    try:
        output = wait_ready(process, f"http://127.0.0.1:{port}")
        url = f"http://127.0.0.1:{port}"
        yield RayService(url, direct_urls(url), process, output)
        sessions = below(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output + rest
        assert not members(sessions)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def shipped_or_made(directory: Path) -> Path:
    """A directory of bundles."""
    with contextlib.suppress(BundleMissing):
        if find(SHIPPED_BUNDLES):
            return SHIPPED_BUNDLES
    random_bundle(directory / "alpha", layers=2, hidden=16, inputs=3, name="alpha")
    random_bundle(directory / "beta", layers=1, hidden=8, inputs=2, name="beta")
    return directory


def start(*arguments: str) -> subprocess.Popen[str]:
    """`cellstate serve` in a process group of its own, as a shell starts it."""
    command = [sys.executable, "-m", "service.cli", "serve", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def wait_ready(process: subprocess.Popen[str], url: str) -> str:
    """What the service printed until it was ready. Fails when it ends before."""
    assert process.stdout is not None
    output = ""
    while "A first request" not in output:
        line = process.stdout.readline()
        assert line, f"the service ended: {output}"
        output += line
    deadline = time.monotonic() + START_S
    while httpx.get(f"{url}/readyz", trust_env=False).status_code != httpx.codes.OK:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The rest of what it prints: a request for each model.
    for _ in httpx.get(f"{url}/v1/models", trust_env=False).json()["models"]:
        output += process.stdout.readline()
    return output


def direct_urls(url: str) -> dict[str, str]:
    """For each model the address of a replica, as it is told to whoever opens a session."""
    addresses: dict[str, str] = {}
    for model in httpx.get(f"{url}/v1/models", trust_env=False).json()["models"]:
        sessions = f"{url}/v1/models/{model['name']}/sessions"
        opened = httpx.post(sessions, json={}, trust_env=False).json()
        addresses[model["name"]] = opened["direct_url"]
        httpx.delete(f"{sessions}/{opened['session_id']}", trust_env=False)
    return addresses


def free_port() -> int:
    """A port that is free now."""
    with listener.bind("127.0.0.1", [0]) as probe:
        port: int = probe.getsockname()[1]
        return port


def processes() -> dict[int, tuple[int, int]]:
    """Every process that is not a zombie: its parent and its session."""
    found: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, _, session, *_ = re.sub(r"^.*\) ", "", entry.read_text(), flags=re.S).split()
            if state != "Z":
                found[int(entry.parent.name)] = (int(parent), int(session))
    return found


def below(pid: int) -> set[int]:
    """The sessions of the children of a process: what it starts lives in them."""
    return {session for child, (parent, session) in processes().items() if parent == pid}


def members(sessions: set[int]) -> list[str]:
    """The processes of these sessions, by their command lines."""
    return [
        Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        for pid, (_, session) in processes().items()
        if session in sessions
    ]
