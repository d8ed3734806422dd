"""Sessions that a store keeps: what every replica promises, whatever happens to it or to the store."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import (
    CellstateError,
    Elsewhere,
    InvalidValue,
    Moving,
    NoCapacity,
    SessionDamaged,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    StepConflict,
    Stopping,
    Unavailable,
)
from service.sessions import custody
from service.sessions.custody import Upkeep, insisting
from service.sessions.retention import Retention
from service.sessions.snapshot import Snapshot
from service.sessions.stores.past import Kept
from service.sessions.stores.protocol import Saved, Stale, StoreAway, StoreFault
from tests.engine.making import Oracle
from tests.sessions.making import TOLERANCE, make_bundle, make_command
from tests.sessions.simulated import (
    LEASE_S,
    Cluster,
    Track,
    make_cluster,
    other_bundle,
    simulated,
)

# Commits


@simulated
async def test_a_step_is_answered_when_the_store_has_it() -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        one.store.cut()
        command = track.command()
        future = one.manager.step(command)
        await asyncio.sleep(1)
        assert not future.done()
        one.store.mend()
        assert (await future).next_step == 2
        track.done(command)
        await track.verify(one)


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("error", [StoreAway("no answer"), Stale("it went on", ["a"])], ids=["away", "stale"])
@simulated
async def test_a_commit_of_unknown_outcome_is_what_the_store_says(error: Exception, after: bool) -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 3)
        command = track.command()
        one.store.fail("commit", error, after=after)
        with pytest.raises(Unavailable):
            await cluster.step(one, command)
        if after:
            track.done(command)
        reply = await cluster.step(two, command)  # the retry, elsewhere
        assert reply.replayed is after
        if not after:
            track.done(command)
        track.check(reply)
        await track.go(two, 2)
        await track.verify(one)


@simulated
async def test_a_commit_that_the_store_refuses_leaves_the_session_where_it_was() -> None:
    async with make_cluster(1) as cluster:
        (one,), track, other = cluster.replicas, Track(cluster, "a"), Track(cluster, "b")
        await track.go(one, 3)
        await other.go(one)
        claims = sum(call[0] == "claim" for call in one.store.calls)
        one.store.fail("commit", StoreFault("the disk is full"))
        with pytest.raises(Unavailable, match="disk is full"):
            await cluster.step(one, track.command())
        await track.go(one, 2)
        await other.go(one)
        assert sum(call[0] == "claim" for call in one.store.calls) == claims
        assert (one.manager.counters.commit_failures, one.manager.counters.dropped) == ({"fault": 1}, {})


@simulated
async def test_requests_behind_one_whose_commit_failed_have_their_turn() -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        first = track.command()
        one.store.fail("commit", StoreAway("no answer"), after=True)
        lost = one.manager.step(first)
        track.done(first)
        second = track.command()
        behind = [one.manager.step(second), one.manager.step(second)]
        with pytest.raises(Unavailable):
            await lost
        replies = await asyncio.gather(*behind)
        track.done(second)
        assert [reply.replayed for reply in replies] == [False, True]
        assert one.manager.counters.commit_failures == one.manager.counters.dropped == {"away": 1}
        await track.verify(one)


@simulated
async def test_a_commit_that_one_session_spoils_is_retried_by_the_others() -> None:
    async with make_cluster(2) as cluster:
        (one, two), tracks = cluster.replicas, [Track(cluster, name) for name in "abc"]
        for track in tracks:
            await track.go(one)
        cluster.shelf.sessions["b"].epoch += 1  # as if it had been claimed
        results = await asyncio.gather(
            *(one.manager.step(track.command()) for track in tracks), return_exceptions=True
        )
        assert all(isinstance(result, Moving) for result in results)
        assert one.manager.counters.commit_failures == one.manager.counters.dropped == {"stale": 1}
        for track in tracks:
            await track.go(one)
            await track.verify(two)


# Owners


@simulated
async def test_a_retry_at_another_replica_gets_the_same_reply() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        command = track.command(3)
        first = await cluster.step(one, command)
        track.done(command)
        for replica in (two, one):
            again = await track.again(replica, 0)
            np.testing.assert_array_equal(again.outputs, first.outputs)
        await asyncio.sleep(2)
        await track.again(two, 0)
        await track.verify(two)


@simulated
async def test_what_has_just_moved_is_passed_on_and_comes_later() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        await track.go(two)
        assert (len(one.manager), len(two.manager)) == (1, 0)
        with pytest.raises(Elsewhere):
            await two.manager.step(track.command())
        await asyncio.sleep(1.5)
        await track.go(two, 2)
        assert (len(one.manager), len(two.manager)) == (0, 1)
        assert two.manager.counters.takeovers == {"handed over": 1}
        assert (one.manager.counters.claimed, two.manager.counters.claimed) == (0, 1)
        await track.verify(one)


@simulated
async def test_a_bulk_request_does_not_pull() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        await asyncio.sleep(10)
        with pytest.raises(Elsewhere):
            await two.manager.step(track.command(), pull=False)
        assert len(one.manager) == 1


@simulated
async def test_a_handover_waits_for_the_requests_before_it_and_loses_none() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        await asyncio.sleep(2)
        one.store.cut()
        futures = []
        for replica in (one, one, one, two):
            command = track.command()
            futures.append(asyncio.ensure_future(cluster.step(replica, command)))
            track.done(command)
            await asyncio.sleep(0.1)
        retries = [cluster.step(one, track.commands[step]) for step in (1, 2, 3)]
        futures += map(asyncio.ensure_future, retries)  # behind the handover
        await asyncio.sleep(0.1)
        one.store.mend()
        replies = await asyncio.gather(*futures)
        assert [reply.step for reply in replies] == [1, 2, 3, 4, 1, 2, 3]
        assert [reply.replayed for reply in replies] == [False] * 4 + [True] * 3
        for reply in replies:
            track.check(reply)
        await track.verify(two)


@simulated
async def test_requests_that_come_while_a_session_comes_keep_their_order() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 3)
        await asyncio.sleep(2)
        two.store.delay = lambda: 0.2
        futures = []
        for _ in range(5):
            command = track.command()
            futures.append(two.manager.step(command))
            track.done(command)
        futures[1].cancel()  # taken back before it was started
        results = await asyncio.gather(*futures, return_exceptions=True)
        two.store.delay = lambda: 0.0
        assert [type(result).__name__ for result in results] == [
            "Reply", "CancelledError", "StepConflict", "StepConflict", "StepConflict",
        ]  # fmt: skip
        for step in (4, 5, 6, 7):
            reply = await cluster.step(two, track.commands[step])
            assert not reply.replayed
        await track.verify(two)


@simulated
async def test_all_requests_cancelled_during_the_arrival_leave_the_session() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 3)
        await asyncio.sleep(2)
        two.store.delay = lambda: 0.2
        future = two.manager.step(track.command())
        await asyncio.sleep(0.1)
        future.cancel()
        await asyncio.sleep(3)
        await track.go(two)
        await track.verify(two)


@simulated
async def test_a_dead_owner_is_followed_when_its_lease_is_over() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 5)
        await asyncio.sleep(2)
        await cluster.crash(one)
        died = cluster.loop.time()
        await track.go(two)
        assert cluster.loop.time() - died < LEASE_S + 0.2
        assert two.manager.counters.takeovers == {"lease": 1}
        await track.again(two, 4)
        await track.verify(two)


@simulated
async def test_an_owner_that_died_at_once_is_followed_too() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        await cluster.crash(one)
        await track.go(two)  # passed on, in vain, and then insisted on
        await track.verify(two)


@simulated
async def test_a_new_process_at_the_address_of_a_dead_one_waits_for_its_lease() -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        await cluster.crash(one)
        cluster.replicas.clear()
        heir = await cluster.add()
        assert heir.address == one.address
        await track.go(heir)
        await track.verify(heir)


@simulated
async def test_an_owner_that_does_not_answer_and_lives_is_waited_for_and_told_of() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        await asyncio.sleep(2)
        one.reachable = False
        with pytest.raises(Moving, match="does not answer"):
            await cluster.step(two, track.command())
        one.reachable = True
        await track.go(two)


@simulated
async def test_a_session_whose_commit_was_not_answered_can_go_on_anywhere() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        one.store.fail("commit", StoreAway("no answer"))
        with pytest.raises(Unavailable):
            await cluster.step(one, track.command())
        await asyncio.sleep(2)
        assert len(one.manager) == 0
        began = cluster.loop.time()
        await track.go(two)
        assert cluster.loop.time() - began < 1


@simulated
async def test_who_lost_its_lease_drops_all_and_joins_again() -> None:
    async with make_cluster(2) as cluster:
        (one, two), tracks = cluster.replicas, [Track(cluster, name) for name in "abc"]
        for track in tracks:
            await track.go(one, 2)
        lease = one.manager.custody.lease
        assert (lease.store_up, dict(lease.losses)) == (True, {})
        one.store.cut()  # paused
        await asyncio.sleep(LEASE_S + 1)
        assert (lease.store_up, lease.remaining_s, dict(lease.losses)) == (False, 0.0, {"expired": 1})
        with pytest.raises(Moving):
            one.manager.step(tracks[0].command())
        with pytest.raises(Moving):
            await one.manager.find("a")
        await tracks[0].go(two)  # which fences it
        one.store.mend()
        await asyncio.sleep(1)
        assert len(one.manager) == 0
        assert lease.holds
        assert (lease.store_up, dict(lease.losses)) == (True, {"expired": 1, "fenced": 1})
        for track in tracks:
            await track.go(one)
            await track.verify(two)


@simulated
async def test_a_step_that_was_running_when_the_lease_was_lost_is_not_answered() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track, other = cluster.replicas, Track(cluster, "a"), Track(cluster, "n")
        await track.go(one)
        await one.manager.open_session("n", durability="none")
        await other.go(one)
        one.store.cut()
        late = one.manager.step(track.command())
        waiting = one.manager.step(track.command())
        await asyncio.sleep(LEASE_S + 1)
        await track.go(two)
        one.store.mend()
        with pytest.raises(Moving):
            await late
        with pytest.raises(CellstateError):
            await waiting
        await asyncio.sleep(1)
        await track.go(one)
        await track.verify(two)
        with pytest.raises(SessionLost):
            await one.manager.step(other.command())


@simulated
async def test_an_arrival_that_a_lost_lease_overtakes_is_not_believed() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(two)
        await cluster.leave(two)
        three = await cluster.add()
        await track.go(three)
        await asyncio.sleep(2)
        one.store.delay = lambda: 0.1
        reading = one.manager.snapshot("a")
        await asyncio.sleep(0.15)
        one.manager._on_lost()
        one.manager.custody.lease.joined += 1
        with pytest.raises((Moving, Elsewhere)):
            await reading
        assert len(one.manager) == 0


@simulated
async def test_a_replica_that_leaves_releases_all() -> None:
    async with make_cluster(2, durability="journal") as cluster:
        (one, two), tracks = cluster.replicas, [Track(cluster, f"s{n}") for n in range(20)]
        await one.manager.open_session("s19", durability="none")
        for track in tracks:
            await track.go(one, 3)
        futures = [one.manager.step(track.command()) for track in tracks]
        assert await cluster.leave(one)
        assert one.manager.counters.released == 20
        for track, future in zip(tracks, futures, strict=True):
            assert (await future).next_step == 4
            track.done(track.command())
        with pytest.raises(Stopping):
            one.manager.step(tracks[0].command())
        began = cluster.loop.time()
        for track in tracks:
            await track.go(two)
            await track.verify(two)
        assert cluster.loop.time() - began < 1
        await tracks[3].again(two, 2)


@simulated
async def test_leaving_goes_on_when_the_store_refuses_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.sessions.shared.TOGETHER", 2)
    async with make_cluster(2) as cluster:
        (one, two), tracks = cluster.replicas, [Track(cluster, f"s{n}") for n in range(6)]
        for track in tracks:
            await track.go(one)
        one.store.fail("release", StoreFault("full"))
        await cluster.leave(one)
        assert one.manager.counters.released == 4
        for track in tracks:
            await track.go(two)


@simulated
async def test_a_close_answers_what_was_being_done() -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 3)
        one.store.cut()
        future = one.manager.rewind("a", 1)
        await asyncio.sleep(0.1)
        one.manager.close()
        with pytest.raises(Stopping):
            await future


# In memory alone


@simulated
async def test_a_session_in_memory_alone_is_passed_on_while_its_owner_lives() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "n")
        await one.manager.open_session("n", durability="none")
        await track.go(one, 2)
        await asyncio.sleep(5)
        began = cluster.loop.time()
        await track.go(two, 2)
        assert cluster.loop.time() - began < 0.5
        assert len(two.manager) == 0
        assert not [call for call in one.store.calls if call[0] == "commit"]
        with pytest.raises(Elsewhere):
            await two.manager.find("n")
        with pytest.raises(StepConflict, match="in memory alone"):
            await one.manager.rewind("n", 1)


@simulated
async def test_a_session_in_memory_alone_is_lost_with_its_owner() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "n")
        await one.manager.open_session("n", durability="none")
        await track.go(one, 2)
        await asyncio.sleep(5)
        await cluster.crash(one)
        for _ in range(2):
            with pytest.raises(SessionLost):
                await cluster.step(two, track.command())
        with pytest.raises(SessionLost):
            await cluster.step(two, replace(track.command(), step=0))
        assert two.manager.counters.lost == {"process": 3}
        await two.manager.open_session("n")
        assert (await cluster.step(two, make_command("n", 1, 0))).next_step == 1


@simulated
async def test_a_store_that_does_not_answer_is_no_end_for_a_session_in_memory_alone() -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "n")
        await one.manager.open_session("n", durability="none")
        await track.go(one, 3)
        one.store.fail("end", StoreAway("no answer"))
        with pytest.raises(Unavailable):
            await one.manager.end("n")
        await track.go(one)


# Openings and endings


@simulated
async def test_open_is_once() -> None:
    async with make_cluster(2) as cluster:
        one, two = cluster.replicas
        results = await asyncio.gather(
            *(r.manager.open_session("a") for r in (one, two, one)), return_exceptions=True
        )
        assert sum(isinstance(r, SessionExists) for r in results) == 2
        with pytest.raises(InvalidValue, match="fsync"):
            await one.manager.open_session("b", durability="fsync")
        assert (await two.manager.open_session()).id.startswith("s-")


@simulated
async def test_an_unknown_session_is_opened_by_its_step_0_alone() -> None:
    async with make_cluster(2) as cluster:
        one, two = cluster.replicas
        with pytest.raises(SessionNotFound):
            await cluster.step(one, make_command("a", 1, 3))
        with pytest.raises(SessionNotFound):
            await two.manager.snapshot("a")
        futures = [one.manager.step(make_command("a", 1, step)) for step in (1, 0, 1)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(results[0], SessionNotFound)
        assert [r.next_step for r in results[1:] if not isinstance(r, BaseException)] == [1, 2]
        assert len(one.manager) == 1


@simulated
async def test_an_idle_session_expires_wherever_it_is() -> None:
    async with make_cluster(2, ttl_s=30.0) as cluster:
        (one, two), tracks = cluster.replicas, [Track(cluster, name) for name in "abc"]
        for track in tracks:
            await track.go(one)
        assert one.manager.expires_in(await one.manager.find("a")) <= 30
        await asyncio.sleep(20)
        await tracks[1].go(one)
        await asyncio.sleep(15)
        for replica in (one, two):
            with pytest.raises(SessionExpired):
                await cluster.step(replica, tracks[0].command())
            with pytest.raises(SessionExpired):
                await cluster.step(replica, make_command("a", 1, 0))
        await tracks[1].go(two)
        await two.manager.open_session("a")
        await cluster.step(one, make_command("a", 1, 0))


@simulated
async def test_what_nobody_comes_back_for_is_swept_away() -> None:
    async with make_cluster(2, ttl_s=60.0) as cluster:
        (one, _), track = cluster.replicas, Track(cluster, "a")
        await track.go(one)
        await cluster.crash(one)
        await asyncio.sleep(60 + 2 * custody.SWEEP_S)
        assert not cluster.shelf.sessions


@simulated
async def test_a_closed_session_can_be_opened_again() -> None:
    async with make_cluster(2) as cluster:
        one, two = cluster.replicas
        track = Track(cluster, "a")
        await track.go(one, 3)
        ending, behind = one.manager.end("a"), one.manager.step(track.command())
        await ending
        with pytest.raises(SessionNotFound):
            await behind
        again = Track(cluster, "a")
        await again.go(two, 2)
        await again.verify(one)


@simulated
async def test_a_close_that_was_not_answered_is_what_the_store_says() -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 3)
        one.store.fail("end", StoreAway("no answer"), after=True)
        ending, behind = one.manager.end("a"), one.manager.step(track.command())
        with pytest.raises(Unavailable):
            await ending
        with pytest.raises(SessionNotFound):
            await behind


@simulated
async def test_limits_refuse_and_open_nothing() -> None:
    async with make_cluster(1, sessions=2, queue=3) as cluster:
        (one,) = cluster.replicas
        for name in "ab":
            await one.manager.open_session(name)
        with pytest.raises(NoCapacity):
            await one.manager.open_session("c")
        with pytest.raises(NoCapacity):
            one.manager.step(make_command("c", 1, 0))
        await one.manager.end("b")
        one.store.cut()
        futures = [one.manager.step(make_command("a", 1)) for _ in range(3)]
        with pytest.raises(NoCapacity):
            one.manager.step(make_command("d", 1, 0))
        with pytest.raises(NoCapacity):
            await one.manager.open_session("d")
        one.store.mend()
        await asyncio.gather(*futures)
        assert set(cluster.shelf.sessions) == {"a"}


# The past


def value(snapshot: Snapshot, oracle: Oracle) -> None:
    np.testing.assert_allclose(snapshot.state, oracle.state, atol=TOLERANCE)


@simulated
async def test_every_step_that_is_kept_can_be_forked_at() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        for steps in (1, 3, 1, 2):
            await track.go(one, steps=steps)
        await asyncio.sleep(2)
        for step in range(track.next_step + 1):
            fork = await one.manager.fork("a", f"fork-{step}", step)
            assert fork.next_step == step
            value(await one.manager.snapshot(fork.id), track.at[step])
        with insisting():
            value(await two.manager.snapshot("fork-4"), track.at[4])
        with pytest.raises(StepConflict):
            await one.manager.fork("a", None, track.next_step + 1)
        with pytest.raises(SessionExists):
            await one.manager.fork("a", "fork-1", 1)
        await track.go(one)


@pytest.mark.parametrize("back", range(8))
@simulated
async def test_every_step_that_is_kept_can_be_gone_back_to(back: int) -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        for steps in (1, 3, 1, 2):
            await track.go(one, steps=steps)
        session = await one.manager.rewind("a", back)
        assert session.next_step == back
        del track.at[back + 1 :]
        await track.verify(two if back % 2 else one)
        await asyncio.sleep(2)
        await track.go(two, 2)
        await asyncio.sleep(2)
        await track.verify(one)
        if back == 3:  # within what was one request: before it nothing is kept but the first
            value_at_1 = await one.manager.fork("a", None, 1)
            value(await one.manager.snapshot(value_at_1.id), track.at[1])
            with pytest.raises(StepConflict, match="not kept"):
                await one.manager.fork("a", None, 2)


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
@simulated
async def test_going_back_without_an_answer_is_what_the_store_says(after: bool) -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 5)
        one.store.fail("rewrite", StoreAway("no answer"), after=after)
        with pytest.raises(Unavailable):
            await one.manager.rewind("a", 2)
        if after:
            del track.at[3:]
        await track.verify(one)
        await track.go(one)


@simulated
async def test_a_state_can_be_put_in() -> None:
    async with make_cluster(2) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 4)
        snapshot = await one.manager.snapshot("a")
        copy = Track(cluster, "b")
        copy.at = list(track.at)
        assert await two.manager.restore("b", snapshot) is True
        assert await two.manager.restore("b", snapshot) is False
        await copy.go(two)
        await cluster.leave(two)
        await copy.go(one)
        await copy.verify(one)


@simulated
async def test_snapshots_are_taken_and_what_is_behind_history_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody, "SNAPSHOT_STEPS", 8)
    async with make_cluster(2, window=4, upkeep=Upkeep(4, Retention(6), "replay")) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 30)
        await asyncio.sleep(1)
        kept = cluster.shelf.sessions["a"]
        assert [saved.step for saved in kept.snapshots] == [16, 24]
        assert kept.records[0].step == 16
        for step in range(16, 31):
            fork = await one.manager.fork("a", None, step)
            value(await one.manager.snapshot(fork.id), track.at[step])
        with pytest.raises(StepConflict, match="not kept any more"):
            await one.manager.rewind("a", 15)
        await cluster.crash(one)
        await track.verify(two)
        assert two.manager.counters.replayed == 6
        await track.again(two, 27)


@simulated
async def test_a_past_that_is_kept_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody, "SNAPSHOT_STEPS", 8)
    async with make_cluster(2, window=4, upkeep=Upkeep(4, Retention(seconds=150), "replay")) as cluster:
        (one, two), track = cluster.replicas, Track(cluster, "a")
        kept = cluster.shelf.sessions
        for minute in range(1, 8):
            await track.go(one, 8)
            await asyncio.sleep(60)
            # What was committed 150 s before the newest snapshot, and all since
            assert kept["a"].records[0].step == 8 * max(0, minute - 3)
        fork = await one.manager.fork("a", None, 33)
        value(await one.manager.snapshot(fork.id), track.at[33])
        with pytest.raises(StepConflict, match="not kept any more"):
            await one.manager.rewind("a", 31)
        # Another replica knows no times yet, and lets nothing go until it does
        await cluster.leave(one)
        for _ in range(3):
            await track.go(two, 8)
            await asyncio.sleep(60)
            assert kept["a"].records[0].step == 32
        await track.go(two, 8)
        await asyncio.sleep(60)
        assert kept["a"].records[0].step == 64
        # Nor does a session that was rewound
        await two.manager.rewind("a", 80)
        assert (await two.manager.find("a")).marks is None


@simulated
async def test_a_crash_restores_state_and_replies() -> None:
    async with make_cluster(1) as cluster:
        (one,), tracks = cluster.replicas, [Track(cluster, f"s{n}") for n in range(5)]
        for n, track in enumerate(tracks):
            for steps in range(1, n + 2):
                await track.go(one, steps=steps)
        await cluster.crash(one)
        two = await cluster.add()
        for track in tracks:
            await track.verify(two)
            await track.go(two)
            await track.again(two, 0 if len(track.at) < 12 else 10)


def damaged(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("what", ["record", "snapshot", "gap", "short"])
@simulated
async def test_damage_is_told_of_and_stays_with_its_session(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody, "SNAPSHOT_STEPS", 4)
    async with make_cluster(2) as cluster:
        (one, two), track, other = cluster.replicas, Track(cluster, "a"), Track(cluster, "b")
        await track.go(one, 6)
        await other.go(one, 6)
        await cluster.leave(one)
        kept = cluster.shelf.sessions["a"]
        if what == "snapshot":
            kept.snapshots = [Saved(s.step, damaged(s.data)) for s in kept.snapshots]
        elif what == "record":
            kept.records[-1] = Kept(5, 6, damaged(kept.records[-1].record))
        elif what == "short":
            kept.records[-1] = Kept(5, 6, b"short")
        else:
            kept.records[-1] = Kept(5, 6, kept.records[-2].record)
        three = await cluster.add()
        for replica in (two, three, two):
            with pytest.raises(SessionDamaged):
                await cluster.step(replica, track.command())
            await asyncio.sleep(2)
        assert (two.manager.counters.lost, three.manager.counters.lost) == ({"damaged": 2}, {"damaged": 1})
        await other.go(two)
        await other.verify(three)


# Another version of the model


@pytest.mark.parametrize("policy", ["pin", "replay", "reset"])
@simulated
async def test_sessions_of_another_version(policy: str) -> None:
    async with make_cluster(1) as cluster:
        (one,), track = cluster.replicas, Track(cluster, "a")
        await track.go(one, 5)
        await cluster.leave(one)
        bundle = other_bundle(make_bundle())
        two = await cluster.add(bundle=bundle, upkeep=Upkeep(16, Retention(16), policy))
        if policy == "pin":
            with pytest.raises(Unavailable, match="version 1"):
                await cluster.step(two, track.command())
            old = await cluster.add()
            await track.go(old)
            await track.verify(old)
            return
        oracle = Oracle(bundle.network())
        if policy == "replay":
            for step in range(5):
                oracle.run(track.commands[step].steps.prepared)
        assert (await cluster.step(two, track.commands[4])).replayed
        snapshot = await two.manager.snapshot("a")
        assert snapshot.next_step == 5
        value(snapshot, oracle)
        command = track.command()
        await cluster.step(two, command)
        oracle.run(command.steps.prepared)
        three = await cluster.add(bundle=bundle)
        await cluster.crash(two)
        with insisting():
            value(await three.manager.snapshot("a"), oracle)
        assert cluster.shelf.sessions["a"].version == "2"


# Everything at once


class World:
    """Replicas, sessions and their oracles, under a seeded schedule of requests and faults."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster, self.random = cluster, random.Random(seed)
        self.tracks = [Track(cluster, f"s{n}") for n in range(4)]
        self.answered: dict[tuple[str, int], bytes] = {}
        self.retries = 0

    async def client(self, track: Track, requests: int) -> None:
        """Each step is sent until it is answered; it is executed once, and every answer to it is the same."""
        for _ in range(requests):
            command = track.command(self.random.choice((1, 1, 1, 3)))
            reply = None
            while reply is None:
                replica = self.random.choice([r for r in self.cluster.replicas if r.alive])
                try:
                    async with asyncio.timeout(self.random.choice((0.5, 5.0, 60.0))):
                        reply = await self.cluster.step(replica, command)
                except (Unavailable, TimeoutError):
                    self.retries += 1
                    await asyncio.sleep(self.random.random())
            track.done(command)
            track.check(reply)
            assert command.step is not None
            self.answered[track.id, command.step] = reply.outputs.tobytes()
            if self.random.random() < 0.3:
                await self.retry(track)
            if self.random.random() < 0.3:
                await asyncio.sleep(self.random.random() * 3)

    async def retry(self, track: Track) -> None:
        """An answered request, at any replica: the same bytes again, or nothing."""
        step = max(track.commands)
        replica = self.random.choice([r for r in self.cluster.replicas if r.alive])
        try:
            reply = await self.cluster.step(replica, track.commands[step])
        except Unavailable:
            return
        assert reply.replayed
        assert reply.outputs.tobytes() == self.answered[track.id, step]

    async def trouble(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self.random.expovariate(0.5))
            alive = [r for r in self.cluster.replicas if r.alive]
            replica = self.random.choice(alive)
            kind = self.random.choice(("crash", "leave", "pause", "slow", "fault", "fault", "fault", "alone"))
            if kind in ("crash", "leave"):
                await self.cluster.add()
                await (self.cluster.crash if kind == "crash" else self.cluster.leave)(replica)
            elif kind == "pause":
                replica.store.cut()
                await asyncio.sleep(self.random.choice((0.5, LEASE_S + 1, 2 * LEASE_S)))
                replica.store.mend()
            elif kind == "slow":
                replica.store.delay = lambda: self.random.random() * 0.2
                await asyncio.sleep(2)
                replica.store.delay = lambda: 0.0
            elif kind == "alone":
                replica.reachable = False
                await asyncio.sleep(2)
                replica.reachable = True
            else:
                error = self.random.choice((StoreAway("away"), StoreAway("away"), StoreFault("full")))
                after = isinstance(error, StoreAway) and self.random.random() < 0.5
                method = self.random.choice(
                    ("commit", "commit", "commit", "claim", "release", "renew", "save")
                )
                replica.store.fail(method, error, after=after)

    async def run(self) -> None:
        trouble = asyncio.ensure_future(self.trouble())
        await asyncio.gather(*(self.client(track, 25) for track in self.tracks))
        trouble.cancel()
        await asyncio.wait([trouble])
        for replica in self.cluster.replicas:
            replica.reachable = True
            replica.store.faults.clear()
            replica.store.mend()
            replica.store.delay = lambda: 0.0
        await asyncio.sleep(3 * LEASE_S)
        last = next(r for r in self.cluster.replicas if r.alive)
        for track in self.tracks:
            await track.verify(last)
            steps = [(k.step, k.next_step) for k in self.cluster.shelf.sessions[track.id].records]
            assert all(a[1] == b[0] for a, b in pairwise(steps))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
@simulated
async def test_whatever_happens_no_step_is_lost_doubled_or_wrong(seed: int) -> None:
    async with make_cluster(3) as cluster:
        await World(cluster, seed).run()
