"""The third tier: sessions beyond the host's room are parked in the store, and return as they were."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.jobs import Place
from service.errors import SessionNotFound, Unavailable
from service.sessions.manager import SessionManager
from service.sessions.store import MemoryStore, Pending, States
from tests.engine.making import Oracle
from tests.sessions.making import TOLERANCE, House, make_command, make_house, until


class ParkingStore(MemoryStore):
    """While it is `slow`, parking and fetching are done when `flush` says so; while it is `broken`, they
    fail."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = self.broken = False
        self.fetches: list[int] = []
        self._waiting: list[tuple[asyncio.Future[None], Sequence[str], States]] = []
        self._asked: list[tuple[asyncio.Future[States], Sequence[str]]] = []

    @property
    def parking(self) -> int:
        return len(self._waiting)

    @property
    def fetching(self) -> int:
        return len(self._asked)

    def park(self, session_ids: Sequence[str], states: States) -> Pending:
        if self.broken:
            raise OSError("the disk is full")
        if not self.slow:
            return super().park(session_ids, states)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, session_ids, states))
        return future

    def fetch(self, session_ids: Sequence[str]) -> States | asyncio.Future[States]:
        if self.broken:
            raise OSError("the disk is gone")
        self.fetches.append(len(session_ids))
        if not self.slow:
            return super().fetch(session_ids)
        future: asyncio.Future[States] = asyncio.get_running_loop().create_future()
        self._asked.append((future, session_ids))
        return future

    def flush(self, error: Exception | None = None) -> None:
        """Answers all that waits."""
        parking, self._waiting = self._waiting, []
        fetching, self._asked = self._asked, []
        for future, session_ids, states in parking:
            if error is not None:
                future.set_exception(error)
            else:
                super().park(session_ids, states)
                future.set_result(None)
        for asked, session_ids in fetching:
            if error is not None:
                asked.set_exception(error)
            else:
                found = super().fetch(session_ids)
                assert isinstance(found, np.ndarray)
                asked.set_result(found)


def count(manager: SessionManager, place: str) -> int:
    return manager.places()[place]


async def fill(house: House, sessions: int) -> dict[str, Oracle]:
    """Sessions that have made a step each, and where they are."""
    oracles: dict[str, Oracle] = {}
    for n in range(sessions):
        command = make_command(f"s{n}", 1, 0, seed=n)
        house.expected(oracles.setdefault(f"s{n}", house.oracle()), command)
        await house.manager.step(command)
    return oracles


async def test_the_coldest_are_parked_until_the_host_holds_no_more_than_it_should() -> None:
    with make_house(slots=4, host_sessions=8) as house:
        oracles = await fill(house, 40)
        await until(lambda: count(house.manager, "host") <= 8)
        places = house.manager.places()
        assert (sum(places.values()), places["fresh"]) == (40, 0)
        assert places["store"] >= 40 - 8 - 4
        assert house.manager.counters.parked == places["store"]
        where = [house.manager.facts(f"s{n}").state.place for n in range(40)]
        assert where == sorted(where, key=[Place.STORE, Place.HOST, Place.DEVICE].index)
        house.manager.check_integrity()
        for name, oracle in oracles.items():
            await house.at(name, 1, oracle)


async def test_a_parked_session_goes_on_where_it_was_and_answers_retries_without_its_state() -> None:
    with make_house(store := ParkingStore(), slots=4, host_sessions=0) as house:
        oracles = await fill(house, 9)
        await until(lambda: count(house.manager, "store") >= 5)
        retry = await house.step("s0", 1, 0, seed=0)
        assert (retry.replayed, store.fetches) == (True, [])
        command = make_command("s0", 3, 1, seed=77)
        reply = await house.manager.step(command)
        np.testing.assert_allclose(reply.outputs, house.expected(oracles["s0"], command), atol=TOLERANCE)
        assert store.fetches == [1]
        await house.at("s0", 4, oracles["s0"])


async def test_those_that_are_wanted_together_are_fetched_together() -> None:
    with make_house(store := ParkingStore(), slots=4, host_sessions=0) as house:
        await fill(house, 9)
        await until(lambda: count(house.manager, "store") >= 5)
        await asyncio.gather(*(house.step(f"s{n}", 1, 1) for n in range(5)))
        assert store.fetches == [5]


