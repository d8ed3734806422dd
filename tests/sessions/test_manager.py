"""The session manager on an event loop: order, retries, failures, and what is left behind."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from service.engine.jobs import Place
from service.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidValue,
    NoCapacity,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    StepConflict,
    Unavailable,
)
from service.sessions.inputs import Steps
from service.sessions.register import SWEEP_S
from service.sessions.replies import Options, StepCommand
from tests.sessions.making import (
    TOLERANCE,
    JournalStore,
    RaisingStore,
    make_command,
    make_house,
    until,
)

# Steps, in order


async def test_a_session_is_the_reference_over_its_requests() -> None:
    with make_house() as house:
        oracle, at = house.oracle(), 0
        for seed, steps in enumerate((1, 3, 11, 1, 40)):
            command = make_command("a", steps, at, seed=seed)
            reply = await house.manager.step(command)
            assert (reply.step, reply.next_step, reply.replayed) == (at, at + steps, False)
            np.testing.assert_allclose(reply.outputs, house.expected(oracle, command), atol=TOLERANCE)
            at += steps
        await house.at("a", at, oracle)
        assert house.manager.counters.steps == at


async def test_requests_of_one_session_execute_in_order_of_arrival() -> None:
    """All sent at once, with no numbers; and each long enough to take several ticks."""
    with make_house(JournalStore()) as house:
        house.manager.open("a")
        commands = [make_command("a", 3 + n, seed=n) for n in range(8)]
        replies = await asyncio.gather(*map(house.manager.step, commands))
        oracle = house.oracle()
        for command, reply in zip(commands, replies, strict=True):
            np.testing.assert_allclose(reply.outputs, house.expected(oracle, command), atol=TOLERANCE)
        assert all(before.next_step == after.step for before, after in pairwise(replies))
        await house.at("a", replies[-1].next_step, oracle)


async def test_different_sessions_do_not_wait_for_each_other() -> None:
    """A short request is answered while another session's long one runs."""
    with make_house() as house:
        long = house.manager.step(make_command("long", 400, 0))
        short = await house.step("short", 1, 0)
        assert short.next_step == 1
        assert not long.done()
        assert (await long).next_step == 400


async def test_the_same_step_many_times_at_once_is_executed_once() -> None:
    with make_house(store := JournalStore()) as house:
        commands = [make_command("a", 5, 0) for _ in range(10)]
        replies = await asyncio.gather(*map(house.manager.step, commands))
        assert [reply.replayed for reply in replies] == [False] + [True] * 9
        for reply in replies:
            np.testing.assert_array_equal(reply.outputs, replies[0].outputs)
        assert store.steps("a") == [(0, 5)]
        assert house.manager.counters.steps == 5
        assert house.manager.counters.deduplicated == 45
        oracle = house.oracle()
        oracle.run(commands[0].steps.prepared)
        await house.at("a", 5, oracle)


async def test_duplicates_while_the_store_is_slow_wait_for_the_one_execution() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store) as house:
        first, second = (house.manager.step(make_command("a", 2, 0)) for _ in range(2))
        await store.asked()
        assert not first.done()
        store.flush()
        replies = await asyncio.gather(first, second)
        assert [reply.replayed for reply in replies] == [False, True]
        assert store.steps("a") == [(0, 2)]


async def test_the_same_step_at_once_with_other_inputs_is_executed_once_and_refused_once() -> None:
    with make_house() as house:
        futures = [house.manager.step(make_command("a", 2, 0, seed=seed)) for seed in (1, 2)]
        assert (await futures[0]).next_step == 2
        with pytest.raises(StepConflict, match="other inputs") as raised:
            await futures[1]
        assert raised.value.facts["expected_step"] == 2
        assert house.manager.counters.conflicts == {"replay": 1}


async def test_a_gap_is_refused_with_the_step_that_is_expected() -> None:
    with make_house() as house:
        await house.step("a", 3, 0)
        for step in (4, 100):
            with pytest.raises(StepConflict) as raised:
                await house.step("a", 1, step)
            assert raised.value.facts["expected_step"] == 3
        assert house.manager.facts("a").next_step == 3
        assert house.manager.counters.conflicts == {"gap": 2}


