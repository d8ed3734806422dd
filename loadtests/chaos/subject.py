"""What is disturbed: a service and its store, started on this machine, and the faults they can be given."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx

from service import processes

#: A service has this long to start, on a busy machine.
START_S = 120.0
MODEL = "chaos"
PAUSE = "stop a replica past its lease"


class Failed(Exception):
    """The run can't go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong. strike: does it, and says what it did; "": there was nothing to."""

    kind: str
    weight: float
    strike: Callable[[random.Random], Awaitable[str]]


class Subject(Protocol):
    """A running service."""

    @property
    def doors(self) -> list[str]:
        """Addresses to which a client may turn; not all of them work at every time."""
        ...

    @property
    def faults(self) -> Sequence[Fault]: ...

    async def start(self) -> None: ...

    async def kill(self) -> int:
        """kill -9 of every process at once. How many there were."""
        ...

    async def heal(self) -> None:
        """No fault is left: all that was stopped or killed runs again. Returns when the service is ready."""
        ...


def spawn(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A process that ends with this one; what it prints goes to a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=partial(processes.end_with_parent, signal.SIGKILL),
        )


def free_port() -> int:
    """A port of loopback that is free now, below those that outgoing connections take: whoever is killed
    finds it free again."""
    for _ in range(1000):
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Failed("no free port between 20000 and 30000")


async def wait_ready(url: str, alive: Callable[[], object] = lambda: None) -> None:
    """Returns when the service takes traffic. alive: raises Failed when it never will. Raises Failed."""
    deadline = time.monotonic() + START_S
    async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            alive()
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{url}/readyz")).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(0.1)
    raise Failed(f"{url}/readyz was not ready within {START_S:.0f} s")
