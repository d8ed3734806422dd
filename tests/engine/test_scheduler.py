"""The scheduler: oldest first, in turns. Tickets here are plain names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduler import Scheduler


def make_scheduler(*tickets: str, max_batch: int = 2) -> Scheduler[str]:
    scheduler: Scheduler[str] = Scheduler(max_batch, quantum=4, tick_steps=64)
    for ticket in tickets:
        scheduler.add(ticket)
    return scheduler


def everyone(ticket: str) -> bool:
    return True


def test_the_oldest_come_first_and_no_more_than_a_batch() -> None:
    scheduler = make_scheduler("a", "b", "c")
    assert scheduler.pick(everyone) == ["a", "b"]
    assert scheduler.pick(everyone) == ["c"]
    assert scheduler.pick(everyone) == []


def test_a_ticket_whose_quantum_is_over_goes_behind_those_that_wait() -> None:
    scheduler = make_scheduler("long", "b", "c", max_batch=1)
    turns = []
    for _ in range(6):
        (ticket,) = scheduler.pick(everyone) or [""]
        turns.append(ticket)
        if ticket == "long":
            scheduler.add(ticket)
    assert turns == ["long", "b", "c", "long", "long", "long"]


def test_a_refused_ticket_keeps_its_place_and_those_behind_it_are_asked() -> None:
    scheduler = make_scheduler("a", "b", "c", "d")
    asked: list[str] = []

    def not_a(ticket: str) -> bool:
        asked.append(ticket)
        return ticket != "a"

    assert scheduler.pick(not_a) == ["b", "c"]
    assert asked == ["a", "b", "c"]
    assert scheduler.pick(everyone) == ["a", "d"]


def test_a_dropped_ticket_is_gone_and_takes_no_place_in_the_batch() -> None:
    scheduler = make_scheduler("a", "b", "c")
    assert scheduler.pick(lambda ticket: None if ticket == "a" else True) == ["b", "c"]
    assert len(scheduler) == 0


@given(st.lists(st.sampled_from([True, False, None]), max_size=20), st.integers(1, 5))
def test_a_pick_loses_nobody_and_keeps_the_order(verdicts: list[bool | None], max_batch: int) -> None:
    scheduler: Scheduler[int] = Scheduler(max_batch, quantum=1, tick_steps=64)
    for ticket in range(len(verdicts)):
        scheduler.add(ticket)
    dropped: list[int] = []

    def admit(ticket: int) -> bool | None:
        if verdicts[ticket] is None:
            dropped.append(ticket)
        return verdicts[ticket]

    picked = scheduler.pick(admit)
    left = scheduler.pick(lambda ticket: True)
    while more := scheduler.pick(lambda ticket: True):
        left += more
    assert picked == sorted(picked)
    assert left == sorted(left)
    assert len(picked) <= max_batch
    assert sorted(picked + left + dropped) == list(range(len(verdicts)))
    assert all(verdicts[ticket] is True for ticket in picked)


def test_a_full_tick_gives_each_ticket_fewer_steps_but_one_at_least() -> None:
    scheduler: Scheduler[int] = Scheduler(256, quantum=8, tick_steps=64)
    assert [scheduler.share(n) for n in (1, 8, 16, 64, 256)] == [8, 8, 4, 1, 1]
