"""Replicas on one event loop whose time is simulated, over one store, with faults on the way to it.

Nothing here waits: when every task sleeps, the loop's clock jumps to the first that wakes. So leases run out
in no time, and a run with the same seed is the same run.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle
from service.engine.engine import Engine
from service.errors import CellstateError, Elsewhere, Moving
from service.sessions.custody import Upkeep, insisting
from service.sessions.register import Limits
from service.sessions.replies import Reply, StepCommand
from service.sessions.retention import Retention
from service.sessions.shared import SharedManager
from service.sessions.stores.memory import MemoryStore, Shelf
from service.sessions.stores.protocol import (
    Claim,
    Ending,
    Entry,
    History,
    Keeping,
    Leaving,
    Opening,
    Rewriting,
    Store,
    StoreAway,
)
from tests.engine.making import CPU, Oracle
from tests.sessions.making import TOLERANCE, make_bundle, make_command

P = ParamSpec("P")
LEASE_S = 5.0


class _Jump(selectors.SelectSelector):
    """Lets simulated time pass where a loop would sleep."""

    passed = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits, and nothing will ever happen")
        self.passed += max(timeout, 0.0)
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.passed


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in simulated time."""

    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(test(*arguments, **named))

    return run


@dataclass(slots=True)
class Fault:
    """What goes wrong with a call of `method`. after: when it was executed."""

    method: str
    error: Exception
    after: bool = False


class Unreliable:
    """A way to a store that delays, fails, or is cut. Calls are executed in the order they were made in."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.faults: deque[Fault] = deque()
        self.delay: Callable[[], float] = lambda: 0.0
        self.calls: list[tuple[str, Any]] = []  # that were executed
        self._open = asyncio.Event()
        self._open.set()
        self._dead = False
        self._last: asyncio.Future[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def cut(self) -> None:
        """Nothing gets through from now on; it waits."""
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def kill(self) -> None:
        """Nothing gets through any more, ever: the process is gone."""
        self._dead = True
        self._open.set()

    def fail(self, method: str, error: Exception, *, after: bool = False) -> None:
        """The next call of that method fails so."""
        self.faults.append(Fault(method, error, after))

    async def join(self, address: str) -> None:
        await self._do("join", address)

    async def renew(self) -> None:
        await self._do("renew")

    async def leave(self) -> None:
        await self._do("leave")

    async def claim(self, session_id: str, opening: Opening | None, window: int) -> Claim:
        found: Claim = await self._do("claim", session_id, opening, window)
        return found

    def commit(self, entries: Sequence[Entry]) -> asyncio.Future[None] | None:
        if self._calm and not self.faults and self.delay() == 0.0:
            self.calls.append(("commit", entries))
            return self.store.commit(entries)
        return asyncio.ensure_future(self._do("commit", entries))

    async def save(self, snapshots: Sequence[Keeping]) -> None:
        await self._do("save", snapshots)

    async def release(self, sessions: Sequence[Leaving]) -> None:
        await self._do("release", sessions)

    async def end(self, session_id: str, epoch: int, ending: Ending) -> None:
        await self._do("end", session_id, epoch, ending)

    async def history(self, session_id: str, epoch: int, step: int) -> History:
        found: History = await self._do("history", session_id, epoch, step)
        return found

    async def rewrite(self, change: Rewriting) -> None:
        await self._do("rewrite", change)

    async def sweep(self) -> int:
        found: int = await self._do("sweep")
        return found

    async def close(self) -> None:
        pass

    @property
    def _calm(self) -> bool:
        return self._open.is_set() and not self._dead and (self._last is None or self._last.done())

    async def _do(self, method: str, *arguments: Any) -> Any:
        before, mine = self._last, asyncio.get_running_loop().create_future()
        self._last = mine
        try:
            if before is not None and not before.done():
                await asyncio.wait([before])
            wait = self.delay()
            if wait:
                await asyncio.sleep(wait)
            await self._open.wait()
            if self._dead:
                raise StoreAway("the process was killed")
            fault = next((f for f in self.faults if f.method == method), None)
            if fault is not None:
                self.faults.remove(fault)
                if not fault.after:
                    raise fault.error
            result = getattr(self.store, method)(*arguments)
            if asyncio.iscoroutine(result):
                result = await result
            self.calls.append((method, arguments))
        finally:
            mine.set_result(None)
        if fault is not None:
            raise fault.error
        wait = self.delay()
        if wait:
            await asyncio.sleep(wait)
        return result


@dataclass(slots=True, eq=False)
class Replica:
    """A manager, and its way to the store."""

    address: str
    manager: SharedManager
    store: Unreliable
    alive: bool = True
    reachable: bool = True  # for the other replicas


class Cluster:
    """Replicas of one model over one shelf; requests go to the one named, and are passed on as `api` does."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.shelf = shelf or Shelf(clock=self.loop.time)
        self.replicas: list[Replica] = []
        self.bundle = make_bundle()
        self.spec = self.bundle.spec

    async def add(
        self,
        *,
        bundle: Bundle | None = None,
        upkeep: Upkeep | None = None,
        durability: str = "journal",
        sessions: int = 1000,
        queue: int = 1000,
        ttl_s: float = 3600.0,
        slots: int = 16,
        window: int = 16,
    ) -> Replica:
        """One more replica, started."""
        bundle = bundle or self.bundle
        engine = Engine(
            bundle.network(), slots=slots, max_batch=8, quantum=64, device=CPU, clock=self.loop.time
        )
        limits = Limits(sessions, 1000, queue, ttl_s, window, durability)
        way = Unreliable(MemoryStore(self.shelf, LEASE_S))
        address = f"http://replica-{len(self.replicas)}"
        manager = SharedManager(
            bundle,
            engine,
            way,
            limits,
            upkeep or Upkeep(window, Retention(16), "replay"),
            self.release,
            self.loop.time,
        )
        replica = Replica(address, manager, way)
        self.replicas.append(replica)
        await manager.start(address)
        return replica

    async def release(self, address: str, session_id: str) -> bool | None:
        """As `api.peers` asks another replica."""
        replica = self._at(address)
        if replica is None:
            await asyncio.sleep(0.5)
            return None
        try:
            async with asyncio.timeout(2.0):
                return await replica.manager.hand_over(session_id)
        except (CellstateError, TimeoutError):
            return None
        except Exception:  # noqa: BLE001  a 503 by `api`
            return None

    def _at(self, address: str) -> Replica | None:
        return next((r for r in self.replicas if r.address == address and r.alive and r.reachable), None)

    async def step(self, replica: Replica, command: StepCommand) -> Reply:
        """A request at a replica, passed on to the owner if need be; its reply."""
        try:
            return await replica.manager.step(command)
        except Elsewhere as error:
            owner = self._at(error.address)
            if owner is None:
                with insisting():
                    return await replica.manager.step(command)
            try:
                return await owner.manager.step(command)
            except Elsewhere:
                raise Moving("it moved meanwhile", retry_after_s=1) from None

    async def crash(self, replica: Replica) -> None:
        """The process is killed: nothing is released, and nothing more gets to the store."""
        replica.alive = False
        replica.store.kill()
        replica.manager.close()
        await replica.manager.custody.stop()

    async def leave(self, replica: Replica) -> bool:
        """The process stops in peace."""
        drained = await replica.manager.drain(10)
        await replica.manager.leave()
        replica.alive = False
        replica.manager.close()
        await replica.manager.custody.stop()
        return drained

    async def close(self) -> None:
        for replica in self.replicas:
            if replica.alive:
                replica.store.mend()
                replica.manager.check_integrity()
                replica.manager.close()
                await replica.manager.custody.stop()


