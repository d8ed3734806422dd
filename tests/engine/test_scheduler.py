"""The scheduler: oldest first, in turns. Tickets here are plain names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.engine.pace import BASE
from service.engine.scheduler import LULL_S, PATIENCE, Kind, Scheduler

MS = 1e-3


def make_scheduler(*tickets: str, max_batch: int = 2, quantum: int = 4) -> Scheduler[str]:
    """Tickets whose names begin with a capital are short."""
    scheduler: Scheduler[str] = Scheduler(max_batch, quantum, tick_steps=64, target=MS)
    add(scheduler, *tickets)
    return scheduler


def add(scheduler: Scheduler[str], *tickets: str) -> None:
    for ticket in tickets:
        kind = Kind.TRACED if ticket.startswith("traced") else Kind.LONG
        scheduler.add(ticket, Kind.SHORT if ticket[0].isupper() else kind)


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
    scheduler: Scheduler[int] = Scheduler(max_batch, quantum=1, tick_steps=64, target=MS)
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
    scheduler = make_scheduler("a", max_batch=256, quantum=8)
    scheduler.pick(everyone)
    scheduler.learn(1, 1, 0.0)  # as if a step took no time at all
    assert [scheduler.share(n) for n in (1, 8, 16, 64, 256)] == [8, 8, 4, 1, 1]


# Kinds


def turns(scheduler: Scheduler[str], count: int) -> list[list[str]]:
    """Ticks in which no ticket ever ends."""
    picks = []
    for _ in range(count):
        picks.append(scheduler.pick(everyone))
        add(scheduler, *picks[-1])
    return picks


def test_short_tickets_run_by_themselves_and_before_long_ones() -> None:
    scheduler = make_scheduler("a", "b", "S", "T")
    assert scheduler.pick(everyone) == ["S", "T"]
    assert scheduler.share(2) == 1
    assert scheduler.pick(everyone) == ["a", "b"]


def test_short_and_long_ones_take_turns() -> None:
    assert turns(make_scheduler("a", "S"), 5) == [["S"], ["a"], ["S"], ["a"], ["S"]]


def test_every_second_tick_is_for_short_ones_whatever_else_waits() -> None:
    picks = turns(make_scheduler("a", "traced b", "S"), 6)
    assert picks == [["S"], ["a"], ["S"], ["traced b"], ["S"], ["a"]]


def test_a_short_one_that_comes_while_long_ones_run_is_next() -> None:
    scheduler = make_scheduler("a", "b", "c")
    assert turns(scheduler, 3) == [["a", "b"], ["c", "a"], ["b", "c"]]
    add(scheduler, "S")
    assert turns(scheduler, 2) == [["S"], ["a", "b"]]


def test_a_kind_for_which_there_is_no_room_keeps_its_turn_while_others_go_on() -> None:
    scheduler = make_scheduler("a", "S")
    assert scheduler.pick(lambda ticket: ticket == "a") == ["a"]
    add(scheduler, "b")
    assert scheduler.pick(everyone) == ["S"]
    add(scheduler, "T")
    assert scheduler.pick(lambda ticket: ticket == "T") == ["T"]
    add(scheduler, "U")
    assert scheduler.pick(everyone) == ["b"]


# Cost


def test_ticks_are_small_while_short_ones_come_and_larger_when_there_were_none_for_a_while() -> None:
    scheduler = make_scheduler("a", quantum=512)
    scheduler.pick(everyone)
    scheduler.learn(4, 4, (4 + BASE) * 100e-6)
    scheduler.add("a")
    scheduler.pick(everyone, now=10.0)
    assert scheduler.share(1) == 10 * PATIENCE - BASE
    add(scheduler, "S", "a")
    scheduler.pick(everyone, now=20.0)
    scheduler.pick(everyone, now=20.0 + 0.9 * LULL_S)
    assert scheduler.share(1) == 10 - BASE
    add(scheduler, "a")
    scheduler.pick(everyone, now=20.0 + 1.1 * LULL_S)
    assert scheduler.share(1) == 10 * PATIENCE - BASE


def test_what_short_ones_take_says_nothing_of_long_ones() -> None:
    scheduler = make_scheduler("S", quantum=512)
    scheduler.pick(everyone)
    scheduler.learn(1, 1, 1.0)
    add(scheduler, "a")
    scheduler.pick(everyone, now=10.0)
    assert scheduler.share(1) == 4


def test_no_more_long_ones_run_together_than_take_a_step_in_time() -> None:
    scheduler = make_scheduler(*"abcdefgh", max_batch=8, quantum=512)
    assert len(scheduler.pick(everyone)) == 8
    scheduler.learn(8, 1, 10 * MS)
    add(scheduler, *"abcdefgh")
    assert len(scheduler.pick(everyone)) < 8
