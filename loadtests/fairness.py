"""Measures what long requests do to short ones: single steps alone, then beside sessions that stream chunks.

One client sends single steps on one connection: one every few milliseconds, then one behind the other. It is
measured without anybody else, and beside sessions that send chunks without pause, each its next chunk as soon
as the reply to the last is there. Starts a service, or measures the one at --url. Sends to this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.synchronize
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from websockets.asyncio.client import connect

from loadtests.door import Failed, Target, look, service
from service.bench.machine import processor

PACES = {"paced": 0.003, "back to back": 0.0}  # seconds from one request to the next
#: Most that the 99th percentile may grow beside the chunks
LIMIT = 3.0
SETTLE_S = 1.0  # after the first replies to chunks
FIRST_S = 60.0  # until they must be there


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Times in milliseconds, `alone` and `beside` the chunks."""

    way: str
    pace: str
    requests: int
    alone_p50: float
    alone_p99: float
    beside_p50: float
    beside_p99: float
    longest: float  # beside
    chunk_steps: float  # a second, of all sessions together

    @property
    def ratio(self) -> float:
        return self.beside_p99 / self.alone_p99


def main() -> int:
    args = _parser().parse_args()
    try:
        with contextlib.ExitStack() as stack:
            flags = [] if args.door else ["--local"]
            url = args.url or stack.enter_context(service(args.layers, args.hidden, *flags))
            target = look(url.rstrip("/"), args.model)
            rows = measure(target, args)
    except (Failed, httpx.HTTPError, OSError) as error:
        print(f"fairness: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows]))
    else:
        show(target, args, rows)
    return 1 if any(row.ratio > LIMIT for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fairness", description=__doc__)
    parser.add_argument("--url", help="measure this service instead of starting one (loopback only)")
    parser.add_argument(
        "--door", action="store_true", help="start it on Ray, and measure through its door too"
    )
    parser.add_argument("--model", help="model to step (default: the first one)")
    parser.add_argument("--layers", type=int, default=2, help="of the model started (default: 2)")
    parser.add_argument("--hidden", type=int, default=256, help="of the model started (default: 256)")
    parser.add_argument(
        "--seconds", type=float, default=4, help="of each measurement, at most 60 (default: 4)"
    )
    parser.add_argument("--sessions", type=int, default=8, help="that stream chunks (default: 8)")
    parser.add_argument("--steps", type=int, default=1000, help="of a chunk (default: 1000)")
    parser.add_argument("--http", action="store_true", help="chunks by POST, not over WebSockets")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def measure(target: Target, args: argparse.Namespace) -> list[Row]:
    """Every row of the table: through the door, and on the replica's port where that is another one."""
    ways = {"own port": target.direct or target.door, "door": target.door}
    if target.direct in ("", target.door):
        del ways["door"]
    seconds = min(60.0, args.seconds)
    rows = []
    for way, url in ways.items():
        print(f"measuring {way}: single steps alone", file=sys.stderr)
        singles(url, target, 0.5, 0.0)  # nobody's first request is measured
        alone = {pace: singles(url, target, seconds, pause) for pace, pause in PACES.items()}
        print(f"measuring {way}: beside {args.sessions} sessions", file=sys.stderr)
        with Chunks(url, target, args) as chunks:
            for pace, pause in PACES.items():
                before = chunks.replies
                times = singles(url, target, seconds, pause)
                rate = (chunks.replies - before) * args.steps / seconds
                rows.append(_row(way, pace, alone[pace], times, rate))
    return rows


def _row(way: str, pace: str, alone: list[float], beside: list[float], rate: float) -> Row:
    a50, a99 = (1e3 * float(q) for q in np.quantile(alone, (0.5, 0.99)))
    b50, b99 = (1e3 * float(q) for q in np.quantile(beside, (0.5, 0.99)))
    return Row(way, pace, len(beside), a50, a99, b50, b99, 1e3 * max(beside), rate)


def singles(url: str, target: Target, seconds: float, pause: float) -> list[float]:
    """Seconds that each of the single steps took that one client sent on one connection."""
    rng = np.random.default_rng()
    values = rng.standard_normal(target.inputs).round(3).tolist()
    path = f"/v1/models/{target.model}/sessions/fair-{secrets.token_hex(4)}/steps"
    times: list[float] = []
    with _connection(url) as connection:
        _post(connection, path, {"step": 0, "inputs": [values]})
        request = _request(path, {"inputs": [values]})
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            connection.sendall(request)
            _read(connection)
            ended = time.perf_counter()
            times.append(ended - began)
            if began + pause > ended:
                time.sleep(began + pause - ended)
    return times


@contextlib.contextmanager
def _connection(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=FIRST_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def _request(path: str, body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def _post(connection: socket.socket, path: str, body: Any) -> None:
    connection.sendall(_request(path, body))
    _read(connection)


def _read(connection: socket.socket) -> None:
    """A whole response. Raises Failed unless it is a success."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, content = received.partition(b"\r\n\r\n")
    missing = _length(head) - len(content)
    while missing > 0:
        missing -= len(_more(connection))


def _length(head: bytes) -> int:
    if not head.startswith(b"HTTP/1.1 200"):
        raise Failed(f"a request failed: {head[:200]!r}")
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n")[1:])
    return next(int(value) for name, _, value in fields if name == b"content-length")


def _more(connection: socket.socket) -> bytes:
    if received := connection.recv(1 << 18):
        return received
    raise Failed("the service closed the connection")


class Chunks:
    """Sessions that stream chunks, in a process of their own, from when each has had a reply to the end of
    the block."""

    def __init__(self, url: str, target: Target, args: argparse.Namespace) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._stop = spawn.Event()
        self._replies = spawn.Value("L", 0)
        arguments = (url, target, args.sessions, args.steps, args.http, self._stop, self._replies)
        self._process = spawn.Process(target=_stream_all, args=arguments, daemon=True)
        self._sessions = args.sessions

    @property
    def replies(self) -> int:
        """To chunks, so far."""
        return int(self._replies.value)

    def __enter__(self) -> Chunks:
        self._process.start()
        deadline = time.monotonic() + FIRST_S
        while self.replies < 2 * self._sessions:
            if not self._process.is_alive() or time.monotonic() > deadline:
                self._process.kill()
                raise Failed("the sessions with chunks got no replies")
            time.sleep(0.05)
        time.sleep(SETTLE_S)
        return self

    def __exit__(self, *error: object) -> None:
        alive = self._process.is_alive()
        self._stop.set()
        self._process.join(FIRST_S)
        self._process.kill()
        if not alive and error[0] is None:
            raise Failed("the sessions with chunks ended before they were told to")


def _stream_all(
    url: str,
    target: Target,
    sessions: int,
    steps: int,
    http: bool,
    stop: multiprocessing.synchronize.Event,
    replies: Any,
) -> None:
    """Runs in its own process. It gives way to the service and to the client that is measured, at once: on
    few cores the measure would be of the system's scheduler."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    one = _post_chunks if http else _stream_chunks

    async def every() -> None:
        await asyncio.gather(*(one(url, target, steps, stop, replies) for _ in range(sessions)))

    asyncio.run(every())


def _chunk(target: Target, steps: int) -> str:
    return json.dumps(
        {"inputs": np.random.default_rng().standard_normal((steps, target.inputs)).round(6).tolist()}
    )


async def _stream_chunks(
    url: str, target: Target, steps: int, stop: multiprocessing.synchronize.Event, replies: Any
) -> None:
    message = _chunk(target, steps)
    path = f"/v1/models/{target.model}/sessions/fair-{secrets.token_hex(4)}/stream"
    address = url.replace("http", "ws", 1) + path
    async with connect(address, compression=None, proxy=None, max_size=None) as stream:
        await stream.send('{"step":0,' + message[1:])
        while True:
            reply = await stream.recv(decode=False)
            if b'"error"' in reply[:16]:
                raise Failed(f"a chunk failed: {reply[:300]!r}")
            replies.value += 1
            if stop.is_set():
                return
            await stream.send(message)


async def _post_chunks(
    url: str, target: Target, steps: int, stop: multiprocessing.synchronize.Event, replies: Any
) -> None:
    body = json.loads(_chunk(target, steps))
    path = f"/v1/models/{target.model}/sessions/fair-{secrets.token_hex(4)}/steps"
    request, first = _request(path, body), _request(path, {"step": 0, **body})
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(first)
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(_length(head))
        replies.value += 1
        if stop.is_set():
            writer.close()
            return
        writer.write(request)


def show(target: Target, args: argparse.Namespace, rows: list[Row]) -> None:
    """Prints the table and what it was measured on."""
    print(f"\n{'':<24}{'alone, ms':>16}{'beside, ms':>26}")
    print(
        f"{'way':<10}{'single steps':<14}{'p50':>8}{'p99':>8}{'p50':>10}{'p99':>8}{'max':>8}"
        f"{'ratio':>8}{'chunk steps/s':>15}"
    )
    for row in rows:
        print(
            f"{row.way:<10}{row.pace:<14}{row.alone_p50:>8.2f}{row.alone_p99:>8.2f}{row.beside_p50:>10.2f}"
            f"{row.beside_p99:>8.2f}{row.longest:>8.2f}{row.ratio:>8.2f}{row.chunk_steps:>15,.0f}"
        )
    how = "POST" if args.http else "WebSocket"
    print(
        f"\nratio: of the p99, at most {LIMIT:g}. Beside: {args.sessions} sessions, {args.steps} steps"
        f" a chunk, {how}"
    )
    print(f"model {target.model}; {os.cpu_count()} cores, {processor()}; the clients run on the same cores")


if __name__ == "__main__":
    sys.exit(main())
