"""Measures a running service: steps over HTTP and over streams, through the door and on a replica's own port.

Starts a service with a bundle of random weights, or measures the one at --url. Sends to this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import connect

from service.bench.machine import processor

STEPS, BULK = (Path(__file__).with_name(name) for name in ("steps.lua", "bulk.lua"))
START_S = 120.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Failed(Exception):
    """The measurement can't be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Times in milliseconds."""

    way: str
    clients: int
    per_second: float
    steps_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: two addresses of one model, whose step takes `inputs` values."""

    model: str
    inputs: int
    door: str
    direct: str


def main() -> int:
    args = _parser().parse_args()
    try:
        if not shutil.which("wrk"):
            raise Failed("wrk is not installed (Debian: apt-get install wrk)")
        with contextlib.ExitStack() as stack:
            kept = ["--durability", args.durability] if args.durability else []
            made = service(args.layers, args.hidden, *kept, store=args.store)
            url = args.url or stack.enter_context(made)
            target = look(url.rstrip("/"), args.model)
            rows = measure(target, args)
    except (Failed, httpx.HTTPError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(target, rows)
    return 1 if any(row.errors for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.door", description=__doc__)
    parser.add_argument("--url", help="measure this service instead of starting one (loopback only)")
    parser.add_argument("--model", help="model to step (default: the first one)")
    parser.add_argument("--layers", type=int, default=2, help="of the model started (default: 2)")
    parser.add_argument("--hidden", type=int, default=256, help="of the model started (default: 256)")
    parser.add_argument(
        "--store", default="memory:", help="of the service started; sqlite: is a file of the run's own"
    )
    parser.add_argument("--durability", help="of its sessions (default: the store's)")
    parser.add_argument("--seconds", type=int, default=5, choices=range(1, 61), metavar="1-60", help="a row")
    parser.add_argument("--connections", type=_counts, default=[1, 64], help="of HTTP (default: 1,64)")
    parser.add_argument("--streams", type=_counts, default=[1, 32], help="WebSockets (default: 1,32)")
    parser.add_argument(
        "--bulk", type=int, default=256, choices=range(1, 1025), metavar="1-1024", help="sessions a request"
    )
    return parser


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",") if part]
    if any(not 1 <= count <= 1024 for count in counts):
        raise ValueError
    return counts


@contextlib.contextmanager
def service(layers: int, hidden: int, *flags: str, store: str = "memory:") -> Iterator[str]:
    """A service of our own with a bundle of random weights, ended in the end. flags: more for `serve`. Gives
    its address."""
    from loadtests.bundles import random_bundle

    with tempfile.TemporaryDirectory() as directory:
        random_bundle(Path(directory) / "lstm", layers, hidden, name="lstm")
        print(f"starting a service with a {layers}x{hidden} LSTM", file=sys.stderr)
        with service_of(directory, *flags, store=store) as url:
            yield url


@contextlib.contextmanager
def service_of(directory: str, *flags: str, store: str = "memory:") -> Iterator[str]:
    """A service with the bundles below a directory, ended in the end. sqlite: is a file there, of this one
    service alone. Gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"sqlite:{directory}/{port}.db" if store == "sqlite:" else store
    command = [sys.executable, "-m", "service.cli", "serve", "--models", directory]
    command += ["--port", str(port), "--store", store, *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_ready(url: str, process: subprocess.Popen[bytes], within_s: float = START_S) -> None:
    """Returns when the service takes traffic. Raises Failed when it ended, or takes too long."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"the service ended with code {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise Failed(f"{url}/readyz was not ready within {within_s:.0f} s")


def look(url: str, name: str | None) -> Target:
    """Asks the service what it serves, and where. Raises Failed when it can't be measured."""
    if urlsplit(url).hostname not in LOOPBACK:
        raise Failed(f"{url} is not on this machine; a load test would be an attack on another's")
    models = httpx.get(f"{url}/v1/models", trust_env=False).raise_for_status().json()["models"]
    series = [m for m in models if m["task"] == "series" and name in (None, m["name"])]
    if not series:
        raise Failed(f"no series model {name or ''} at {url}")
    path = f"{url}/v1/models/{series[0]['name']}/sessions"
    opened = httpx.post(path, json={}, trust_env=False).raise_for_status().json()
    httpx.delete(f"{path}/{opened['session_id']}", trust_env=False)
    return Target(series[0]["name"], len(series[0]["inputs"]), url, opened.get("direct_url") or "")


def measure(target: Target, args: argparse.Namespace) -> list[Row]:
    """Every row of the table, one after the other."""
    ways = [("door", target.door)]
    if target.direct and target.direct != target.door:
        ways.append(("replica's port", target.direct))
    rows = []
    for way, url in ways:
        for count in args.connections:
            print(f"measuring HTTP, {way}, {count} connection(s)", file=sys.stderr)
            rows.append(run_wrk(f"HTTP, {way}", url, target, count, args.seconds))
    for way, url in ways:
        print(f"measuring bulk, {way}, {args.bulk} sessions a request", file=sys.stderr)
        rows += [run_wrk(f"bulk, {way}", url, target, n, args.seconds, bulk=args.bulk) for n in (1, 2)]
    for way, url in ways:
        for count in args.streams:
            print(f"measuring streams, {way}, {count} socket(s)", file=sys.stderr)
            rows.append(asyncio.run(run_streams(f"stream, {way}", url, target, count, args.seconds)))
    return rows


def run_wrk(way: str, url: str, target: Target, connections: int, seconds: int, bulk: int = 0) -> Row:
    """One row over HTTP, by wrk in a single thread. bulk: sessions that each request steps; 0: one each."""
    # wrk's script does not know which connection it speaks for: with a session each, two of them would often
    # meet in one session and wait for each other. So there are more sessions, and they take turns.
    sessions = 4 * bulk * connections if bulk else (connections if connections == 1 else 4 * connections)
    model, values = f"/v1/models/{target.model}", _values(target.inputs)
    prefix = f"bench-{secrets.token_hex(4)}-"
    with httpx.Client(trust_env=False) as client:
        for number in range(sessions):
            opening = f'{{"step":0,"inputs":[[{values}]]}}'
            headers = {"content-type": "application/json"}
            reply = client.post(
                f"{url}{model}/sessions/{prefix}{number}/steps", content=opening, headers=headers
            )
            reply.raise_for_status()
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    done = subprocess.run(
        [
            *command,
            "-s",
            str(BULK if bulk else STEPS),
            url,
            "--",
            model,
            str(sessions),
            prefix,
            values,
            str(bulk),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise Failed(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    result = json.loads(line.removeprefix("RESULT "))
    rate = result["requests"] / result["seconds"]
    p50, p99 = result["p50_us"] / 1e3, result["p99_us"] / 1e3
    return Row(way, connections, rate, max(1, bulk) * rate, p50, p99, result["errors"])


async def run_streams(way: str, url: str, target: Target, sockets: int, seconds: int) -> Row:
    """One row over WebSockets, each with a session of its own."""
    prefix = f"{url.replace('http', 'ws', 1)}/v1/models/{target.model}/sessions/bench-{secrets.token_hex(4)}"
    message = f'{{"inputs":[[{_values(target.inputs)}]]}}'
    times: list[float] = []
    errors = 0

    async def one(number: int) -> None:
        nonlocal errors
        async with connect(f"{prefix}-{number}/stream", compression=None, proxy=None) as stream:
            await stream.send('{"step":0,' + message[1:])
            await stream.recv()
            until = time.perf_counter() + seconds
            while (began := time.perf_counter()) < until:
                await stream.send(message)
                reply = await stream.recv(decode=False)
                times.append(time.perf_counter() - began)
                errors += b'"error"' in reply[:16]

    await asyncio.gather(*(one(number) for number in range(sockets)))
    times.sort()
    rate = len(times) / seconds
    return Row(
        way, sockets, rate, rate, 1e3 * times[len(times) // 2], 1e3 * times[len(times) * 99 // 100], errors
    )


def _values(inputs: int) -> str:
    return ",".join(f"{0.1 * (i % 10):.1f}" for i in range(inputs))


def show(target: Target, rows: list[Row]) -> None:
    """Prints the table and what it was measured on."""
    print(
        f"\n{'way':<24}{'clients':>8}{'requests/s':>12}{'steps/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}"
    )
    for row in rows:
        print(
            f"{row.way:<24}{row.clients:>8}{row.per_second:>12,.0f}{row.steps_per_second:>10,.0f}"
            f"{row.p50_ms:>9.2f}{row.p99_ms:>9.2f}{row.errors:>8}"
        )
    packages = ", ".join(f"{name} {version(name)}" for name in ("cellstate", "torch", "ray", "uvicorn"))
    print(f"\nmodel {target.model}; {os.cpu_count()} cores, {processor()}; the client runs on the same cores")
    print(f"Python {platform.python_version()}, {packages}")


if __name__ == "__main__":
    sys.exit(main())
