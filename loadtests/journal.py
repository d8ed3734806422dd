"""What the SQLite store costs: commits of 1 to 256 records, bytes written a step, and taking over what a dead
replica left.

    python -m loadtests.journal [--directory DIR] [--seconds S] [--redis URL]

Steps: one record of 150 bytes each, about one step of a small model with its reply. `written` is what this
process gave to the kernel to write, for the log, its later move to the runs and the checkpoints together;
beside it is what h and c of two layers of 256 would be. p99.9 has the commits that waited for a checkpoint.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import tempfile
import time
from pathlib import Path

from service.sessions.stores.protocol import Ending, Entry, Image, Opening
from service.sessions.stores.redis import RedisStore
from service.sessions.stores.redis_wire import shown
from service.sessions.stores.sqlite import SqliteStore

RECORD = os.urandom(150)
STATE_BYTES = 4 * 2 * 2 * 256
OPENING = Opening(ttl_s=86400.0, durability="journal", version="v", digest="d")


def written() -> int:
    """Bytes that this process wrote so far, as the kernel counts them."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["wchar"])


async def owned(store: SqliteStore, count: int) -> list[Image]:
    images = [await store.claim(f"session-{i}", OPENING, 256) for i in range(count)]
    return [image for image in images if isinstance(image, Image)]


async def measure(path: Path, records: int, sync: bool, seconds: float) -> None:
    store = SqliteStore(str(path), "bench")
    await store.join("http://bench")
    images = await owned(store, max(records, 1000))
    tick, step_of = 0, dict.fromkeys(range(len(images)), 0)
    costs, inline, before = [], 0, written()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        chosen = [(tick * records + i) % len(images) for i in range(records)]
        entries = []
        for i in chosen:
            step, image = step_of[i], images[i]
            entries.append(Entry(image.session_id, image.epoch, step, step + 1, RECORD, sync))
            step_of[i] = step + 1
        start = time.perf_counter()
        pending = store.commit(entries)
        if pending is None:
            inline += 1
        else:
            await pending
        costs.append(time.perf_counter() - start)
        tick += 1
        if tick % 16 == 0:
            await asyncio.sleep(0)
    await store.close()
    share = (written() - before) / (tick * records)
    costs.sort()
    middle, late = costs[len(costs) // 2] * 1e6, costs[int(len(costs) * 0.999)] * 1e6
    print(
        f"{records:8} {'sync' if sync else 'journal':>8} {tick:8} {inline / tick:8.1%} {middle:10.1f} "
        f"{late:10.0f} {middle / records:10.2f} {share:14.0f} {share / STATE_BYTES:8.1%}"
    )


async def take_over(path: Path, sessions: int, steps: int) -> None:
    """A replica dies after some hundreds of steps of each session; another claims them all."""
    clock = time.monotonic
    dead, heir = SqliteStore(str(path), "bench", lease_s=0.01, clock=clock), SqliteStore(str(path), "bench")
    await dead.join("http://dead")
    images = await owned(dead, sessions)
    for step in range(steps):
        for start in range(0, sessions, 64):
            part = images[start : start + 64]
            pending = dead.commit([Entry(i.session_id, i.epoch, step, step + 1, RECORD) for i in part])
            if pending is not None:
                await pending
    await heir.join("http://heir")
    begin = time.perf_counter()
    first = await heir.claim("session-0", None, 256)
    fenced = time.perf_counter() - begin
    claims = await asyncio.gather(*(heir.claim(f"session-{i}", None, 256) for i in range(1, sessions)))
    took = time.perf_counter() - begin
    found = sum(len(image.records) for image in [first, *claims] if isinstance(image, Image))
    print(
        f"\ntaken over: {sessions} sessions, {found} records in {took:.2f} s, "
        f"the first in {fenced * 1e3:.0f} ms"
    )
    await dead.close()
    await heir.close()


async def main(directory: str | None, seconds: float) -> None:
    print(
        f"{'records':>8} {'kept':>8} {'commits':>8} {'inline':>8} {'us/commit':>10} {'us p99.9':>10} "
        f"{'us/record':>10} {'written B/step':>14} {'of h, c':>8}"
    )
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        for sync in (False, True):
            for records in (1, 16, 64, 256):
                await measure(Path(folder, f"{sync}-{records}.db"), records, sync, seconds)
        await take_over(Path(folder, "taken.db"), 1000, 200)


async def measure_redis(url: str, records: int, seconds: float) -> None:
    store = RedisStore(url, f"bench-{secrets.token_hex(4)}")
    await store.join("http://bench")
    names = [f"session-{i}" for i in range(records)]
    images = [image for name in names if isinstance(image := await store.claim(name, OPENING, 0), Image)]
    costs, step, used = [], 0, time.process_time()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        entries = [Entry(i.session_id, i.epoch, step, step + 1, RECORD) for i in images]
        start = time.perf_counter()
        pending = store.commit(entries)
        if pending is not None:
            await pending
        costs.append(time.perf_counter() - start)
        step += 1
    used = (time.process_time() - used) / step * 1e6
    for image in images:
        await store.end(image.session_id, image.epoch, Ending.CLOSED)
    await store.leave()
    await store.close()
    costs.sort()
    middle, late = costs[len(costs) // 2] * 1e6, costs[int(len(costs) * 0.999)] * 1e6
    print(f"{records:8} {step:8} {middle:10.1f} {late:10.0f} {middle / records:10.2f} {used:10.0f}")


async def redis_table(url: str, seconds: float) -> None:
    print(f"\n{shown(url)}; the last column is this process's own time")
    print(
        f"{'records':>8} {'commits':>8} {'us/commit':>10} {'us p99.9':>10} {'us/record':>10} {'us here':>10}"
    )
    for records in (1, 16, 64, 256):
        await measure_redis(url, records, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory", help="where the files are made; default: the system's for temporary files"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row (default: 2)")
    parser.add_argument(
        "--redis", metavar="URL", help="of a server with appendonly yes: a second table, of it"
    )
    arguments = parser.parse_args()
    asyncio.run(main(arguments.directory, arguments.seconds))
    if arguments.redis:
        asyncio.run(redis_table(arguments.redis, arguments.seconds))
