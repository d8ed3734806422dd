"""What is Redis's own: servers that die, stall, fill up or refuse; replies that are lost; damaged keys."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from service.sessions.stores.protocol import (
    Ending,
    Entry,
    Fenced,
    Image,
    Keeping,
    Stale,
    StoreAway,
    StoreFault,
)
from service.sessions.stores.redis import RedisStore
from service.sessions.stores.redis_wire import shown
from tests.sessions.stores.redis_servers import Server, serving
from tests.sessions.stores.stores import (
    a_record,
    a_snapshot,
    an_entry,
    an_opening,
    claimed,
    committed,
    opened,
    stepped,
)

RECORDS, SESSION = "cellstate:{m}:j:s", "cellstate:{m}:s:s"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as server:
        yield server


@asynccontextmanager
async def joined(url: str, timeout_s: float = 10.0, lease_s: float = 30.0) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, "m", lease_s=lease_s, timeout_s=timeout_s)
    try:
        await store.join("http://replica")
        yield store
    finally:
        await store.close()


class Wiretap:
    """A way to a server on which replies can be cut off while what is asked still arrives, or what is asked
    can be held back until it is let through."""

    def __init__(self, port: int) -> None:
        self.deaf = False
        self.heard = asyncio.Event()  # the server replied while it was deaf
        self.holding = False
        self.through = asyncio.Event()
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Wiretap:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(self._pass(reader, back, False), self._pass(there, writer, True))
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            for end in (writer, back):
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool) -> None:
        while data := await self._read(reader):
            if not replies and self.holding:
                await self.through.wait()
            if replies and self.deaf:
                self.heard.set()
            else:
                writer.write(data)
                await writer.drain()
        if replies:  # the other way stays open: a client that gave up still gets its late reply, here
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(65536)
        except ConnectionError:  # a client that gave up resets its connection
            return b""


# The server dies, stalls, or is slow


async def test_what_was_committed_outlives_the_server(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        await stepped(store, image, 0, 50)
        server.kill()
        with pytest.raises(StoreAway):
            await committed(store, [an_entry(image, 50)])
        with pytest.raises(StoreAway):
            await store.renew()
        await server.start()
        await store.renew()
        await committed(store, [an_entry(image, 50)])
        assert (await claimed(store)).records == [a_record(step) for step in range(51)]


async def test_a_server_that_stalls_is_away_and_its_late_replies_are_nobodys(server: Server) -> None:
    async with joined(server.url, timeout_s=0.3) as store:
        image, other = await opened(store), await opened(store, "other")
        await stepped(store, image, 0, 3)
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(StoreAway, match=r"within 0\.3 s"):
            await committed(store, [an_entry(image, 3)])
        assert time.monotonic() - began < 5
        with pytest.raises(StoreAway):
            await store.claim("other", None, 0)
        server.signal(signal.SIGCONT)
        async with joined(server.url) as patient:  # the server has read what lay in its sockets before
            await patient.renew()
        assert (await claimed(store)).session_id == "s"
        found = await claimed(store)
        assert found.records == [a_record(step) for step in range(found.next_step)]
        assert found.next_step in (3, 4)
        assert (await claimed(store, "other")).epoch > other.epoch


@pytest.mark.parametrize("meanwhile", ["stepped", "claimed", "opened anew"])
async def test_a_commit_that_comes_late_does_no_harm(server: Server, meanwhile: str) -> None:
    """It was given up, the session went on without it, and then the server executes it."""
    async with Wiretap(server.port) as tap, joined(tap.url, timeout_s=0.5) as store:
        image = await opened(store)
        tap.holding = True
        with pytest.raises(StoreAway):
            await committed(store, [Entry("s", image.epoch, 0, 1, b"late")])
        tap.holding = False
        match meanwhile:
            case "stepped":
                await stepped(store, image, 0, 1)
            case "claimed":
                image = await claimed(store)
            case "opened anew":
                await store.end("s", image.epoch, Ending.CLOSED)
                image = await opened(store)
        tap.deaf = True
        tap.through.set()
        await tap.heard.wait()
        tap.deaf = False
        async with joined(server.url) as other:
            with pytest.raises(Stale):
                await committed(other, [an_entry(image, 0)])
        found = await claimed(store)
        assert found.records == ([a_record(0)] if meanwhile == "stepped" else [])


async def test_a_slow_server_is_waited_for(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        await server.ask("CLIENT", "PAUSE", 200, "ALL")
        await stepped(store, image, 0, 1)
        assert (await claimed(store)).next_step == 1


async def test_a_reply_is_lost_though_the_commit_was_executed(server: Server) -> None:
    async with Wiretap(server.port) as tap, joined(tap.url, timeout_s=0.5) as store:
        image = await opened(store)
        tap.deaf = True
        with pytest.raises(StoreAway):
            await committed(store, [an_entry(image, 0)])
        await tap.heard.wait()
        tap.deaf = False
        again = await claimed(store)
        assert (again.next_step, again.records) == (1, [a_record(0)])
        await stepped(store, again, 1, 3)


async def test_a_server_that_runs_a_long_script_is_away(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        await server.ask("CONFIG", "SET", "busy-reply-threshold", 1)
        hog = asyncio.create_task(server.ask("EVAL", "while true do end", 0))
        await asyncio.sleep(0.1)  # nothing tells that the script runs
        with pytest.raises(StoreAway, match="BUSY"):
            await committed(store, [an_entry(image, 0)])
        await server.ask("SCRIPT", "KILL")
        with pytest.raises(Exception, match="killed"):
            await hog
        await stepped(store, image, 0, 1)


async def test_calls_that_are_cancelled_leave_the_others_alone(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        await stepped(store, image, 0, 2)
        for _ in range(20):
            gone = asyncio.create_task(store.claim("t", None, 0))
            await asyncio.sleep(0)
            other = asyncio.create_task(store.history("s", image.epoch, 2))
            await asyncio.sleep(0)
            gone.cancel()
            assert len((await other).records) == 2


async def test_many_calls_at_once(server: Server) -> None:
    async with joined(server.url) as store:
        images = await asyncio.gather(*(opened(store, f"s{i}") for i in range(300)))
        ticks = [store.commit([an_entry(image, step) for image in images]) for step in range(5)]
        for tick in ticks:
            assert tick is not None
            await tick
        found = await asyncio.gather(*(claimed(store, f"s{i}") for i in range(300)))
        assert all(image.next_step == 5 and len(image.records) == 5 for image in found)


# The server refuses


async def test_scripts_that_were_flushed_are_sent_again(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        await server.ask("SCRIPT", "FLUSH")
        await stepped(store, image, 0, 2)
        await server.ask("SCRIPT", "FLUSH")
        assert (await claimed(store)).next_step == 2


async def test_a_full_server_takes_no_steps_but_holds_leases_and_ends_sessions(server: Server) -> None:
    async with joined(server.url) as store:
        image, other = await opened(store), await opened(store, "other")
        await server.ask("CONFIG", "SET", "maxmemory", 1000)
        with pytest.raises(StoreFault, match="maxmemory"):
            await committed(store, [an_entry(image, 0)])
        with pytest.raises(StoreFault, match="maxmemory"):
            await store.save([Keeping("s", image.epoch, a_snapshot(0), 0)])
        await store.renew()
        await store.end("other", other.epoch, Ending.CLOSED)
        assert await store.sweep() == 0
        assert (await store.history("s", image.epoch, 0)).records == []
        await server.ask("CONFIG", "SET", "maxmemory", 0)
        await stepped(store, image, 0, 1)


async def test_a_read_only_server_is_refused(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        await server.ask("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(StoreFault, match="primary"):
            await committed(store, [an_entry(image, 0)])
        with pytest.raises(StoreFault, match="primary"):
            await store.join("http://replica")
        await server.ask("REPLICAOF", "NO", "ONE")


async def test_a_server_that_throws_keys_away_is_refused(server: Server) -> None:
    await server.ask("CONFIG", "SET", "maxmemory", 10**9)
    await server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreFault, match="noeviction"):
        async with joined(server.url):
            pass


async def test_only_what_the_settings_keep_is_promised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, "--appendonly", "no") as server:
        with caplog.at_level(logging.WARNING, "cellstate"):
            async with joined(server.url) as store:
                assert store.durabilities == ("none",)
                assert "appendonly yes" in caplog.text
                with pytest.raises(StoreFault, match="journal"):
                    await store.claim("s", an_opening("journal"), 0)
        await server.ask("CONFIG", "SET", "appendonly", "yes")
        async with joined(server.url) as store:
            assert store.durabilities == ("none", "journal")
            image = await opened(store)
            with pytest.raises(StoreFault, match="appendfsync always"):
                store.commit([an_entry(image, 0, sync=True)])
        await server.ask("CONFIG", "SET", "appendfsync", "always")
        async with joined(server.url) as store:
            assert store.durabilities == ("none", "journal", "fsync")


async def test_users_and_passwords(server: Server) -> None:
    await server.ask(*["ACL", "SETUSER", "cell", "on", ">sesame", "+@all", "-config", "~cellstate:*"])
    await server.ask(*["ACL", "SETUSER", "other", "on", ">sesame", "+@all", "~other:*"])
    await server.ask("CONFIG", "SET", "appendfsync", "always")
    place = f"127.0.0.1:{server.port}"
    async with joined(f"redis://cell:sesame@{place}") as store:
        assert store.durabilities == ("none", "journal")  # it can't see how the server syncs
        await stepped(store, await opened(store), 0, 1)
        await store.sweep()
    for user, why in (("cell:wrong", "password"), ("other:sesame", "cellstate:")):
        with pytest.raises(StoreFault, match=why) as caught:
            async with joined(f"redis://{user}@{place}"):
                pass
        assert "sesame" not in str(caught.value)
        assert "wrong@" not in str(caught.value)
    assert shown(f"rediss://cell:ses@me@{place}/2?ssl_ca_certs=x") == f"rediss://{place}/2"


async def test_a_closed_store_makes_no_connection(server: Server) -> None:
    async with joined(server.url) as store:
        pass
    with pytest.raises(StoreAway, match="closed"):
        await store.renew()


async def test_over_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    asked = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run(  # noqa: ASYNC221
        ["openssl", *asked.split(), "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key]
    settings += ["--tls-auth-clients", "no", "--appendonly", "yes"]
    async with serving(tmp_path / "redis", *settings):
        async with joined(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}") as store:
            await stepped(store, await opened(store), 0, 3)
        with pytest.raises(StoreAway, match="certificate"):
            async with joined(f"rediss://127.0.0.1:{port}"):
                pass


# What is kept was changed


async def test_another_format_is_refused(server: Server) -> None:
    await server.ask("HSET", "cellstate:{m}:meta", "format", 2, "secret", "x")
    with pytest.raises(StoreFault, match="format 2"):
        async with joined(server.url):
            pass


async def test_a_server_that_lost_everything_fences_its_owners(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        await server.ask("FLUSHALL")
        with pytest.raises(Stale):
            await committed(store, [an_entry(image, 0)])
        with pytest.raises(Fenced):
            await store.renew()
        await store.join("http://replica")
        await opened(store)


async def test_a_tick_is_whole_though_a_key_of_one_session_is_of_another_type(server: Server) -> None:
    async with joined(server.url) as store:
        image, other = await opened(store, "good"), await opened(store)
        await stepped(store, image, 0, 1)
        await server.ask("SET", RECORDS, "not a list")
        with pytest.raises(StoreFault, match="changed by another program"):
            await committed(store, [an_entry(image, 1), an_entry(other, 0)])
        found = await claimed(store, "good")
        assert (found.next_step, found.records) == (1, [a_record(0, "good")])
        await stepped(store, found, 1, 2)


@pytest.mark.parametrize("damage", ["cut", "gone", "moved", "field"])
async def test_a_damaged_session_is_told_of_and_others_go_on(server: Server, damage: str) -> None:
    async with joined(server.url) as store:
        await stepped(store, await opened(store), 0, 9)
        await stepped(store, await opened(store, "other"), 0, 9)
        match damage:
            case "cut":
                await server.ask("LSET", RECORDS, 4, b"abc")
            case "gone":
                await server.ask("LTRIM", RECORDS, 0, 6)
            case "moved":
                await server.ask("LSET", RECORDS, 5, bytes(100))
            case "field":
                await server.ask("HDEL", SESSION, "version")
        with pytest.raises(StoreFault):
            await store.claim("s", None, 256)
        assert len((await claimed(store, "other")).records) == 9


async def test_bytes_of_a_record_are_given_as_they_are(server: Server) -> None:
    """Whether they are what was written is for the record's own checksum."""
    async with joined(server.url) as store:
        await stepped(store, await opened(store), 0, 3)
        kept = await server.ask("LINDEX", RECORDS, 1)
        assert isinstance(kept, bytes)
        await server.ask("LSET", RECORDS, 1, kept[:-1] + b"!")
        assert (await claimed(store)).records == [a_record(0), a_record(1)[:-1] + b"!", a_record(2)]


