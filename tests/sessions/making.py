"""Sessions on small engines, with clocks and stores that a test controls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle
from model.config import ModelSpec
from service.engine.engine import Engine
from service.sessions.inputs import InputReader, Steps
from service.sessions.manager import SessionManager
from service.sessions.record import span
from service.sessions.register import Limits
from service.sessions.replies import PLAIN, Options, Reply, StepCommand
from service.sessions.store import Ending, MemoryStore, Pending, StepRecord, Store
from tests.engine.making import CPU, Clock, Oracle, make_network, make_spec

TOLERANCE = 1e-4  # normalised


def make_bundle(spec: ModelSpec | None = None) -> Bundle:
    spec = spec or make_spec(hidden=8)
    weights = make_network(spec).state_dict()
    return Bundle("tiny", "1", spec, weights, description="for a test", digest="d" * 64)


def make_rows(spec: ModelSpec, steps: int, seed: int = 1) -> list[list[float]]:
    """Steps as a client sends them, in units."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((steps, len(spec.inputs)))
    rows: list[list[float]] = (x * [s.std for s in spec.inputs] + [s.mean for s in spec.inputs]).tolist()
    return rows


def make_steps(spec: ModelSpec, steps: int, seed: int = 1) -> Steps:
    return InputReader(spec, 10_000).series(make_rows(spec, steps, seed))


def make_command(
    session_id: str = "a",
    steps: int = 1,
    step: int | None = None,
    *,
    seed: int = 1,
    options: Options = PLAIN,
    timeout_s: float | None = None,
    spec: ModelSpec | None = None,
) -> StepCommand:
    prepared = make_steps(spec or make_spec(hidden=8), steps, seed)
    return StepCommand(session_id, prepared, step, options, timeout_s)


class JournalStore(MemoryStore):
    """Keeps every committed request in a list. While it is `slow`, a commit is safe only when `flush` says
    so; while it is `broken`, commits fail."""

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[StepRecord] = []
        self.slow = False
        self.broken = False
        self.ended = asyncio.Event()  # some session ended
        self._pending: list[tuple[Sequence[StepRecord], asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    def commit(self, records: Sequence[StepRecord]) -> Pending:
        if not self.slow and not self.broken:
            self.journal += records
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.slow:
            self._pending.append((records, future))
            self._arrived.set()
        else:
            future.set_exception(OSError("the disk is full"))
        return future

    def end(self, session_id: str, ending: Ending) -> Pending:
        self.ended.set()
        return super().end(session_id, ending)

    async def asked(self) -> None:
        """Until a commit waits to be flushed."""
        await asyncio.wait_for(self._arrived.wait(), 10)

    def flush(self, error: Exception | None = None, *, cancel: bool = False) -> None:
        """Answers the oldest commit that waits."""
        records, future = self._pending.pop(0)
        if not self._pending:
            self._arrived.clear()
        if cancel:
            future.cancel()
        elif error is not None:
            future.set_exception(error)
        else:
            self.journal += records
            future.set_result(None)

    def steps(self, session_id: str) -> list[tuple[int, int]]:
        """First and next step of each committed request of a session, in order."""
        return [span(record) for name, record in self.journal if name == session_id]


class RaisingStore(MemoryStore):
    """Its commit raises at once."""

    def commit(self, records: Sequence[StepRecord]) -> Pending:
        raise OSError("no such table")


class House:
    """A manager, with what it stands on."""

    def __init__(
        self,
        store: Store,
        *,
        slots: int = 16,
        max_batch: int = 8,
        quantum: int = 4,
        sessions: int = 100,
        host_sessions: int = 1000,
        queue: int = 100,
        ttl_s: float = 60.0,
        replay_window: int = 16,
        wait_s: float = math.inf,
    ) -> None:
        self.bundle = make_bundle()
        self.spec = self.bundle.spec
        self.clock, self.engine_clock = Clock(), Clock()
        self.engine = Engine(
            self.bundle.network(),
            slots=slots,
            max_batch=max_batch,
            quantum=quantum,
            device=CPU,
            clock=self.engine_clock,
        )
        limits = Limits(sessions, host_sessions, queue, ttl_s, replay_window, "none", wait_s)
        self.manager = SessionManager(self.bundle, self.engine, store, limits, self.clock)

    def oracle(self) -> Oracle:
        return Oracle(self.engine.runner.network)

    def expected(self, oracle: Oracle, command: StepCommand) -> NDArray[np.float64]:
        """The oracle's outputs for a command, in units; the oracle moves."""
        outputs = self.spec.outputs
        return np.asarray(
            oracle.run(command.steps.prepared) * [s.std for s in outputs] + [s.mean for s in outputs]
        )

    async def step(
        self,
        session_id: str = "a",
        steps: int = 1,
        step: int | None = None,
        *,
        seed: int = 1,
        options: Options = PLAIN,
    ) -> Reply:
        """A request and its reply."""
        command = make_command(session_id, steps, step, seed=seed, options=options)
        return await self.manager.step(command)

    async def state(self, session_id: str = "a") -> NDArray[np.float32]:
        return (await self.manager.snapshot(session_id)).state

    async def at(self, session_id: str, next_step: int, oracle: Oracle) -> None:
        """Asserts that the session is exactly there."""
        assert self.manager.facts(session_id).next_step == next_step
        np.testing.assert_allclose(await self.state(session_id), oracle.state, atol=TOLERANCE)


@contextmanager
def make_house(store: Store | None = None, **how: int | float) -> Iterator[House]:
    """On the running loop. In the end everything is accounted for."""
    house = House(store or MemoryStore(), **how)  # type: ignore[arg-type]
    try:
        yield house
        house.manager.check_integrity()
    finally:
        house.manager.close()


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until the condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")
