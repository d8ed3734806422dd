"""What can be seen of a running stack from outside: its door, its Prometheus, its ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from loadtests.compose.stack import Failed, Stack, docker

START_S = 600.0


async def until(what: str, test: Callable[[], Awaitable[bool]], limit_s: float = START_S) -> float:
    """The seconds until the test holds. Raises Failed when it does not in time."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
            if await test():
                return time.monotonic() - began
        await asyncio.sleep(0.25)
    raise Failed(f"{what}: not within {limit_s:.0f} s")


class Watch:
    """The door and Prometheus, by their addresses on this machine."""

    def __init__(self, door: str, prometheus: str) -> None:
        self.door, self._prometheus = door, prometheus
        self._http = httpx.AsyncClient(timeout=10.0, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def ready(self) -> bool:
        return (await self._http.get(f"{self.door}/readyz")).status_code == httpx.codes.OK

    async def replicas(self, model: str) -> list[str]:
        """Addresses of a model's replicas, as Prometheus is told of them."""
        answer = await self._http.get(f"{self.door}/metrics/targets")
        groups: list[dict[str, Any]] = answer.raise_for_status().json()
        return sorted(
            target
            for group in groups
            if model in (group["labels"].get("__meta_cellstate_model"), group["labels"].get("model"))
            for target in group["targets"]
        )

    async def value(self, query: str) -> float:
        """The one value of a query of Prometheus; 0 if there is none yet."""
        answer = await self._http.get(f"{self._prometheus}/api/v1/query", params={"query": query})
        found = answer.raise_for_status().json()["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    async def sessions_by_replica(self, model: str) -> Counter[str]:
        """How many sessions of a model each replica holds now."""
        text = (await self._http.get(f"{self.door}/metrics")).raise_for_status().text
        held: Counter[str] = Counter()
        for line in text.splitlines():
            if line.startswith("cellstate_sessions{") and f'model="{model}"' in line:
                replica = line.split('replica="', 1)[1].split('"', 1)[0]
                held[replica] += int(float(line.rsplit(" ", 1)[1]))
        return held


def curl(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request as a user makes it by hand. Raises Failed."""
    if shutil.which("curl") is None:
        raise Failed("no curl here")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", url]
    command += ["--header", "content-type: application/json", "--data", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        reply: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Failed(f"curl {url}: {done.stderr.strip() or done.stdout[:500]}") from None
    return reply


def open_elsewhere(stack: Stack) -> list[str]:
    """What is open on this machine and should not be: a port that is not the door's, Prometheus' or
    Grafana's, or one that is open beyond loopback."""
    wanted = {"head", "prometheus", "grafana"}
    found = [f"{p.container} at {p.host}:{p.port}" for p in stack.published() if p.host != "127.0.0.1"]
    services = Counter(p.container for p in stack.published())
    found += [f"{name}: {count} ports" for name, count in services.items() if name not in wanted or count > 1]
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        for published in stack.published():
            with contextlib.suppress(OSError):
                socket.create_connection((own, published.port), timeout=2).close()
                found.append(f"{published.container} at {own}:{published.port}")
    return found


#: Run beside the cluster without its token: a driver, and a job for each node's agent; prints what let it in.
STRANGER = """
import os, socket, sys, urllib.error, urllib.request
os.environ.pop("RAY_AUTH_TOKEN", None)
head, workers = sys.argv[1], sys.argv[2:]
for port in (8265, 8404, 9101):  # Ray's dashboard, HAProxy's pages
    try:
        socket.create_connection((head, port), timeout=3).close()
        print(f"port {port} of the head answers")
    except OSError:
        pass
for node in [head, *workers]:
    url, job = f"http://{node}:52365/api/job_agent/jobs/", b'{"entrypoint": "true"}'
    request = urllib.request.Request(url, job, {"content-type": "application/json"})
    try:
        print(f"the job agent of {node} says {urllib.request.urlopen(request, timeout=5).status}")
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            print(f"the job agent of {node} says {error.code}")
    except OSError:
        pass
from ray._raylet import GcsClient
try:
    GcsClient(address=f"{head}:6379").internal_kv_keys(b"", None, timeout=10)
    print("the cluster's books can be read")
except Exception as error:
    print(type(error).__name__, str(error)[:200], file=sys.stderr)
try:
    socket.create_connection(("redis", 6379), timeout=3).close()
    print("Redis can be reached from the cluster's network")
except OSError:
    pass
"""


def open_to_strangers(stack: Stack, image: str) -> list[str]:
    """What a container in the cluster's network gets from Ray without the token."""
    addresses = [
        docker(
            "inspect",
            "--format",
            f'{{{{(index .NetworkSettings.Networks "{stack.network("cluster")}").IPAddress}}}}',
            container,
        ).strip()
        for service in ("head", "worker")
        for container in stack.containers(service)
    ]
    network = stack.network("cluster")
    python = ["--entrypoint", "python", image, "-c", STRANGER]
    return docker("run", "--rm", "--network", network, *python, *addresses).strip().splitlines()