# Sizes


async def test_a_long_journal_comes_in_pages(server: Server) -> None:
    async with joined(server.url) as store:
        image = await opened(store)
        for step in range(60):
            await committed(store, [Entry("s", image.epoch, step, step + 1, bytes([step]) * 100_000)])
        found = await claimed(store)
        assert [record[0] for record in found.records] == list(range(60))
        assert all(len(record) == 100_000 for record in found.records)
        past = await store.history("s", found.epoch, 50)
        assert [record[0] for record in past.records] == list(range(50))


async def test_steps_of_sixteen_digits_are_told_apart(server: Server) -> None:
    start = 2**53 - 4
    async with joined(server.url) as store:
        image = await opened(store, opening=an_opening(snapshot=a_snapshot(start)))
        await stepped(store, image, start, start + 3)
        with pytest.raises(Stale):
            await committed(store, [an_entry(image, start + 2)])
        again = await claimed(store)
        assert (again.next_step, len(again.records)) == (start + 3, 3)
        await store.save([Keeping("s", again.epoch, a_snapshot(start + 2), start + 2)])
        history = await store.history("s", again.epoch, start + 3)
        assert (history.first_step, history.snapshot) == (start + 2, a_snapshot(start + 2))


async def test_a_sweep_of_many_sessions_comes_in_pages(server: Server) -> None:
    async with joined(server.url) as store, joined(server.url) as sweeper:
        await asyncio.gather(*(opened(store, f"s{i}", an_opening("none")) for i in range(1000)))
        await store.leave()
        assert await sweeper.sweep() == 1000
        assert isinstance(await sweeper.claim("s1", an_opening(), 0), Image)