async def test_requests_wait_in_order_while_a_state_is_fetched() -> None:
    with make_house(store := ParkingStore(), slots=4, host_sessions=0) as house:
        oracles = await fill(house, 9)
        await until(lambda: count(house.manager, "store") >= 5)
        store.slow = True
        commands = [make_command("s0", 2, at, seed=at) for at in (1, 3, 5)]
        futures = [house.manager.step(command) for command in commands]
        snapshot = house.manager.snapshot("s0")
        await until(lambda: store.fetching == 1)
        house.manager.check_integrity()
        assert house.manager.facts("s0").state.place is Place.STORE
        store.slow = False
        store.flush()
        for command, future in zip(commands, futures, strict=True):
            expected = house.expected(oracles["s0"], command)
            np.testing.assert_allclose((await future).outputs, expected, atol=TOLERANCE)
        assert (await snapshot).next_step == 7
        assert store.fetches == [1]


async def test_exports_and_forks_fetch_and_ends_and_imports_do_not() -> None:
    with make_house(store := ParkingStore(), slots=4, host_sessions=0) as house:
        oracles = await fill(house, 9)
        await until(lambda: count(house.manager, "store") >= 5)
        snapshot = await house.manager.snapshot("s0")
        np.testing.assert_allclose(snapshot.state, oracles["s0"].state, atol=TOLERANCE)
        await house.manager.fork("s1", "twin", None)
        await house.at("twin", 1, oracles["s1"])
        fetched = len(store.fetches)
        parked = house.engine.host.stored
        await house.manager.end("s2")
        await house.manager.restore("s3", snapshot)
        assert len(store.fetches) == fetched
        assert house.engine.host.stored >= parked - 2
        await house.at("s3", 1, oracles["s0"])
        with pytest.raises(SessionNotFound):
            house.manager.facts("s2")


async def test_sessions_that_end_leave_nothing_in_the_store() -> None:
    with make_house(store := ParkingStore(), slots=4, host_sessions=0, ttl_s=50.0) as house:
        await fill(house, 12)
        await until(lambda: count(house.manager, "store") >= 8)
        await asyncio.gather(*(house.manager.end(f"s{n}") for n in range(6)))
        house.clock.now += 51
        house.manager._register.sweep()
        assert house.manager.places() == {"device": 0, "host": 0, "store": 0, "fresh": 0}
        assert store._rows == {}
        assert store._blocks is not None
        assert store._blocks.used == 0


@pytest.mark.parametrize("how", ["at once", "late"])
async def test_a_store_that_cannot_give_a_state_leaves_its_session_unharmed(how: str) -> None:
    with make_house(store := ParkingStore(), slots=4, host_sessions=0) as house:
        oracles = await fill(house, 9)
        await until(lambda: count(house.manager, "store") >= 5)
        store.slow, store.broken = how == "late", how == "at once"
        futures: list[asyncio.Future[Any]] = [
            house.manager.step(make_command("s0", 1, 1)),
            house.manager.snapshot("s1"),
        ]
        if how == "late":
            await until(lambda: store.fetching == 1)
            store.flush(OSError("the disk is gone"))
        for future in futures:
            with pytest.raises(Unavailable, match="the disk is gone") as raised:
                await future
            assert raised.value.facts["retry_after_s"] == 1
        house.manager.check_integrity()
        store.slow = store.broken = False
        assert (await house.step("s0", 1, 1)).next_step == 2
        await house.at("s1", 1, oracles["s1"])


async def test_states_the_store_does_not_take_stay_and_are_offered_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.sessions.residence.RETRY_S", 0.01)
    store = ParkingStore()
    store.broken = True
    with make_house(store, slots=4, host_sessions=0) as house:
        oracles = await fill(house, 9)
        await until(lambda: "the disk is full" in caplog.text)
        assert count(house.manager, "host") >= 5
        await house.at("s0", 1, oracles["s0"])
        store.broken = False
        async with asyncio.timeout(10):
            while count(house.manager, "store") < 5:  # noqa: ASYNC110  the service's own clockwork is awaited
                await asyncio.sleep(0.005)
        await house.at("s1", 1, oracles["s1"])