async def test_numbered_requests_sent_ahead_are_checked_at_their_turn() -> None:
    with make_house() as house:
        futures = [house.manager.step(make_command("a", 2, step, seed=step)) for step in (0, 2, 4, 2, 9)]
        replies = await asyncio.gather(*futures, return_exceptions=True)
        assert [getattr(r, "replayed", r.__class__) for r in replies] == [
            False, False, False, True, StepConflict,
        ]  # fmt: skip


# Beginnings and endings


async def test_step_0_opens_an_unknown_id_and_no_other_request_does() -> None:
    with make_house() as house:
        for step in (1, None, 7):
            with pytest.raises(SessionNotFound):
                house.manager.step(make_command("a", 1, step))
        for verb in (house.manager.end, house.manager.snapshot, house.manager.facts):
            with pytest.raises(SessionNotFound):
                verb("a")
        with pytest.raises(SessionNotFound):
            house.manager.fork("a", None, None)
        assert len(house.manager) == 0
        assert (await house.step("a", 1, 0)).next_step == 1
        assert len(house.manager) == 1


async def test_an_opened_session_is_not_opened_again() -> None:
    with make_house() as house:
        assert house.manager.open("a").id == "a"
        with pytest.raises(SessionExists):
            house.manager.open("a")
        issued = {house.manager.open().id for _ in range(50)}
        assert len(issued) == 50
        assert all(re.fullmatch(r"s-[0-9a-f]{8}-[0-9a-f]{16}", name) for name in issued)


async def test_a_durability_that_the_store_does_not_have_is_refused() -> None:
    with make_house() as house, pytest.raises(InvalidValue) as raised:
        house.manager.open("a", durability="journal")
    assert raised.value.facts["field"] == "durability"
    assert len(house.manager) == 0


async def test_an_id_that_another_process_issued_is_lost_and_not_unknown() -> None:
    with make_house() as house:
        elsewhere = "s-00000000-0123456789abcdef"
        for step in (0, 5, None):
            with pytest.raises(SessionLost):
                house.manager.step(make_command(elsewhere, 1, step))
        mine = house.manager.open().id
        await house.manager.end(mine)
        with pytest.raises(SessionNotFound):
            house.manager.facts(mine)
        assert (await house.step(mine, 1, 0)).next_step == 1
        assert house.manager.open(elsewhere).next_step == 0  # who opens it knows that it is new


async def test_an_idle_session_expires_and_says_so_until_it_is_opened_again() -> None:
    with make_house(ttl_s=60.0) as house:
        await house.step("a", 2, 0)
        house.clock.now += 59.9
        await house.step("a", 1, 2)  # each use counts
        house.clock.now += 59.9
        assert house.manager.facts("a").next_step == 3
        house.clock.now += 0.1
        for step in (0, 3, None):
            with pytest.raises(SessionExpired):
                house.manager.step(make_command("a", 1, step))
        with pytest.raises(SessionExpired):
            house.manager.facts("a")
        with pytest.raises(SessionExpired):
            house.manager.end("a")
        assert len(house.manager) == 0
        assert house.engine.slots.free == house.engine.slots.slots
        assert house.manager.counters.ended == {"expired": 1}
        assert house.manager.open("a").next_step == 0
        assert (await house.step("a", 1, 0)).replayed is False
        await house.manager.end("a")  # this one did not expire
        with pytest.raises(SessionNotFound):
            house.manager.facts("a")
        assert (await house.step("a", 1, 0)).next_step == 1


async def test_reading_facts_does_not_keep_a_session_alive() -> None:
    with make_house(ttl_s=60.0) as house:
        house.manager.open("a")
        house.clock.now += 59
        assert house.manager.expires_in(house.manager.facts("a")) == pytest.approx(1.0)
        house.clock.now += 1
        with pytest.raises(SessionExpired):
            house.manager.facts("a")


async def test_each_session_has_its_own_time_to_live() -> None:
    with make_house(ttl_s=60.0, sessions=2) as house:
        house.manager.open("short", ttl_s=5.0)
        house.manager.open("long", ttl_s=500.0)
        house.clock.now += 100
        house.manager.open("new")  # there is room: the expired one went
        assert house.manager.facts("long").ttl_s == 500.0
        with pytest.raises(SessionExpired):
            house.manager.facts("short")


