"""What every store does alike."""

from __future__ import annotations

import random

import pytest

from service.sessions.stores.protocol import (
    Absent,
    Elsewhere,
    Ending,
    Entry,
    Fenced,
    Image,
    Keeping,
    Leaving,
    Rewriting,
    Saved,
    Stale,
    Store,
    StoreFault,
)
from tests.sessions.stores.stores import (
    Cluster,
    a_record,
    a_snapshot,
    an_entry,
    an_opening,
    claimed,
    committed,
    opened,
    stepped,
)


def the_records(start: int, stop: int) -> list[bytes]:
    return [a_record(step) for step in range(start, stop)]


async def let_go(store: Store, image: Image, next_step: int, snapshot: Saved | None = None) -> None:
    await store.release([Leaving(image.session_id, image.epoch, next_step, snapshot)])


def a_rewriting(
    image: Image,
    next_step: int,
    snapshot: Saved | None = None,
    version: str = "v1",
    keep_records: bool = True,
    keep_snapshots: bool = True,
) -> Rewriting:
    return Rewriting(
        image.session_id,
        image.epoch,
        next_step,
        version,
        "d-" + version,
        snapshot,
        keep_records,
        keep_snapshots,
    )


# Claims


async def test_an_unknown_session_is_absent_unless_it_is_opened(cluster: Cluster) -> None:
    store = await cluster.replica()
    assert await store.claim("s", None, 256) == Absent(None)
    image = await store.claim("s", an_opening(ttl_s=60.0), 256)
    assert isinstance(image, Image)
    assert image.opened
    assert (image.session_id, image.ttl_s, image.durability) == ("s", 60.0, "journal")
    assert (image.version, image.digest) == ("v1", "d1")
    assert (image.next_step, image.snapshot, image.records) == (0, None, [])


async def test_a_session_can_begin_with_a_snapshot(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store, opening=an_opening(snapshot=a_snapshot(40)))
    assert (image.next_step, image.snapshot) == (40, a_snapshot(40))
    await stepped(store, image, 40, 43)
    image = await claimed(store)
    assert (image.next_step, image.snapshot, image.records) == (43, a_snapshot(40), the_records(40, 43))
    assert (await store.history("s", image.epoch, 42)).first_step == 40