async def test_a_session_that_moves_while_it_is_parked_is_not_put_back() -> None:
    """And what the store took of it is dropped."""
    with make_house(store := ParkingStore(), slots=4, host_sessions=0) as house:
        store.slow = True
        oracles = await fill(house, 9)
        await until(lambda: store.parking == 1)
        lent = [name for name in oracles if house.manager.facts(name).state.place is Place.HOST][:2]
        command = make_command(lent[0], 2, 1, seed=5)
        await house.manager.step(command)
        house.expected(oracles[lent[0]], command)
        await house.manager.end(lent[1])
        store.slow = False
        store.flush()
        await until(lambda: count(house.manager, "store") >= 1)
        assert lent[1] not in store._rows
        assert set(store._rows) == {
            name
            for name in oracles
            if name != lent[1] and house.manager.facts(name).state.place is Place.STORE
        }
        await house.at(lent[0], 3, oracles[lent[0]])


async def test_a_request_that_waits_for_the_store_is_answered_at_a_close_or_its_deadline() -> None:
    with make_house(store := ParkingStore(), slots=4, host_sessions=0) as house:
        await fill(house, 9)
        await until(lambda: count(house.manager, "store") >= 5)
        store.slow = True
        cancelled, waiting = (house.manager.step(make_command(f"s{n}", 1, 1)) for n in range(2))
        behind = house.manager.step(make_command("s0", 1, 1))
        await until(lambda: store.fetching == 1)
        cancelled.cancel()
        house.manager.close()
        for future in (waiting, behind):
            with pytest.raises(Unavailable, match="was not executed"):
                await future
        store.flush()
        await until(lambda: house.manager._in_flight == 0)
        assert house.manager.facts("s0").next_step == house.manager.facts("s1").next_step == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    host=st.integers(0, 6),
    slots=st.integers(3, 8),
    turns=st.lists(
        st.tuples(
            st.lists(st.integers(0, 15), min_size=1, max_size=10),
            st.sampled_from(["fast", "fast", "slow", "flush", "fail", "end", "export"]),
        ),
        max_size=15,
    ),
)
def test_whatever_the_store_does_no_session_is_lost_or_stepped_twice(
    host: int, slots: int, turns: list[tuple[list[int], str]]
) -> None:
    asyncio.run(live(host, slots, turns))


async def live(host: int, slots: int, turns: list[tuple[list[int], str]]) -> None:
    """Steps sessions in turns, against a store that is at times slow, and at times fails; in the end each
    must be the reference's."""
    with make_house(store := ParkingStore(), slots=slots, host_sessions=host, queue=1000) as house:
        oracles: dict[str, Oracle] = {}
        at: dict[str, int] = {}
        for seed, (who, what) in enumerate(turns):
            store.slow = what in ("slow", "fail")
            futures = {}
            for name in dict.fromkeys(f"s{n}" for n in who):
                command = make_command(name, 1, at.get(name, 0), seed=seed)
                futures[name] = (command, house.manager.step(command))
            extra = [house.manager.snapshot(name) for name in list(at)[:3]] if what == "export" else []
            for _ in range(30):
                await asyncio.sleep(0)
            store.flush(OSError("gone") if what == "fail" else None)
            store.slow = False
            while not all(future.done() for _, future in futures.values()):
                store.flush()
                await asyncio.sleep(0)
            await asyncio.gather(*extra)
            for name, (command, future) in futures.items():
                if future.exception() is None:
                    house.expected(oracles.setdefault(name, house.oracle()), command)
                    at[name] = at.get(name, 0) + 1
                else:
                    assert isinstance(future.exception(), Unavailable)
            house.manager.check_integrity()
            if what == "end" and at:
                name = next(iter(at))
                await house.manager.end(name)
                del at[name], oracles[name]
        for name, oracle in oracles.items():
            await house.at(name, at[name], oracle)
            await house.manager.end(name)
        assert sum(house.manager.places().values()) == 0
        assert house.engine.host.used == 0
        store.flush()
        await until(lambda: store._rows == {})  # a loan that was on its way is taken back
