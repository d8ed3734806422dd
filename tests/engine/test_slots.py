"""Slots: taken once, given back once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.slots import SlotTable


def test_each_slot_is_handed_out_once() -> None:
    table = SlotTable(5)
    assert {table.acquire() for _ in range(5)} == set(range(5))
    with pytest.raises(IndexError):
        table.acquire()
    assert table.free == 0


def test_the_last_released_is_the_first_taken() -> None:
    table = SlotTable(4)
    for _ in range(4):
        table.acquire()
    table.release(2)
    table.release(0)
    assert [table.acquire(), table.acquire()] == [0, 2]


@pytest.mark.parametrize("slot", [-1, 0, 3, 4, 99])
def test_a_slot_that_is_not_taken_cannot_be_released(slot: int) -> None:
    table = SlotTable(4)
    taken = [table.acquire() for _ in range(3)]
    table.release(0)
    assert taken == [0, 1, 2]
    with pytest.raises(ValueError, match=f"slot {slot} is not taken"):
        table.release(slot)
    assert table.free == 2


def test_integrity_says_when_a_holder_and_the_table_disagree() -> None:
    table = SlotTable(4)
    taken = {table.acquire(), table.acquire()}
    assert taken == {0, 1}
    table.check_integrity({0, 1})
    for held in ({0}, {0, 1, 2}, set[int](), {0, 3}):
        with pytest.raises(RuntimeError, match="not the held ones"):
            table.check_integrity(held)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_whatever_the_order_no_slot_has_two_holders(operations: list[int]) -> None:
    """A number is a slot to release if it is held, else a wish for a new one."""
    table, held = SlotTable(6), set[int]()
    for number in operations:
        if number in held:
            table.release(number)
            held.remove(number)
        else:
            if len(held) == 6:
                with pytest.raises(IndexError):
                    table.acquire()
                continue
            slot = table.acquire()
            assert slot not in held
            held.add(slot)
        table.check_integrity(held)
        assert table.free == 6 - len(held)
