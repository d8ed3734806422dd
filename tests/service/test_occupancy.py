"""What a replica says of its own load."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.occupancy import OCCUPANCY, Occupancy
from tests.engine.making import Clock
from tests.sessions.making import JournalStore, make_house


async def test_an_idle_replica_is_not_occupied() -> None:
    with make_house() as house:
        clock, cpu = Clock(), Clock()
        occupancy = Occupancy([house.manager], clock, cpu)
        clock.now = 110.0
        read = occupancy.read()
    assert read[OCCUPANCY] == read["ticks"] == read["thread"] == read["queue"] == read["queue_s"] == 0.0


async def test_each_reading_is_about_the_time_since_the_last() -> None:
    with make_house() as house:
        clock, cpu = Clock(), Clock()
        occupancy = Occupancy([house.manager], clock, cpu)
        clock.now, cpu.now = 110.0, 108.0
        assert occupancy.read()["thread"] == pytest.approx(0.8)
        clock.now, cpu.now = 120.0, 109.0
        read = occupancy.read()
        assert read["thread"] == read[OCCUPANCY] == pytest.approx(0.1)
        assert occupancy.read()["thread"] == 0.0  # no time has passed


async def test_ticks_are_the_engines_time() -> None:
    with make_house() as house:
        clock = Clock()
        house.engine.clock = time.perf_counter
        occupancy = Occupancy([house.manager], clock, lambda: 0.0)
        await house.step("a", 3, step=0)
        clock.now += house.manager.counters.tick_seconds.total * 4
        read = occupancy.read()
        assert read["ticks"] == read[OCCUPANCY] == pytest.approx(0.25)
        assert 0 < read["slots"] < 1


async def test_requests_that_wait_and_open_sessions_count_against_the_most_there_may_be() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store, queue=4, sessions=5) as house:
        occupancy = Occupancy([house.manager], Clock(), lambda: 0.0)
        step = asyncio.create_task(house.step("a", step=0))
        await store.asked()
        read = occupancy.read()
        assert (read["queue"], read["sessions"], read[OCCUPANCY]) == (0.25, 0.2, 0.25)
        store.flush()
        await step
        assert occupancy.read()["queue"] == 0.0


async def test_the_time_of_the_thread_that_reads_is_what_counts() -> None:
    with make_house() as house:
        occupancy = Occupancy([house.manager])
        began = time.thread_time()
        while time.thread_time() - began < 0.05:
            pass
        assert occupancy.read()["thread"] > 0
