"""What is refused when there is too much to do, and that nothing has happened then."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import NoCapacity
from service.sessions.replies import Options, Reply
from tests.sessions.making import House, make_command, make_house

#: What a step takes in these tests, as the engine was told; its clock stands still
STEP_S = 0.01
LONG = 40


def busy(house: House, waiting: int) -> list[asyncio.Future[Reply]]:
    """So many requests of 40 steps begin to wait, of sessions b0, b1 and so on."""
    before = [house.manager.step(make_command(f"b{n}", LONG, 0)) for n in range(waiting)]
    for n in range(20):
        house.engine._backlogs[False].learn(10, 10 * STEP_S, n * 10 * STEP_S)
    return before


async def test_a_request_that_would_wait_too_long_is_refused_and_taken_later() -> None:
    with make_house(wait_s=1.0) as house:
        before = busy(house, 10)
        with pytest.raises(NoCapacity, match=r"waiting for 4\.0 s") as refused:
            house.manager.step(make_command("a", LONG, 0))
        assert refused.value.facts["retry_after_s"] in (4, 5)
        assert house.manager.counters.rejected["wait"] == 1
        assert not house.manager.holds("a")
        await asyncio.gather(*before)
        assert (await house.step("a", LONG, 0)).next_step == LONG


async def test_a_session_is_where_it_was_after_a_refusal() -> None:
    with make_house(wait_s=1.0) as house:
        oracle, first = house.oracle(), make_command("a", 6, 0)
        house.expected(oracle, first)
        await house.manager.step(first)
        before = busy(house, 10)
        with pytest.raises(NoCapacity):
            house.manager.step(make_command("a", LONG, 6))
        await house.at("a", 6, oracle)
        await asyncio.gather(*before)
        later = make_command("a", LONG, 6)
        house.expected(oracle, later)
        await house.manager.step(later)
        await house.at("a", 6 + LONG, oracle)


async def test_a_retry_of_what_was_committed_is_answered_however_much_waits() -> None:
    with make_house(wait_s=1.0) as house:
        await house.step("a", 6, 0)
        before = busy(house, 10)
        assert (await house.step("a", 6, 0)).replayed
        await asyncio.gather(*before)


async def test_small_requests_pass_the_large_ones() -> None:
    with make_house(wait_s=1.0) as house:
        before = busy(house, 10)
        small = [house.manager.step(make_command("a", 2, 0)), house.manager.step(make_command("c", 1, 0))]
        await asyncio.gather(*before, *small)


async def test_what_begins_is_refused_before_what_goes_on() -> None:
    with make_house(wait_s=4.0) as house:
        await house.step("a", 6, 0)
        before = busy(house, 7)  # 2.8 s
        for begins in (house.manager.predict, house.manager.step):
            with pytest.raises(NoCapacity):
                begins(make_command("new", LONG, 0))
        before.append(house.manager.step(make_command("a", LONG, 6)))
        await asyncio.gather(*before)


async def test_a_forecast_counts_by_the_steps_that_it_takes() -> None:
    with make_house(wait_s=1.0) as house:
        before = busy(house, 10)
        options = Options(horizon=100)
        with pytest.raises(NoCapacity):
            house.manager.step(make_command("a", 1, 0, options=options))
        before.append(house.manager.step(make_command("a", 1, 0, options=Options(horizon=4))))  # of the head
        await asyncio.gather(*before)


async def test_however_long_they_are_some_are_taken_at_a_time() -> None:
    """Each of them alone takes longer than the wait that is allowed."""
    with make_house(wait_s=0.05) as house:
        before = busy(house, 5)
        with pytest.raises(NoCapacity):
            house.manager.step(make_command("a", LONG, 0))
        await asyncio.gather(*before)
