"""Many requests that want the sessions of one replica: together they don't ask more than a few would."""

from __future__ import annotations

import asyncio

from service.sessions.neighbours import ASKED_AT_ONCE, LATE_S, RETRY_S, Neighbours
from service.sessions.stores.protocol import Elsewhere

OWNER = Elsewhere("http://owner", held_s=10.0, lease_s=0.05)


class Asked:
    """The owner's side: how often it was asked, and what it says."""

    def __init__(self, answer: bool | None, *, hangs: bool = False) -> None:
        self.answer, self.hangs, self.times = answer, hangs, 0

    async def __call__(self, address: str, session_id: str) -> bool | None:
        self.times += 1
        await (asyncio.Event().wait() if self.hangs else asyncio.sleep(0.001))
        return self.answer


async def ask(neighbours: Neighbours, count: int) -> list[bool | None]:
    return await asyncio.gather(*(neighbours.release(OWNER, f"s-{n}") for n in range(count)))


async def test_one_that_lives_is_asked_for_each_session() -> None:
    asked = Asked(True)
    assert await ask(Neighbours(asked), 300) == [True] * 300
    assert asked.times == 300


async def test_one_that_is_dead_is_asked_by_few_and_again_after_a_while() -> None:
    asked = Asked(None)
    neighbours = Neighbours(asked)
    assert await ask(neighbours, 300) == [None] * 300
    assert asked.times == ASKED_AT_ONCE
    asked.answer = True
    assert await neighbours.release(OWNER, "s") is None
    await asyncio.sleep(RETRY_S)
    assert await neighbours.release(OWNER, "s")


async def test_one_that_is_paused_is_waited_for_until_its_lease_ends() -> None:
    async with asyncio.timeout(2 * (OWNER.lease_s + LATE_S)):
        assert await ask(Neighbours(Asked(None, hangs=True)), 100) == [None] * 100


async def test_a_wait_ends_with_the_lease() -> None:
    neighbours, loop = Neighbours(Asked(None)), asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(neighbours.wait(OWNER) for _ in range(1000)))
    assert OWNER.lease_s <= loop.time() - began < OWNER.lease_s + 0.1
