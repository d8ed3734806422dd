"""The host pool: states keep their numbers on the way through it, the coldest go first, and none is in two
places."""

from __future__ import annotations

import numpy as np
import pytest

from service.engine.arena import Arena
from service.engine.host_pool import HostPool
from service.engine.jobs import Job, Place, StateHandle
from tests.engine.making import DEVICES

LAYERS, SLOTS, HIDDEN = 2, 9, 3


@pytest.fixture(params=DEVICES, ids=str)
def arena(request: pytest.FixtureRequest) -> Arena:
    """Every row filled with its number."""
    arena = Arena(LAYERS, SLOTS, HIDDEN, request.param)
    for row in range(SLOTS):
        arena.load(row, values(row)[0])
    return arena


def values(*numbers: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """[B, 2, layers, hidden]: the number in h, and less a half in c."""
    h = np.stack([np.full((LAYERS, HIDDEN), number, np.float32) for number in numbers])
    return np.stack((h, h - 0.5), 1)


def make_pool(arena: Arena) -> HostPool:
    return HostPool(LAYERS, HIDDEN, pinned=arena.device.type == "cuda", block_rows=4)


def resident(*slots: int) -> list[StateHandle]:
    return [StateHandle(Place.DEVICE, slot, f"s{slot}") for slot in slots]


def test_states_go_from_the_device_and_back_with_their_numbers(arena: Arena) -> None:
    pool, states = make_pool(arena), resident(3, 0, 8, 5, 1)
    pool.put(states[:3], arena)  # a run of one block
    pool.put(states[3:], arena)  # over its end
    pool.check_integrity()
    assert [state.place for state in states] == [Place.HOST] * 5
    assert pool.used == 5
    for state, number in zip(states, (3, 0, 8, 5, 1), strict=True):
        np.testing.assert_array_equal(pool.read(state), values(number)[0])
    pool.load([states[3], states[0], states[4]], arena, [0, 7, 2])
    pool.load([states[1]], arena, [4])
    assert arena.h[1, :, 0].tolist() == [5, 1, 1, 3, 0, 5, 6, 3, 8, 0]
    assert arena.c[0, :9, 2].tolist() == [n - 0.5 for n in (5, 1, 1, 3, 0, 5, 6, 3, 8)]
    assert pool.used == 5  # until they are released


def test_a_state_that_is_released_is_nowhere_and_its_row_is_used_again(arena: Arena) -> None:
    pool, (first, second) = make_pool(arena), resident(1, 2)
    pool.put([first, second], arena)
    pool.release(first)
    assert (first.place, first.slot, pool.used) == (Place.FRESH, -1, 1)
    pool.adopt([first], values(7))
    pool.check_integrity()
    assert pool.blocks.capacity == 4
    np.testing.assert_array_equal(pool.read(first), values(7)[0])


def test_the_first_to_come_are_lent_and_leave_when_the_store_has_them(arena: Arena) -> None:
    pool, states = make_pool(arena), resident(0, 1, 2, 3, 4, 5)
    pool.put(states, arena)
    pool.release(states[1])
    pool.adopt([states[1]], values(1))  # wanted meanwhile: now the last
    lent, copies = pool.lend(3)
    assert lent == [states[0], states[2], states[3]]
    np.testing.assert_array_equal(copies, values(0, 2, 3))
    assert pool.used == 6
    assert pool.confirm(lent, kept=True) == lent
    assert (pool.used, pool.stored) == (3, 3)
    pool.check_integrity()
    assert [state.place for state in states].count(Place.STORE) == 3
    pool.adopt(lent[1:], copies[1:])
    np.testing.assert_array_equal(pool.read(states[3]), values(3)[0])
    pool.release(lent[0])
    assert (pool.used, pool.stored) == (5, 0)
    pool.check_integrity()


def test_what_the_store_did_not_take_stays(arena: Arena) -> None:
    pool, states = make_pool(arena), resident(0, 1)
    pool.put(states, arena)
    lent, _ = pool.lend(9)
    with pytest.raises(RuntimeError, match="are not confirmed"):
        pool.lend(1)
    assert pool.confirm(lent, kept=False) == []
    assert (pool.used, pool.stored) == (2, 0)
    assert pool.lend(1)[0] == states[:1]


def test_a_state_that_moved_while_it_was_lent_is_not_taken_for_the_old_one(arena: Arena) -> None:
    """Also if it is back in the same row; and one that a job has is left alone."""
    pool, states = make_pool(arena), resident(0, 1, 2, 3)
    pool.put(states, arena)
    row = states[0].slot
    lent, _ = pool.lend(4)
    pool.release(states[0])
    pool.adopt([states[0]], values(9))
    pool.release(states[1])
    states[2].job = Job(np.zeros((1, 3), np.float32), states[2])
    assert states[0].slot == row
    assert pool.confirm(lent, kept=True) == [states[3]]
    np.testing.assert_array_equal(pool.read(states[0]), values(9)[0])
    pool.check_integrity()


def test_a_state_with_a_job_is_not_lent(arena: Arena) -> None:
    pool, states = make_pool(arena), resident(0, 1, 2)
    pool.put(states, arena)
    states[0].job = Job(np.zeros((1, 3), np.float32), states[0])
    assert pool.lend(2)[0] == states[1:]


def test_integrity_notices_a_state_that_was_moved_behind_its_back(arena: Arena) -> None:
    pool, (state,) = make_pool(arena), resident(0)
    pool.put([state], arena)
    state.place = Place.DEVICE
    with pytest.raises(RuntimeError, match="is elsewhere"):
        pool.check_integrity()
