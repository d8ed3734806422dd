"""The stores under test. Each factory gives a cluster: a store that replicas can join, and a way to let its
time pass. A new store is tested by one more line in FACTORIES."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from service.sessions.stores.memory import MemoryStore, Shelf
from service.sessions.stores.protocol import Entry, Image, Opening, Saved, Store
from service.sessions.stores.redis import RedisStore
from service.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores.redis_servers import serving


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Cluster(ABC):
    """Replicas over one store."""

    lease_s: float  # of each replica
    patient = True  # a day can be waited out

    def __init__(self) -> None:
        self._made: list[Store] = []

    @abstractmethod
    def make(self, model: str) -> Store:
        """One more replica, that has not joined."""

    @abstractmethod
    async def wait(self, seconds: float) -> None:
        """Lets the store's time pass."""

    async def replica(self, model: str = "m") -> Store:
        """One more replica. It renews nothing by itself: leaving it alone is its death."""
        store = self.make(model)
        self._made.append(store)
        await store.join(f"http://replica-{len(self._made)}")
        return store

    async def outlive(self, *survivors: Store) -> None:
        """Waits until the leases of all but the survivors have run out."""
        for _ in range(3):
            await self.wait(0.4 * self.lease_s)
            for store in survivors:
                await store.renew()

    async def close(self) -> None:
        for store in self._made:
            await store.close()


class MemoryCluster(Cluster):
    def __init__(self) -> None:
        super().__init__()
        self.lease_s = 5.0
        self.clock = Clock()
        self.shelves: dict[str, Shelf] = {}

    def make(self, model: str) -> Store:
        shelf = self.shelves.setdefault(model, Shelf(clock=self.clock))
        return MemoryStore(shelf, lease_s=self.lease_s)

    async def wait(self, seconds: float) -> None:
        self.clock.now += seconds


@asynccontextmanager
async def memory(path: Path) -> AsyncIterator[Cluster]:
    yield MemoryCluster()


class RedisCluster(Cluster):
    """Its time is the server's own, so leases are short."""

    patient = False

    def __init__(self, url: str) -> None:
        super().__init__()
        self.lease_s = 0.4
        self._url = url

    def make(self, model: str) -> Store:
        # A busy machine may not answer in half of so short a lease
        return RedisStore(self._url, model, lease_s=self.lease_s, timeout_s=10.0)

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@asynccontextmanager
async def redis(path: Path) -> AsyncIterator[Cluster]:
    async with serving(path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield RedisCluster(server.url)


class SqliteCluster(Cluster):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.lease_s = 5.0
        self.clock = Clock()
        self.path = path

    def make(self, model: str) -> Store:
        return SqliteStore(str(self.path), model, self.lease_s, clock=self.clock, wall=self.clock)

    async def wait(self, seconds: float) -> None:
        self.clock.now += seconds


class FlushingCluster(SqliteCluster):
    """Moves its log after every commit."""

    def make(self, model: str) -> Store:
        return SqliteStore(
            str(self.path), model, self.lease_s, flush_bytes=0, clock=self.clock, wall=self.clock
        )


@asynccontextmanager
async def sqlite(path: Path) -> AsyncIterator[Cluster]:
    yield SqliteCluster(path / "sessions.db")


@asynccontextmanager
async def sqlite_flushing(path: Path) -> AsyncIterator[Cluster]:
    yield FlushingCluster(path / "sessions.db")


FACTORIES: dict[str, Callable[[Path], AbstractAsyncContextManager[Cluster]]] = {
    "memory": memory,
    "redis": redis,
    "sqlite": sqlite,
    "sqlite, flushing": sqlite_flushing,
}


def an_opening(durability: str = "journal", ttl_s: float = 1e6, snapshot: Saved | None = None) -> Opening:
    return Opening(ttl_s=ttl_s, durability=durability, version="v1", digest="d1", snapshot=snapshot)


def a_record(step: int, session_id: str = "s") -> bytes:
    return f"{session_id}:{step}:".encode() + bytes(range(100))


def an_entry(image: Image, step: int, steps: int = 1, sync: bool = False) -> Entry:
    """A request of `steps` steps; its record is a_record's."""
    record = a_record(step, image.session_id)
    return Entry(image.session_id, image.epoch, step, step + steps, record, sync)


def a_snapshot(step: int) -> Saved:
    return Saved(step, b"state before %d " % step + bytes(500))


async def committed(store: Store, entries: Sequence[Entry]) -> None:
    """Commits and waits until it is done."""
    pending = store.commit(entries)
    if pending is not None:
        await pending


async def opened(store: Store, session_id: str = "s", opening: Opening | None = None) -> Image:
    image = await store.claim(session_id, opening or an_opening(), 256)
    assert isinstance(image, Image)
    return image


async def stepped(store: Store, image: Image, start: int, stop: int) -> None:
    """Commits steps [start, stop), one a commit."""
    for step in range(start, stop):
        await committed(store, [an_entry(image, step)])


async def claimed(store: Store, session_id: str = "s", window: int = 256) -> Image:
    """Of a session that there is."""
    image = await store.claim(session_id, None, window)
    assert isinstance(image, Image), image
    assert not image.opened
    return image