async def test_a_session_does_not_expire_while_a_request_runs() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store, ttl_s=1.0) as house:
        running = house.manager.step(make_command("a", 2, 0))
        await store.asked()
        house.clock.now += 1000
        assert house.manager.facts("a").next_step == 0
        store.flush()
        assert (await running).next_step == 2
        assert house.manager.facts("a").next_step == 2  # its time begins with the reply


async def test_the_clockwork_ends_idle_sessions_by_itself() -> None:
    with make_house(store := JournalStore(), ttl_s=0.5) as house:
        await house.step("a", 1, 0)
        house.clock.now += 1
        await asyncio.wait_for(store.ended.wait(), 10 * SWEEP_S)
        assert len(house.manager) == 0
        assert house.engine.slots.free == house.engine.slots.slots


async def test_sessions_that_come_and_go_leave_nothing_behind() -> None:
    """Long before their time to live is over."""
    with make_house(ttl_s=86400.0) as house:
        for n in range(5000):
            house.manager.open(f"s{n}")
            await house.manager.end(f"s{n}")
        assert len(house.manager._register._expiries) < 2000
        assert len(house.manager) == 0


# No room


async def test_beyond_its_sessions_it_says_when_to_come_back() -> None:
    with make_house(sessions=2, ttl_s=30.0) as house:
        await house.step("a", 1, 0)
        house.manager.open("b")
        for refused in (
            lambda: house.manager.open("c"),
            lambda: house.manager.step(make_command("c", 1, 0)),
        ):
            with pytest.raises(NoCapacity) as raised:
                refused()
            assert raised.value.facts["retry_after_s"] == 30
        with pytest.raises(NoCapacity):
            await house.manager.fork("a", "c", None)
        with pytest.raises(NoCapacity):
            house.manager.restore("c", await house.manager.snapshot("a"))
        assert house.manager.counters.rejected == {"sessions": 4}
        assert (await house.step("a", 1, 1)).next_step == 2  # those that are here go on
        await house.manager.end("b")
        assert house.manager.open("c").next_step == 0


async def test_beyond_its_queue_it_refuses_and_nothing_has_happened() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store, queue=3) as house:
        accepted = [house.manager.step(make_command("a", 1, step, seed=step)) for step in (0, 1, 2)]
        for refused in (
            make_command("a", 1, 3),
            make_command("b", 1, 0),
        ):
            with pytest.raises(NoCapacity) as raised:
                house.manager.step(refused)
            assert raised.value.facts["retry_after_s"] == 1
        with pytest.raises(NoCapacity):
            house.manager.predict(make_command("", 1, 0))
        with pytest.raises(SessionNotFound):
            house.manager.facts("b")
        for _ in accepted:
            await store.asked()
            store.flush()
            store._arrived.clear()
        assert [reply.next_step for reply in await asyncio.gather(*accepted)] == [1, 2, 3]
        store.slow = False
        assert (await house.step("a", 1, 3)).next_step == 4


# Deadlines and cancellations


async def test_a_deadline_that_passes_in_the_sessions_queue() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store) as house:
        first = house.manager.step(make_command("a", 1, 0))
        late = house.manager.step(make_command("a", 1, 1, timeout_s=0.001))
        after = house.manager.step(make_command("a", 1, 1, seed=5))
        await store.asked()
        with pytest.raises(DeadlineExceeded):
            await late
        store.slow = False
        store.flush()
        assert (await first).next_step == 1
        assert (await after).step == 1  # the late one never happened
        assert house.manager.counters.rejected == {"deadline": 1}


async def test_a_deadline_that_passes_in_the_engines_queue() -> None:
    """Three slots: the state and the new state of one session, and nothing for another with a forecast."""
    store = JournalStore()
    store.slow = True
    with make_house(store, slots=3) as house:
        first = house.manager.step(make_command("a", 1, 0, options=Options(horizon=2)))
        await store.asked()
        late = replace(make_command("b", 1, 0, timeout_s=0.001), options=Options(horizon=2))
        with pytest.raises(DeadlineExceeded):
            await house.manager.step(late)
        house.engine_clock.now += 1
        store.slow = False
        store.flush()
        await first
        await until(lambda: house.manager._in_flight == 0)
        with pytest.raises(SessionNotFound):
            house.manager.facts("b")
        assert house.manager.counters.rejected == {"deadline": 1}


