"""The engine on an event loop: ticks come by themselves, and stop when there is nothing to do."""

from __future__ import annotations

import asyncio
import itertools
from contextvars import ContextVar

from service.engine.engine import Engine
from service.engine.jobs import Job, Phase, StateHandle
from service.engine.loop import FRESH, MOST_POLLS, RE_POLLS, EngineLoop
from service.engine.rollouts import Forecast
from tests.engine.making import bad_job, make_engine, make_job, make_spec


class Watched(EngineLoop):
    """Commits what is DONE, unless told to hold it; its queue tells what ended."""

    def __init__(self, engine: Engine, hold: bool = False) -> None:
        super().__init__(engine, self.take)
        self.hold = hold
        self.ended: asyncio.Queue[Job] = asyncio.Queue()
        self.ticks = 0

    def take(self, jobs: list[Job]) -> None:
        self.ticks += 1
        for job in jobs:
            if job.phase is Phase.DONE and not self.hold:
                self.engine.commit(job)
            self.ended.put_nowait(job)

    async def next(self) -> Job:
        return await asyncio.wait_for(self.ended.get(), 10)

    async def next_tick(self) -> None:
        for before in itertools.repeat(self.ticks):
            await asyncio.sleep(0)
            if self.ticks > before:
                return


async def quiet() -> None:
    """Until every callback that is ready has run, several times over."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_arrives_together_is_one_batch() -> None:
    loop = Watched(make_engine())
    jobs = [make_job(loop.engine) for _ in range(5)]
    for job in jobs:
        loop.submit(job)
    assert {await loop.next() for _ in jobs} == set(jobs)
    assert loop.engine.last_tick.batch == 5
    assert loop.ticks == 1


async def test_it_ticks_until_there_is_nothing_to_do_and_then_stands_still() -> None:
    loop = Watched(make_engine(quantum=4))
    loop.submit(make_job(loop.engine, 30))
    await loop.next()
    await quiet()
    assert loop.ticks == 8
    loop.submit(make_job(loop.engine))
    await loop.next()
    assert loop.ticks == 9


async def test_a_failed_tick_does_not_stop_the_loop() -> None:
    loop = Watched(make_engine())
    loop.submit(bad_job())
    assert (await loop.next()).phase is Phase.FAILED
    loop.submit(make_job(loop.engine))
    assert (await loop.next()).phase is Phase.COMMITTED


async def test_while_every_job_waits_for_a_row_it_does_not_spin_and_goes_on_when_woken() -> None:
    loop = Watched(make_engine(slots=3), hold=True)
    rollout = Forecast(make_spec(), 2)
    loop.submit(make_job(loop.engine, 1, StateHandle(), rollout=rollout))
    held = await loop.next()
    loop.submit(waiting := make_job(loop.engine, 1, rollout=Forecast(make_spec(), 2)))
    await quiet()
    ticks = loop.ticks
    await quiet()
    assert (loop.ticks, waiting.phase) == (ticks, Phase.WAITING)
    loop.engine.commit(held)
    loop.wake()
    assert await loop.next() is waiting


async def test_slots_are_freed_when_there_is_nothing_else_to_do() -> None:
    loop = Watched(make_engine(slots=16))
    for _ in range(14):
        loop.submit(make_job(loop.engine, 1, StateHandle()))
        await loop.next()
    await quiet()
    assert loop.engine.slots.free >= loop.engine.low_water
    assert loop.engine.evicted == loop.engine.spilled_ahead == loop.engine.on_host > 0
    loop.engine.check_integrity()


async def test_no_slot_is_freed_ahead_while_there_is_work() -> None:
    loop = Watched(make_engine(slots=16, quantum=1))
    states = [StateHandle() for _ in range(14)]
    for state in states:
        loop.submit(make_job(loop.engine, 1, state))
    loop.submit(long := make_job(loop.engine, 400))
    while await loop.next() is not long:
        assert loop.engine.spilled_ahead == 0
    await quiet()
    assert loop.engine.spilled_ahead > 0


async def test_a_tick_is_nobodys_though_a_request_armed_it() -> None:
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    seen: list[str] = []

    class Asking(Watched):
        def take(self, jobs: list[Job]) -> None:
            seen.append(whose.get())
            super().take(jobs)

    loop = Asking(make_engine(quantum=4))
    whose.set("a request's")
    loop.submit(make_job(loop.engine, 30))
    await loop.next()
    assert seen == ["nobody's"] * 8


async def test_others_wait_after_a_tick_only_while_short_requests_are_about() -> None:
    loop = Watched(make_engine(quantum=4))
    loop.submit(make_job(loop.engine, 8))
    await loop.next()
    assert not loop.busy()
    loop.submit(make_job(loop.engine))
    assert [loop.busy() for _ in range(5)] == [True] * 5  # it waits for its tick
    await loop.next()
    assert [loop.busy() for _ in range(5)] == [True] * FRESH + [False] * (5 - FRESH)


async def test_a_long_tick_gives_a_request_that_was_read_the_time_to_get_here() -> None:
    loop = Watched(make_engine(quantum=4))
    loop.submit(make_job(loop.engine))
    await loop.next()  # so that the next turn is the long ones'
    loop.submit(long := make_job(loop.engine, 40))
    await loop.next_tick()
    before = loop.ticks
    for _ in range(RE_POLLS + FRESH):  # all rounds that it waits by itself
        await asyncio.sleep(0)
        loop.expect()
    assert loop.ticks == before
    loop.submit(short := make_job(loop.engine))
    assert await loop.next() is short
    assert await loop.next() is long


async def test_a_long_tick_does_not_wait_for_ever() -> None:
    loop = Watched(make_engine(quantum=4))
    loop.submit(make_job(loop.engine, 40))
    for _ in range(10 * (MOST_POLLS + 1)):
        loop.expect()
        await asyncio.sleep(0)
    assert loop.ticks == 10
