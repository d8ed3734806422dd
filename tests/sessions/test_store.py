"""The store that keeps nothing, but remembers how sessions ended."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.sessions.store import Ending, MemoryStore


def test_it_takes_everything_at_once_and_promises_nothing() -> None:
    store = MemoryStore()
    assert store.commit([]) is None
    assert store.durabilities == ("none",)


def test_it_knows_which_sessions_expired() -> None:
    store = MemoryStore()
    store.end("a", Ending.EXPIRED)
    store.end("b", Ending.CLOSED)
    assert store.ending("a") is Ending.EXPIRED
    assert store.ending("b") is not Ending.EXPIRED
    assert store.ending("c") is None


def test_a_session_that_is_opened_again_has_not_ended() -> None:
    store = MemoryStore()
    store.end("a", Ending.EXPIRED)
    store.reopen("a")
    assert store.ending("a") is None


def test_it_remembers_the_newest_endings_only() -> None:
    store = MemoryStore(endings=3)
    for session in "abcab":
        store.end(session, Ending.EXPIRED)
    store.end("d", Ending.EXPIRED)
    assert [s for s in "abcd" if store.ending(s) is not None] == ["a", "b", "d"]


def test_it_forgets_endings_with_time() -> None:
    store = MemoryStore(remember_s=-1.0)
    store.end("a", Ending.EXPIRED)
    assert store.ending("a") is None


@pytest.mark.parametrize("ending", list(Ending))
def test_an_ending_is_taken_in_silence(ending: Ending) -> None:
    assert MemoryStore().end("a", ending) is None


def states(*numbers: float) -> NDArray[np.float32]:
    """[B, 2, layers, hidden] that tell their number."""
    return np.stack([np.full((2, 2, 3), number, np.float32) for number in numbers])


def test_parked_states_are_fetched_in_the_order_asked_for_and_stay() -> None:
    store = MemoryStore()
    assert store.park(["a", "b", "c"], states(1, 2, 3)) is None
    for _ in range(2):
        np.testing.assert_array_equal(store.fetch(["c", "a"]), states(3, 1))


def test_a_state_parked_again_is_the_new_one() -> None:
    store = MemoryStore()
    for n in range(9):
        store.park(["a", "b"], states(n, n + 0.5))
    np.testing.assert_array_equal(store.fetch(["a", "b"]), states(8, 8.5))
    assert store._blocks is not None
    assert store._blocks.used == 2


def test_what_is_dropped_is_gone_and_takes_no_room() -> None:
    store = MemoryStore()
    store.park(["a", "b"], states(1, 2))
    store.drop(["a", "never"])
    with pytest.raises(KeyError):
        store.fetch(["a"])
    np.testing.assert_array_equal(store.fetch(["b"]), states(2))
    assert store._blocks is not None
    store._blocks.check_integrity({store._rows["b"]})


def test_the_array_that_was_parked_is_the_callers_again() -> None:
    store, mine = MemoryStore(), states(1)
    store.park(["a"], mine)
    mine[:] = 9
    np.testing.assert_array_equal(store.fetch(["a"]), states(1))