async def test_each_claim_has_the_next_epoch(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    again = await claimed(one)
    assert again.epoch == image.epoch + 1
    await let_go(one, again, 0)
    assert (await claimed(two)).epoch == image.epoch + 2


async def test_a_session_opened_again_under_its_name_has_a_larger_epoch(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    await store.end("s", image.epoch, Ending.CLOSED)
    assert (await opened(store)).epoch > image.epoch


async def test_of_a_session_that_is_held_the_address_is_given(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    await opened(one)
    await cluster.wait(0.4 * cluster.lease_s)
    found = await two.claim("s", an_opening(), 256)
    assert isinstance(found, Elsewhere)
    assert found.address == "http://replica-1"
    assert 0.3 * cluster.lease_s < found.held_s < 10 * cluster.lease_s
    assert 0 < found.lease_s <= 0.7 * cluster.lease_s


async def test_sessions_of_models_are_apart(cluster: Cluster) -> None:
    one, two = await cluster.replica("m"), await cluster.replica("n")
    await stepped(one, await opened(one), 0, 2)
    assert await two.claim("s", None, 256) == Absent(None)
    assert (await opened(two)).next_step == 0


async def test_names_of_any_kind_are_told_apart(cluster: Cluster) -> None:
    store = await cluster.replica()
    names = [
        "a",
        "A",
        "a ",
        "a:b",
        "{a}",
        "a/b",
        "%61",
        "é",
        "e\u0301",
        "☃",
        "*",
        "a'b",
        "0",
        "00",
        "x" * 128,
    ]
    for step, name in enumerate(names):
        await stepped(store, await opened(store, name), 0, step)
    assert [(await claimed(store, name)).next_step for name in names] == list(range(len(names)))


async def test_the_secret_is_one_for_all_replicas(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    assert one.secret == two.secret
    assert len(one.secret) >= 32


# Commits


async def test_committed_records_come_back_in_order(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 20)
    assert (await claimed(one)).records == the_records(0, 20)
    await let_go(one, await claimed(one), 20)
    image = await claimed(two)
    assert (image.next_step, image.snapshot, image.records) == (20, None, the_records(0, 20))


async def test_a_tick_of_many_sessions_is_kept(cluster: Cluster) -> None:
    store = await cluster.replica()
    images = [await opened(store, f"s{i}") for i in range(30)]
    for step in range(4):
        await committed(store, [an_entry(image, step, sync=i == step) for i, image in enumerate(images)])
    for image in images:
        found = await claimed(store, image.session_id)
        assert found.records == [a_record(step, image.session_id) for step in range(4)]


async def test_two_requests_of_a_session_in_one_commit(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    await committed(store, [an_entry(image, 0, 2), an_entry(image, 2, 3)])
    found = await claimed(store)
    assert (found.next_step, found.records) == (5, [a_record(0), a_record(2)])


async def test_commits_that_are_not_waited_for_keep_their_order(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    pending = [store.commit([an_entry(image, step, sync=step % 3 == 0)]) for step in range(12)]
    for future in pending:
        if future is not None:
            await future
    assert (await claimed(store)).records == the_records(0, 12)


async def test_records_of_any_bytes_and_size(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    records = [b"", b"\0", b"\r\n", bytes(range(256)), random.Random(1).randbytes(300_000)]
    for step, record in enumerate(records):
        await committed(store, [Entry("s", image.epoch, step, step + 1, record)])
    assert (await claimed(store)).records == records


@pytest.mark.parametrize("wrong", ["epoch", "behind", "ahead", "unknown"])
async def test_a_stale_entry_stops_the_whole_commit(cluster: Cluster, wrong: str) -> None:
    store = await cluster.replica()
    good, other = await opened(store, "good"), await opened(store, "other")
    await stepped(store, other, 0, 2)
    entry = {
        "epoch": Entry("other", other.epoch - 1, 2, 3, b"x"),
        "behind": Entry("other", other.epoch, 1, 2, b"x"),
        "ahead": Entry("other", other.epoch, 3, 4, b"x"),
        "unknown": Entry("never", 1, 0, 1, b"x"),
    }[wrong]
    with pytest.raises(Stale) as caught:
        await committed(store, [an_entry(good, 0), entry])
    assert entry.session_id in caught.value.sessions
    assert (await claimed(store, "good")).next_step == 0
    assert (await claimed(store, "other")).next_step == 2


async def test_nothing_is_committed_to_a_session_let_go_or_ended(cluster: Cluster) -> None:
    store = await cluster.replica()
    one, two = await opened(store, "one"), await opened(store, "two")
    await let_go(store, one, 0)
    await store.end("two", two.epoch, Ending.CLOSED)
    for image in (one, two):
        with pytest.raises(Stale):
            await committed(store, [an_entry(image, 0)])


# Windows, snapshots, history


async def test_an_image_has_the_snapshot_what_is_behind_it_and_the_window(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    await stepped(store, image, 0, 30)
    await store.save([Keeping("s", image.epoch, a_snapshot(20), 0)])
    image = await claimed(store, window=0)
    assert (image.snapshot, image.records) == (a_snapshot(20), the_records(20, 30))
    assert (await claimed(store, window=15)).records == the_records(15, 30)
    assert (await claimed(store, window=5)).records == the_records(20, 30)
    assert (await claimed(store, window=99)).records == the_records(0, 30)


async def test_history_that_is_not_wanted_goes(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    await stepped(store, image, 0, 30)
    for step, keep_from in ((8, 0), (16, 0), (30, 17)):
        await store.save([Keeping("s", image.epoch, a_snapshot(step), keep_from)])
    found = await store.history("s", image.epoch, 20)
    assert found.first_step <= 16
    assert (found.snapshot, found.records) == (a_snapshot(16), the_records(16, 20))
    image = await claimed(store)
    assert (image.next_step, image.snapshot) == (30, a_snapshot(30))
    assert image.records[-14:] == the_records(16, 30)
    await stepped(store, image, 30, 33)
    image = await claimed(store, window=0)
    assert (image.next_step, image.snapshot, image.records) == (33, a_snapshot(30), the_records(30, 33))


async def test_a_session_goes_on_where_everything_before_its_snapshot_went(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 5)
    await one.save([Keeping("s", image.epoch, a_snapshot(5), 5)])
    await cluster.outlive(two)
    image = await claimed(two)
    assert (image.next_step, image.snapshot) == (5, a_snapshot(5))


async def test_history_begins_at_the_newest_snapshot_before(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    for step in (0, 3, 6, 9):
        await committed(store, [an_entry(image, step, 3)])
    await store.save([Keeping("s", image.epoch, a_snapshot(6), 0)])
    early = await store.history("s", image.epoch, 4)
    assert (early.first_step, early.snapshot, early.records) == (0, None, [a_record(0), a_record(3)])
    late = await store.history("s", image.epoch, 11)
    assert (late.snapshot, late.records) == (a_snapshot(6), [a_record(6), a_record(9)])
    there = await store.history("s", image.epoch, 6)
    assert (there.snapshot, there.records) == (a_snapshot(6), [])
    assert (await store.history("s", image.epoch, 0)).records == []


async def test_the_history_of_a_new_session_is_its_beginning(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    found = await store.history("s", image.epoch, 0)
    assert (found.first_step, found.snapshot, found.records) == (0, None, [])


async def test_snapshots_are_kept_all_or_none(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    await stepped(store, image, 0, 3)
    for other in (Keeping("never", 1, a_snapshot(0), 0), Keeping("s", image.epoch, a_snapshot(9), 0)):
        with pytest.raises(Stale):
            await store.save([Keeping("s", image.epoch, a_snapshot(3), 3), other])
    image = await claimed(store)
    assert (image.snapshot, image.records) == (None, the_records(0, 3))


async def test_history_of_anothers_session_is_stale(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    with pytest.raises(Stale):
        await two.history("s", image.epoch, 0)
    with pytest.raises(Stale):
        await one.history("s", image.epoch, 1)  # not that far


# Release


async def test_a_session_let_go_is_free_for_others(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 4)
    await let_go(one, image, 4, a_snapshot(4))
    image = await claimed(two, window=2)
    assert (image.next_step, image.snapshot, image.records) == (4, a_snapshot(4), the_records(2, 4))
    await stepped(two, image, 4, 6)
    assert (await claimed(two, window=0)).records == the_records(4, 6)


async def test_releasing_passes_over_what_is_not_mine(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    mine, other = await opened(one, "mine"), await opened(two, "other")
    await one.release(
        [
            Leaving("never", 1, 0),
            Leaving("other", other.epoch, 0),
            Leaving("mine", mine.epoch, 0),
        ]
    )
    assert isinstance(await one.claim("other", None, 0), Elsewhere)
    assert isinstance(await two.claim("mine", None, 0), Image)


async def test_a_session_let_go_at_another_step_stays(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 2)
    with pytest.raises(Stale):
        await let_go(one, image, 1)
    assert isinstance(await two.claim("s", None, 0), Elsewhere)
    await stepped(one, image, 2, 3)


async def test_idle_time_is_since_the_last_use(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await cluster.wait(cluster.lease_s)
    await stepped(one, image, 0, 1)
    await let_go(one, image, 1)
    await cluster.wait(0.5 * cluster.lease_s)
    await two.renew()
    assert 0.4 * cluster.lease_s < (await claimed(two)).idle_s < 0.9 * cluster.lease_s


# Leases


async def test_the_sessions_of_a_dead_replica_are_taken_over(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    images = [await opened(one, name) for name in ("s", "t")]
    for step in range(3):
        await committed(one, [an_entry(image, step) for image in images])
    await cluster.outlive(two)
    image = await claimed(two)
    assert (image.next_step, image.records) == (3, the_records(0, 3))
    other = await claimed(two, "t")
    assert other.records == [a_record(step, "t") for step in range(3)]
    await committed(two, [an_entry(image, 3), an_entry(other, 3)])


async def test_nothing_of_a_fenced_replica_is_taken(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image, other = await opened(one), await opened(one, "other")
    await stepped(one, image, 0, 2)
    await cluster.outlive(two)
    await claimed(two)
    with pytest.raises(Fenced):
        await committed(one, [an_entry(image, 2)])
    with pytest.raises(Fenced):
        await committed(one, [an_entry(other, 0)])  # nobody claimed this one
    with pytest.raises(Fenced):
        await one.renew()
    with pytest.raises(Fenced):
        await let_go(one, other, 0)
    with pytest.raises(Fenced):
        await one.save([Keeping("other", other.epoch, a_snapshot(0), 0)])
    with pytest.raises(Fenced):
        await one.end("other", other.epoch, Ending.CLOSED)
    with pytest.raises(Fenced):
        await one.rewrite(a_rewriting(other, 0))
    with pytest.raises(Fenced):
        await one.claim("third", an_opening(), 0)
    assert (await claimed(two)).next_step == 2
    assert (await claimed(two, "other")).next_step == 0


async def test_a_claim_says_whether_it_took_the_session_from_another(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image, other = await opened(one), await opened(one, "other")
    assert not image.taken
    assert not (await claimed(one)).taken
    await let_go(one, other, 0)
    assert not (await claimed(two, "other")).taken
    await cluster.outlive(two)
    assert (await claimed(two)).taken
    assert not (await claimed(two)).taken


async def test_a_lease_that_ran_out_holds_again_if_nobody_took_it(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await cluster.outlive()
    await stepped(one, image, 0, 1)
    await one.renew()
    await two.renew()
    assert isinstance(await two.claim("s", None, 0), Elsewhere)
    await stepped(one, image, 1, 2)


async def test_renewing_keeps_others_away(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    await opened(one)
    for _ in range(2):
        await cluster.outlive(one, two)
        assert isinstance(await two.claim("s", None, 0), Elsewhere)


async def test_after_fencing_a_replica_joins_as_a_new_owner(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image, other = await opened(one), await opened(one, "other")
    await stepped(one, image, 0, 2)
    await cluster.outlive(two)
    await claimed(two)
    await one.join("http://again")
    with pytest.raises(Stale):
        await committed(one, [an_entry(other, 0)])
    assert isinstance(await one.claim("s", None, 0), Elsewhere)
    other = await claimed(one, "other")
    await committed(one, [an_entry(other, 0)])


async def test_joining_again_leaves_the_former_owner(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 2)
    await one.join("http://again")
    with pytest.raises(Stale):
        await committed(one, [an_entry(image, 2)])
    assert (await claimed(two)).records == the_records(0, 2)


async def test_sessions_of_one_that_left_are_free_at_once(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 2)
    await one.leave()
    assert (await claimed(two)).records == the_records(0, 2)
    with pytest.raises(Fenced):
        await committed(one, [an_entry(image, 2)])


async def test_a_session_goes_around(cluster: Cluster) -> None:
    stores = [await cluster.replica() for _ in range(3)]
    image = await opened(stores[0])
    for turn in range(9):
        await stepped(stores[turn % 3], image, 2 * turn, 2 * turn + 2)
        if turn % 2:
            await let_go(stores[turn % 3], image, 2 * turn + 2)
        else:
            await cluster.outlive(*(s for i, s in enumerate(stores) if i != turn % 3))
        image = await claimed(stores[(turn + 1) % 3])
        if turn % 2 == 0:
            await stores[turn % 3].join("http://again")
        assert image.records == the_records(0, 2 * turn + 2)


# Endings


@pytest.mark.parametrize("ending", [Ending.CLOSED, Ending.EXPIRED, Ending.LOST])
async def test_how_a_session_ended_is_remembered(cluster: Cluster, ending: Ending) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 2)
    await one.end("s", image.epoch, ending)
    assert await two.claim("s", None, 256) == Absent(ending)
    fresh = await opened(two)
    assert fresh.opened
    assert (fresh.next_step, fresh.records) == (0, [])
    await two.leave()
    assert (await claimed(one)).next_step == 0


async def test_an_ending_is_forgotten_after_a_day(cluster: Cluster) -> None:
    if not cluster.patient:
        pytest.skip("a day is too long")
    store = await cluster.replica()
    image = await opened(store)
    await store.end("s", image.epoch, Ending.CLOSED)
    await cluster.wait(86000)
    assert await store.claim("s", None, 256) == Absent(Ending.CLOSED)
    await cluster.wait(800)
    assert await store.claim("s", None, 256) == Absent(None)


async def test_only_the_owner_ends_a_session(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    for store, epoch in ((two, image.epoch), (one, image.epoch + 1), (one, image.epoch - 1)):
        with pytest.raises(Stale):
            await store.end("s", epoch, Ending.CLOSED)
    assert (await claimed(one)).epoch == image.epoch + 1


async def test_sweeping_ends_what_was_idle_for_too_long(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    ttl_s = 2 * cluster.lease_s
    for name in ("idle", "held"):
        await opened(one, name, an_opening(ttl_s=ttl_s))
    await let_go(one, await claimed(one, "idle"), 0)
    await let_go(one, await opened(one, "patient"), 0)
    assert await two.sweep() == 0
    for _ in range(3):
        await cluster.outlive(one, two)
    assert await two.sweep() == 1
    assert await two.claim("idle", None, 256) == Absent(Ending.EXPIRED)
    assert isinstance(await two.claim("held", None, 256), Elsewhere)
    assert isinstance(await two.claim("patient", None, 256), Image)


async def test_a_session_idle_for_too_long_is_expired_before_any_sweep(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store, opening=an_opening(ttl_s=cluster.lease_s))
    await let_go(store, image, 0)
    await cluster.outlive(store)
    assert await store.claim("s", None, 256) == Absent(Ending.EXPIRED)
    assert (await opened(store)).opened


async def test_sweeping_ends_idle_sessions_of_the_dead(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    for name in ("idle", "stepped"):
        await opened(one, name, an_opening(ttl_s=3 * cluster.lease_s))
    for _ in range(2):
        await cluster.outlive(one, two)
    await stepped(one, await claimed(one, "stepped"), 0, 1)
    for _ in range(2):
        await cluster.outlive(two)
    assert await two.sweep() == 1
    assert await two.claim("idle", None, 256) == Absent(Ending.EXPIRED)
    assert (await claimed(two, "stepped")).next_step == 1


# Sessions in memory alone


async def test_a_session_in_memory_alone_is_lost_with_its_owner(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    await opened(one, "claimed", an_opening("none"))
    await opened(one, "swept", an_opening("none"))
    await opened(one, "kept")
    await opened(two, "alive", an_opening("none"))
    assert isinstance(await two.claim("swept", None, 0), Elsewhere)
    await cluster.outlive(two)
    assert await two.claim("claimed", None, 0) == Absent(Ending.LOST)
    assert await two.sweep() == 1
    assert await two.claim("swept", None, 0) == Absent(Ending.LOST)
    assert isinstance(await two.claim("kept", None, 0), Image)
    assert (await opened(two, "claimed", an_opening("none"))).opened
    assert not (await claimed(two, "alive")).opened


async def test_a_session_in_memory_alone_moves_with_its_snapshot(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one, opening=an_opening("none"))
    with pytest.raises(Stale):
        await let_go(one, image, 12)  # from which nothing would be kept
    await let_go(one, image, 12, a_snapshot(12))
    image = await claimed(two)
    assert (image.next_step, image.snapshot, image.records) == (12, a_snapshot(12), [])
    assert image.durability == "none"


async def test_a_store_refuses_what_it_cannot_promise(cluster: Cluster) -> None:
    store = await cluster.replica()
    assert "none" in store.durabilities
    with pytest.raises(StoreFault):
        await store.claim("s", an_opening("forever"), 0)
    assert await store.claim("s", None, 0) == Absent(None)


# The past changed


async def test_a_session_goes_back(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 10)
    await one.save([Keeping("s", image.epoch, a_snapshot(9), 0)])
    await one.rewrite(a_rewriting(image, 6, version="v2"))
    with pytest.raises(Stale):
        await stepped(one, image, 10, 11)
    await stepped(one, image, 6, 8)
    await cluster.outlive(two)
    image = await claimed(two)
    assert (image.version, image.digest) == ("v2", "d-v2")
    assert (image.next_step, image.snapshot, image.records) == (8, None, the_records(0, 8))


async def test_a_session_goes_back_into_a_request_with_a_snapshot(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    for step in (0, 4, 8):
        await committed(store, [an_entry(image, step, 4)])
    with pytest.raises(StoreFault):
        await store.rewrite(a_rewriting(image, 6))  # from which nothing would be kept
    await store.rewrite(a_rewriting(image, 6, a_snapshot(6)))
    await committed(store, [an_entry(image, 6, 2)])
    image = await claimed(store)
    assert (image.next_step, image.snapshot, image.records) == (8, a_snapshot(6), [a_record(6)])
    early = await store.history("s", image.epoch, 3)
    assert (early.first_step, early.snapshot, early.records) == (0, None, [a_record(0)])


async def test_a_session_goes_back_to_a_snapshot_that_is_kept(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store)
    await stepped(store, image, 0, 8)
    await store.save([Keeping("s", image.epoch, a_snapshot(5), 5)])
    await store.rewrite(a_rewriting(image, 5))
    image = await claimed(store)
    assert (image.next_step, image.snapshot) == (5, a_snapshot(5))


async def test_a_session_begins_anew(cluster: Cluster) -> None:
    store = await cluster.replica()
    image = await opened(store, opening=an_opening(snapshot=a_snapshot(0)))
    await stepped(store, image, 0, 3)
    await store.rewrite(a_rewriting(image, 0, keep_records=False))
    image = await claimed(store)
    assert (image.next_step, image.snapshot, image.records) == (0, None, [])
    await stepped(store, image, 0, 1)
    assert (await claimed(store)).records == the_records(0, 1)


@pytest.mark.parametrize("next_step", [2, 100])
async def test_a_state_is_put_in_place_of_the_past(cluster: Cluster, next_step: int) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 6)
    await one.save([Keeping("s", image.epoch, a_snapshot(1), 0)])
    await one.rewrite(
        a_rewriting(image, next_step, a_snapshot(next_step), keep_records=False, keep_snapshots=False)
    )
    await cluster.outlive(two)
    image = await claimed(two)
    assert (image.next_step, image.snapshot) == (next_step, a_snapshot(next_step))
    assert image.records == []
    assert (await two.history("s", image.epoch, next_step)).first_step == next_step


async def test_only_the_owner_changes_the_past(cluster: Cluster) -> None:
    one, two = await cluster.replica(), await cluster.replica()
    image = await opened(one)
    await stepped(one, image, 0, 2)
    with pytest.raises(Stale):
        await two.rewrite(a_rewriting(image, 0))
    assert (await claimed(one)).next_step == 2


# All of it together


@pytest.mark.parametrize("seed", range(3))
async def test_no_step_is_lost_or_doubled_whatever_the_order(cluster: Cluster, seed: int) -> None:
    """A long walk of commits, releases, deaths, snapshots and changes, against a list."""
    chance = random.Random(seed)
    stores = [await cluster.replica(), await cluster.replica()]
    names = ["a", "b", "c"]
    wanted: dict[str, int] = dict.fromkeys(names, 0)
    images = {name: await opened(stores[0], name) for name in names}
    holder = dict.fromkeys(names, 0)
    for _ in range(120):
        name = chance.choice(names)
        store, image, step = stores[holder[name]], images[name], wanted[name]
        match chance.choice(["commit"] * 6 + ["save", "release", "death", "back", "again"]):
            case "commit":
                await committed(store, [an_entry(image, step, sync=chance.random() < 0.1)])
                wanted[name] += 1
            case "save":
                await store.save([Keeping(name, image.epoch, a_snapshot(step), max(step - 5, 0))])
            case "release":
                holder[name] = chance.randrange(2)
                await let_go(store, image, step)
                images[name] = await claimed(stores[holder[name]], name)
            case "death":
                dead = holder[name]
                await cluster.outlive(stores[1 - dead])
                for other in (n for n in names if holder[n] == dead):
                    holder[other] = 1 - dead
                    images[other] = await claimed(stores[1 - dead], other)
                await stores[dead].join("http://again")
            case "back":
                wanted[name] = chance.randrange(max(step - 3, 0), step + 1)
                await store.rewrite(a_rewriting(image, wanted[name], a_snapshot(wanted[name])))
            case "again":
                images[name] = await claimed(store, name, window=chance.randrange(8))
        found = images[name]
        if found is not image:
            first = 0 if found.snapshot is None else found.snapshot.step
            assert found.next_step == wanted[name]
            behind = wanted[name] - first
            expected = [a_record(s, name) for s in range(first, wanted[name])]
            assert behind == 0 or found.records[-behind:] == expected