async def test_a_deadline_that_passes_behind_long_requests_is_told_at_once() -> None:
    """Three slots: a long request holds what there is, and goes on for long after the deadline."""
    with make_house(slots=3, quantum=1) as house:
        long = house.manager.step(replace(make_command("a", 2000, 0), options=Options(horizon=1)))
        await until(lambda: house.engine.running == 1)
        late = replace(make_command("b", 2, 0, timeout_s=0.001), options=Options(horizon=2))
        with pytest.raises(DeadlineExceeded):
            await house.manager.step(late)
        assert not long.done()
        house.engine_clock.now += 1
        assert (await long).next_step == 2000
        await until(lambda: house.manager._in_flight == 0)
        with pytest.raises(SessionNotFound):
            house.manager.facts("b")
        assert house.manager.counters.rejected == {"deadline": 1}


async def test_a_deadline_does_not_stop_what_is_running() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store) as house:
        running = house.manager.step(make_command("a", 9, 0, timeout_s=0.005))
        await store.asked()
        house.engine_clock.now += 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 0.05)
        store.flush()
        assert (await running).next_step == 9
        assert not house.manager.counters.rejected


async def test_a_request_cancelled_before_its_start_never_happened() -> None:
    with make_house() as house:
        house.manager.open("a")
        first, second, third = (house.manager.step(make_command("a", 2, seed=n)) for n in range(3))
        first.cancel()
        second.cancel()
        reply = await third
        assert reply.step == 0
        oracle = house.oracle()
        np.testing.assert_allclose(
            reply.outputs, house.expected(oracle, make_command("a", 2, seed=2)), atol=TOLERANCE
        )
        await house.at("a", 2, oracle)
        assert not house.manager.counters.rejected


async def test_an_end_cancelled_before_its_turn_ends_nothing() -> None:
    with make_house() as house:
        running = house.manager.step(make_command("a", 9, 0))
        house.manager.end("a").cancel()
        assert (await running).next_step == 9
        assert (await house.step("a", 1, 9)).next_step == 10


async def test_a_request_cancelled_after_its_start_is_committed_and_a_retry_gets_its_reply() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store) as house:
        command = make_command("a", 3, 0)
        future = house.manager.step(command)
        await store.asked()
        future.cancel()
        store.slow = False
        store.flush()
        reply = await house.manager.step(command)
        assert (reply.replayed, reply.next_step) == (True, 3)
        oracle = house.oracle()
        np.testing.assert_allclose(reply.outputs, house.expected(oracle, command), atol=TOLERANCE)
        assert store.steps("a") == [(0, 3)]


async def test_a_session_whose_opening_request_is_cancelled_was_never_opened() -> None:
    with make_house() as house:
        future = house.manager.step(make_command("a", 3, 0))
        assert len(house.manager) == 1
        future.cancel()
        await until(lambda: len(house.manager) == 0)
        with pytest.raises(SessionNotFound):
            house.manager.facts("a")


async def test_a_prediction_cancelled_before_its_start_is_not_run() -> None:
    with make_house() as house:
        house.manager.predict(make_command("", 3)).cancel()
        await until(lambda: house.manager._in_flight == 0)
        assert house.engine.slots.free == house.engine.slots.slots


# Failures


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_commit_that_fails_late_leaves_the_session_before_the_step(how: str) -> None:
    store = JournalStore()
    with make_house(store) as house:
        oracle = house.oracle()
        oracle.run(make_command("a", 4, 0).steps.prepared)
        await house.step("a", 4, 0)
        store.slow = True
        failing = house.manager.step(make_command("a", 3, 4, seed=2))
        behind = house.manager.step(make_command("a", 3, 4, seed=2))
        await store.asked()
        house.manager.check_integrity()
        store.slow = False
        store.flush(OSError("the network is away"), cancel=how == "is cancelled")
        with pytest.raises(Unavailable) as raised:
            await failing
        assert raised.value.facts["retry_after_s"] == 1
        reply = await behind  # its turn came, and it is the first that is committed
        assert (reply.step, reply.replayed) == (4, False)
        oracle.run(make_command("a", 3, 4, seed=2).steps.prepared)
        await house.at("a", 7, oracle)
        assert store.steps("a") == [(0, 4), (4, 7)]


