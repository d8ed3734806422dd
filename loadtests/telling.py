"""What logs and traces cost a request: CPU time of the application alone, without sockets, one request after
the other, of a tiny model: what is told costs the same with any.

    python -m loadtests.telling

Each way is measured in turns, several times; the table has the least of each.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from loadtests.bundles import random_bundle
from service.asgi import Message
from service.logs import JsonLines
from service.settings import Settings
from service.tracing import Tracer
from service.wiring import Application, build

MODEL, WARM = "ett", 200
ID = (b"x-request-id", b"0123456789abcdef")


class Nowhere(SpanExporter):
    """Makes the spans' way as long as it must be, and no longer."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@dataclass(frozen=True)
class Way:
    """How requests are told of. ratio: of traces; None: tracing is off."""

    name: str
    ratio: float | None = None
    access: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()


WAYS = (
    Way("off"),
    Way("the client gives an id", headers=(ID,)),
    Way("traces on, none drawn", ratio=0.0),
    Way("traces on, 1 % drawn", ratio=0.01),
    Way("traces on, all drawn", ratio=1.0),
    Way("access log", access=True),
)


async def seconds(app: Application, way: Way, requests: int) -> float:
    """CPU seconds of the whole process for so many steps of one session."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/v1/models/{MODEL}/sessions/told/steps",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"user-agent", b"curl/8"),
            (b"content-type", b"application/json"),
            *way.headers,
        ],
    }
    message = {"type": "http.request", "body": b'{"inputs": [[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]]}'}

    async def receive() -> Message:
        return message

    async def send(sent: Message) -> None:
        assert sent.get("status", 200) == 200

    watch = app.api.site.watch
    tracer = None if way.ratio is None else Tracer(Nowhere(), way.ratio)
    watch.tracer, watch._each = tracer, way.access
    for manager in app.api.site.endpoints[MODEL].manager.managers:
        manager.traced = tracer is not None
    await asyncio.create_task(app({**scope}, receive, send))
    gc.collect()
    began = time.process_time()
    for _ in range(requests):
        await asyncio.create_task(app({**scope}, receive, send))
    took = time.process_time() - began
    if tracer is not None:
        tracer.close()
    return took


async def measure(requests: int, rounds: int) -> None:
    """Prints the table."""
    log = logging.getLogger("cellstate")
    with tempfile.TemporaryDirectory() as made:
        handler = logging.FileHandler(os.devnull)
        handler.setFormatter(JsonLines({"model": MODEL, "replica": "abcdefgh"}))
        log.addHandler(handler)
        log.setLevel("INFO")
        random_bundle(Path(made) / MODEL, layers=1, hidden=8, inputs=8, name=MODEL)
        app = build(Settings(device="cpu", store="memory:"), [Path(made) / MODEL])
        await app.startup()
        await app.api.site.endpoints[MODEL].manager.open_session("told")
        await seconds(app, WAYS[0], WARM)
        least = dict.fromkeys(WAYS, float("inf"))
        for _ in range(rounds):
            for way in WAYS:
                least[way] = min(least[way], await seconds(app, way, requests))
        await app.shutdown()
        log.removeHandler(handler)
    base = least[WAYS[0]]
    print(f"{'way':26}{'CPU us/request':>16}{'more':>9}")
    for way in WAYS:
        each, more = (seconds_ / requests * 1e6 for seconds_ in (least[way], least[way] - base))
        print(f"{way.name:26}{each:16.1f}{more:9.1f}")


def main() -> None:
    """Reads the arguments, and measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    asyncio.run(measure(args.requests, args.rounds))


if __name__ == "__main__":
    main()
