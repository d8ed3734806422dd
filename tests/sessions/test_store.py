"""The store that keeps nothing, but remembers how sessions ended."""

from __future__ import annotations

import pytest

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