async def test_a_commit_that_fails_at_once_leaves_the_sessions_before_their_steps() -> None:
    store = JournalStore()
    with make_house(store) as house:
        oracles = {name: house.oracle() for name in "abc"}
        for seed, name in enumerate("abc"):
            await house.step(name, 2, 0, seed=seed)
            oracles[name].run(make_command(name, 2, seed=seed).steps.prepared)
        store.broken = True
        commands = [make_command(name, 3, 2, seed=9) for name in "abc"]
        results = await asyncio.gather(*map(house.manager.step, commands), return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 3
        for name in "abc":
            await house.at(name, 2, oracles[name])
        store.broken = False
        for command in commands:
            reply = await house.manager.step(command)
            expected = house.expected(oracles[command.session_id], command)
            np.testing.assert_allclose(reply.outputs, expected, atol=TOLERANCE)


async def test_a_store_that_raises_answers_every_request() -> None:
    with make_house(RaisingStore()) as house:
        results = await asyncio.gather(
            *(house.manager.step(make_command(name, 2, 0)) for name in "abc"), return_exceptions=True
        )
        assert [type(result) for result in results] == [Unavailable] * 3
        assert len(house.manager) == 0
        assert (await house.manager.predict(make_command("", 2))).outputs.shape == (2, 3)


async def test_a_session_opened_by_a_step_that_fails_is_not_left_behind() -> None:
    store = JournalStore()
    store.broken = True
    with make_house(store) as house:
        with pytest.raises(Unavailable):
            await house.step("a", 2, 0)
        with pytest.raises(SessionNotFound):
            house.manager.facts("a")
        assert len(house.manager) == 0
        house.manager.open("b")  # one that was opened stays
        with pytest.raises(Unavailable):
            await house.step("b", 2, 0)
        assert house.manager.facts("b").next_step == 0


def poison(session_id: str, step: int | None) -> StepCommand:
    """A command that the engine can't run: its rows are too wide."""
    return StepCommand(session_id, Steps(np.zeros((2, 99), np.float32), b"\0" * 16), step)


async def test_an_engine_failure_leaves_the_session_before_the_step() -> None:
    with make_house() as house:
        await house.step("a", 2, 0)
        oracle = house.oracle()
        oracle.run(make_command("a", 2).steps.prepared)
        with pytest.raises(EngineFailure) as raised:
            await house.manager.step(poison("a", 2))
        assert raised.value.facts["retry_after_s"] == 1
        await house.at("a", 2, oracle)
        with pytest.raises(EngineFailure):
            await house.manager.step(poison("new", 0))
        with pytest.raises(SessionNotFound):
            house.manager.facts("new")
        assert (await house.step("a", 1, 2)).next_step == 3


async def test_an_error_while_a_reply_is_made_spoils_no_other_request_of_the_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the device has no memory left to copy a state out of it."""
    with make_house() as house:
        await house.step("a", 2, 0)
        oracle = house.oracle()
        oracle.run(make_command("a", 2).steps.prepared)

        def no_memory(job: object) -> None:
            raise MemoryError

        monkeypatch.setattr(house.engine, "read_new", no_memory)
        failing = house.manager.step(make_command("a", 1, 2, options=Options(state=True)))
        fine = house.manager.step(make_command("b", 1, 0))
        assert (await fine).next_step == 1
        with pytest.raises(EngineFailure):
            await failing
        await house.at("a", 2, oracle)


# Actions take their turn


async def test_an_end_waits_for_the_steps_before_it_and_those_behind_it_are_told() -> None:
    with make_house() as house:
        house.manager.open("a")
        before = house.manager.step(make_command("a", 9))
        end = house.manager.end("a")
        behind = house.manager.step(make_command("a", 1))
        assert (await before).next_step == 9
        await end
        with pytest.raises(SessionNotFound):
            await behind
        assert len(house.manager) == 0
        assert house.engine.slots.free == house.engine.slots.slots


async def test_step_0_behind_an_end_opens_the_next_session() -> None:
    with make_house() as house:
        house.manager.open("a")
        before = house.manager.step(make_command("a", 9))
        end = house.manager.end("a")
        told = house.manager.step(make_command("a", 2, step=9))
        opens = make_command("a", 3, step=0)
        first, again = house.manager.step(opens), house.manager.step(make_command("a", 2, step=3))
        await before
        await end
        with pytest.raises(SessionNotFound):
            await told
        assert (await first).next_step == 3
        assert (await again).next_step == 5
        expected = house.expected(house.oracle(), opens)
        np.testing.assert_allclose((await first).outputs, expected, atol=TOLERANCE)
        house.manager.check_integrity()


async def test_a_snapshot_is_of_its_place_in_the_order() -> None:
    with make_house() as house:
        house.manager.open("a")
        commands = [make_command("a", 5, seed=n) for n in range(2)]
        first = house.manager.step(commands[0])
        snapshot = house.manager.snapshot("a")
        second = house.manager.step(commands[1])
        await asyncio.gather(first, second)
        taken, oracle = await snapshot, house.oracle()
        oracle.run(commands[0].steps.prepared)
        assert taken.next_step == 5
        np.testing.assert_allclose(taken.state, oracle.state, atol=TOLERANCE)
        assert (taken.model, taken.version, taken.digest) == ("tiny", "1", "d" * 64)


async def test_a_fork_is_of_its_place_in_the_order_and_goes_its_own_way() -> None:
    with make_house() as house:
        house.manager.open("a", ttl_s=7.0)
        commands = [make_command("a", 5, seed=n) for n in range(2)]
        first = house.manager.step(commands[0])
        fork = house.manager.fork("a", "b", None)
        second = house.manager.step(commands[1])
        await asyncio.gather(first, second)
        session = await fork
        assert (session.id, session.next_step, session.ttl_s) == ("b", 5, 7.0)
        trunk, branch = house.oracle(), house.oracle()
        for oracle in (trunk, branch):
            oracle.run(commands[0].steps.prepared)
        trunk.run(commands[1].steps.prepared)
        other = make_command("b", 6, 5, seed=9)
        reply = await house.manager.step(other)
        np.testing.assert_allclose(reply.outputs, house.expected(branch, other), atol=TOLERANCE)
        await house.at("a", 10, trunk)
        await house.at("b", 11, branch)
        await house.manager.end("a")
        await house.at("b", 11, branch)


async def test_a_fork_at_another_step_or_onto_a_live_id_is_refused() -> None:
    with make_house() as house:
        await house.step("a", 3, 0)
        await house.step("b", 1, 0)
        assert (await house.manager.fork("a", None, 3)).next_step == 3
        for step in (2, 4):
            with pytest.raises(StepConflict) as raised:
                await house.manager.fork("a", None, step)
            assert raised.value.facts["expected_step"] == 3
        for taken in ("a", "b"):
            with pytest.raises(SessionExists):
                await house.manager.fork("a", taken, None)
        assert len(house.manager) == 3


async def test_a_fork_of_a_session_that_never_moved_begins_at_zero() -> None:
    with make_house() as house:
        house.manager.open("a")
        fork = await house.manager.fork("a", "b", 0)
        assert (fork.next_step, fork.state.place) == (0, Place.FRESH)
        await house.at("b", 0, house.oracle())


async def test_a_restore_puts_a_session_where_the_snapshot_was() -> None:
    with make_house() as house:
        first, second = make_command("a", 5, 0), make_command("a", 3, 5, seed=2)
        await house.manager.step(first)
        snapshot = await house.manager.snapshot("a")
        reply = await house.manager.step(second)
        assert await house.manager.restore("a", snapshot) is False
        oracle = house.oracle()
        oracle.run(first.steps.prepared)
        await house.at("a", 5, oracle)
        again = await house.manager.step(second)
        assert not again.replayed  # it is executed: the session was before it
        np.testing.assert_allclose(again.outputs, reply.outputs, atol=1e-6)
        with pytest.raises(StepConflict):  # replies to what was before the restore are not known any more
            await house.manager.step(first)
        assert await house.manager.restore("new", snapshot) is True
        await house.at("new", 5, oracle)


async def test_a_restore_waits_for_the_steps_before_it() -> None:
    with make_house() as house:
        await house.step("a", 2, 0)
        snapshot = await house.manager.snapshot("a")
        running = house.manager.step(make_command("a", 9, 2))
        restored = house.manager.restore("a", snapshot)
        assert (await running).next_step == 11
        assert await restored is False
        assert house.manager.facts("a").next_step == 2


async def test_a_restored_session_is_kept_if_its_first_step_fails() -> None:
    store = JournalStore()
    with make_house(store) as house:
        await house.step("a", 2, 0)
        snapshot = await house.manager.snapshot("a")
        store.slow = True
        opening = house.manager.step(make_command("b", 1, 0))
        restored = house.manager.restore("b", snapshot)
        await store.asked()
        store.slow = False
        store.flush(OSError("away"))
        with pytest.raises(Unavailable):
            await opening
        await restored
        assert house.manager.facts("b").next_step == 2


# Predictions


async def test_a_prediction_is_the_reference_and_leaves_nothing() -> None:
    with make_house() as house:
        command = make_command("", 20)
        reply = await house.manager.predict(command)
        np.testing.assert_allclose(reply.outputs, house.expected(house.oracle(), command), atol=TOLERANCE)
        assert len(house.manager) == 0
        assert house.engine.slots.free == house.engine.slots.slots


# Few slots


async def test_sessions_beyond_the_slots_are_the_reference_all_the_same() -> None:
    with make_house(slots=3, max_batch=2) as house:
        names = [f"s{n}" for n in range(12)]
        oracles = {name: house.oracle() for name in names}
        at = 0
        for turn in range(5):
            commands = [make_command(name, 2 + turn, at, seed=n + turn) for n, name in enumerate(names)]
            for command, reply in zip(
                commands, await asyncio.gather(*map(house.manager.step, commands)), strict=True
            ):
                expected = house.expected(oracles[command.session_id], command)
                np.testing.assert_allclose(reply.outputs, expected, atol=TOLERANCE)
            at += 2 + turn
            house.manager.check_integrity()
            assert sum(house.manager.places().values()) == 12
        assert house.engine.evicted > 30


async def test_with_few_slots_and_a_slow_store_everybody_has_a_turn() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store, slots=3) as house:
        futures = [house.manager.step(make_command(f"s{n}", 2, 0)) for n in range(6)]
        while not all(future.done() for future in futures):
            await store.asked()
            house.manager.check_integrity()
            store.flush()
            await asyncio.sleep(0)
        assert [future.result().next_step for future in futures] == [2] * 6


# Stopping


async def test_a_drain_waits_for_what_was_accepted_and_takes_nothing_more() -> None:
    with make_house() as house:
        house.manager.open("a")
        accepted = [house.manager.step(make_command("a", 30)), house.manager.predict(make_command("", 9))]
        draining = asyncio.ensure_future(house.manager.drain(10.0))
        await asyncio.sleep(0)
        for refused in (
            lambda: house.manager.step(make_command("a", 1)),
            lambda: house.manager.predict(make_command("", 1)),
            lambda: house.manager.open("b"),
            lambda: house.manager.end("a"),
        ):
            with pytest.raises(Unavailable) as raised:
                refused()
            assert raised.value.facts["retry_after_s"] == 1
        assert await draining is True
        assert all(future.done() for future in accepted)
        assert accepted[0].result().next_step == 30
        assert await house.manager.drain(0.0) is True


async def test_a_drain_gives_up_and_a_close_tells_those_that_are_left() -> None:
    store = JournalStore()
    store.slow = True
    with make_house(store) as house:
        running = house.manager.step(make_command("a", 1, 0))
        waiting = house.manager.step(make_command("a", 1, 1))
        await store.asked()
        predicting = house.manager.predict(make_command("", 1000))
        assert await house.manager.drain(0.001) is False
        house.manager.close()
        with pytest.raises(Unavailable, match="was not executed"):
            await waiting
        with pytest.raises(Unavailable, match="stopped during the request"):
            await predicting
        store.flush()
        assert (await running).next_step == 1  # it was committed, and is told so


async def test_after_a_close_no_request_is_left_without_an_answer() -> None:
    with make_house(slots=3) as house:
        house.manager.open("a")
        futures = [house.manager.step(make_command("a", 300)) for _ in range(3)]
        futures.append(house.manager.predict(make_command("", 300)))
        house.manager.close()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        await until(lambda: house.manager._in_flight == 0)


async def test_integrity_notices_a_slot_that_nobody_holds() -> None:
    with make_house() as house:
        slot = house.engine.slots.acquire()
        with pytest.raises(RuntimeError, match="not the held ones"):
            house.manager.check_integrity()
        assert slot is not None
        house.engine.slots.release(slot)
