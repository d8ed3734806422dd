"""WebSocket streams to one replica, each with a session of its own: prints the time of every step.

    python -m loadtests.peers.streams HOST:PORT STREAMS SECONDS PREFIX

Prints one line of JSON: microseconds of each step, and how many replies were errors.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from websockets.asyncio.client import connect

X = ",".join(f"0.{i}" for i in range(8))


async def run(address: str, streams: int, seconds: float, prefix: str) -> tuple[list[int], int]:
    message = f'{{"inputs":[[{X}]]}}'
    times: list[int] = []
    errors = 0
    opened = asyncio.Barrier(streams)

    async def one(number: int) -> None:
        nonlocal errors
        url = f"ws://{address}/v1/models/lstm/sessions/{prefix}{number}/stream"
        async with connect(url, compression=None, proxy=None, ping_interval=None) as stream:
            await stream.send('{"step":0,' + message[1:])
            await stream.recv()
            await opened.wait()
            until = time.perf_counter() + seconds
            while (began := time.perf_counter()) < until:
                await stream.send(message)
                reply = await stream.recv(decode=False)
                times.append(round(1e6 * (time.perf_counter() - began)))
                errors += b'"error"' in reply[:16]

    await asyncio.gather(*(one(number) for number in range(streams)))
    return times, errors


def main() -> None:
    address, streams, seconds, prefix = sys.argv[1:]
    times, errors = asyncio.run(run(address, int(streams), float(seconds), prefix))
    print(json.dumps({"us": times, "errors": errors}))


if __name__ == "__main__":
    main()