@asynccontextmanager
async def make_cluster(replicas: int = 2, **how: Any) -> AsyncIterator[Cluster]:
    """In the end everything is accounted for."""
    cluster = Cluster()
    for _ in range(replicas):
        await cluster.add(**how)
    async with asyncio.timeout(10_000):
        try:
            yield cluster
        finally:
            await cluster.close()


@dataclass(slots=True)
class Track:
    """What a session should be: its commands one after the other, run by the oracle."""

    cluster: Cluster
    id: str
    at: list[Oracle] = field(default_factory=list)  # before each step
    commands: dict[int, StepCommand] = field(default_factory=dict)
    expected: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at.append(Oracle(self.cluster.bundle.network()))

    @property
    def next_step(self) -> int:
        return len(self.at) - 1

    def command(self, steps: int = 1) -> StepCommand:
        """The next request, or the one at that step again."""
        return self._command(self.next_step, steps)

    def _command(self, step: int, steps: int) -> StepCommand:
        return make_command(self.id, steps, step, seed=hash((self.id, step)) % 2**31, spec=self.cluster.spec)

    def done(self, command: StepCommand) -> None:
        """It was executed."""
        step = command.step
        assert step == self.next_step
        self.commands[step] = command
        oracle, rows = self.at[-1], []
        for row in command.steps.prepared:
            oracle = oracle.copy()
            rows.append(oracle.run([row])[0])
            self.at.append(oracle)
        outputs = self.cluster.spec.outputs
        self.expected[step] = np.array(rows) * [s.std for s in outputs] + [s.mean for s in outputs]

    def check(self, reply: Reply) -> None:
        """The reply to a request that was executed."""
        np.testing.assert_allclose(reply.outputs, self.expected[reply.step], atol=TOLERANCE * 10)

    async def go(self, replica: Replica, requests: int = 1, steps: int = 1) -> None:
        """Requests one after the other, each answered as it should be."""
        for _ in range(requests):
            command = self.command(steps)
            reply = await self.cluster.step(replica, command)
            assert (reply.step, reply.next_step, reply.replayed) == (
                command.step,
                self.next_step + steps,
                False,
            )
            self.done(command)
            self.check(reply)

    async def again(self, replica: Replica, step: int) -> Reply:
        """A retry of an executed request."""
        reply = await self.cluster.step(replica, self.commands[step])
        assert reply.replayed
        self.check(reply)
        return reply

    async def verify(self, replica: Replica) -> None:
        """The session is where it should be, wherever it is; it is brought to this replica."""
        with insisting():
            snapshot = await replica.manager.snapshot(self.id)
        assert snapshot.next_step == self.next_step
        np.testing.assert_allclose(snapshot.state, self.at[-1].state, atol=TOLERANCE)


def other_bundle(bundle: Bundle) -> Bundle:
    """Another version of the model: other weights."""
    weights = {name: tensor * 0.9 for name, tensor in bundle.weights.items()}
    return replace(bundle, version="2", digest="e" * 64, weights=weights)


_: type[Store] = Unreliable  # it is one
