"""Sessions in Redis 7.0 or newer, or Valkey: shared by replicas on any machine that reaches the server.

What is promised is what the server is set to: with `appendonly no` nothing outlives it, so sessions can only
have durability none; with `appendonly yes` journal too, and with `appendfsync always` fsync. Two limits are
Redis's own. With `appendfsync everysec`, while its disk stalls, it answers before it writes, for 2 s at most:
if the server is killed just then, these steps are lost. And a server that fails over to a replica of its own
loses what it had not copied yet, as Redis does not wait for copies.

redis_scripts.py has the keys and what is done in the server, redis_wire.py the connections.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from service.sessions.stores import redis_scripts as lua
from service.sessions.stores.protocol import (
    Absent,
    Claim,
    Elsewhere,
    Ending,
    Entry,
    Fenced,
    History,
    Image,
    Keeping,
    Leaving,
    Opening,
    Rewriting,
    Saved,
    Stale,
    StoreError,
    StoreFault,
)
from service.sessions.stores.redis_wire import Arg, Script, Wire

log = logging.getLogger("cellstate")

OLDEST = (7, 0)  # scripts with flags
SWEEP_KEYS, SWEEP_PAGES = 256, 64  # keys looked at in one script, scripts in one sweep
RELEASE_BYTES = 4 << 20  # of snapshots in one script


class RedisStore:
    """The sessions of one model on a Redis or Valkey server. See protocol.Store for what each method does."""

    def __init__(
        self,
        url: str,
        model: str,
        lease_s: float = 5.0,
        timeout_s: float | None = None,
        *,
        fence: bool = True,
    ) -> None:
        """url: redis://user:password@host:port/db, or rediss:// for TLS. timeout_s: how long to wait for any
        reply, half a lease if not given: a replica must know in time that it may not go on. fence: only a
        test of the tests takes commits unchecked."""
        self._script = lua.COMMIT if fence else lua.COMMIT_UNFENCED
        self.durabilities: tuple[str, ...] = ()
        self.lease_s = lease_s
        self.secret = ""
        self._model = model
        self._address = ""
        self._token = ""
        self._prefix = f"cellstate:{{{model}}}:"
        self._meta = self._prefix + "meta"
        self._wire = Wire(url, lease_s / 2 if timeout_s is None else timeout_s)
        self._cursor = "0"
        self._commits: set[asyncio.Future[None]] = set()  # under way

    # The lease

    async def join(self, address: str) -> None:
        durabilities = await self._promises()
        token, former = secrets.token_hex(8), self._token
        try:
            reply = await self._wire.run(
                lua.JOIN,
                self._meta,
                token,
                address,
                self._lease_ms(),
                lua.FORMAT,
                secrets.token_urlsafe(32),
                former,
                urgent=True,
            )
        finally:
            self._token = ""  # also if there was no answer: the former may be fenced
        if reply[0] == b"FORMAT":
            raise StoreFault(
                f"{self._wire.name} holds model {self._model} in format {reply[1].decode()}, this version "
                f"reads {lua.FORMAT}: run the newer version, or give the model another server or database"
            )
        self._token, self._address = token, address
        await self._ask(lua.COMMIT, urgent=True)  # loads it: the first ones keep their order too
        self.durabilities, self.secret = durabilities, reply[1].decode()

    async def renew(self) -> None:
        await self._ask(lua.RENEW, self._address, self._lease_ms(), self.secret, urgent=True)

    async def leave(self) -> None:
        if self._token:
            await self._ask(lua.LEAVE, urgent=True)
            self._token = ""

    def _lease_ms(self) -> int:
        return max(1, round(self.lease_s * 1000))

    async def _promises(self) -> tuple[str, ...]:
        """What the server's settings keep. Raises StoreFault if sessions are not safe there at all."""
        text = (await self._wire.call("INFO")).decode()
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        name, version = self._wire.name, info.get("redis_version", "0")
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
            raise StoreFault(f"{name} is Redis {version}: 7.0 or newer, or Valkey, is needed")
        if info.get("role", "master") != "master":
            raise StoreFault(f"{name} is a read-only replica: the URL must name the primary")
        policy = info.get("maxmemory_policy", "noeviction")
        if int(info.get("maxmemory", "0")) and policy != "noeviction":
            raise StoreFault(
                f"{name} throws keys away when it is full (maxmemory-policy {policy}), sessions with them: "
                "set `maxmemory-policy noeviction`"
            )
        if info.get("aof_enabled") != "1":
            log.warning(
                "%s keeps nothing on disk (appendonly no): sessions can only have durability none. "
                "Set `appendonly yes` for journal, `appendfsync always` too for fsync",
                name,
            )
            return ("none",)
        try:
            setting = await self._wire.call("CONFIG", "GET", "appendfsync")
        except StoreFault:  # a managed server that hides its settings: promise no more than can be seen
            setting = []
        return ("none", "journal", "fsync") if b"always" in setting else ("none", "journal")

    # Sessions

    async def claim(self, session_id: str, opening: Opening | None, window: int) -> Claim:
        args: list[Arg] = [session_id, window, lua.PAGE_BYTES]
        opened_at = time.time()
        if opening is not None:
            if opening.durability not in self.durabilities:
                raise StoreFault(
                    f"{self._wire.name} can't promise durability {opening.durability}, "
                    f"only {', '.join(self.durabilities)}: see its appendonly and appendfsync"
                )
            args += [opening.ttl_s, opening.durability, opening.version, opening.digest]
            args += [opened_at, opening.next_step]
            if opening.snapshot is not None:
                args.append(opening.snapshot.data)
        kind, *reply = await self._ask(lua.CLAIM, *args)
        if kind == b"ELSEWHERE":
            address, held_ms, lease_ms = reply
            return Elsewhere(address.decode(), max(0.0, held_ms / 1000), lease_ms / 1000)
        if kind == b"ABSENT":
            return Absent(Ending(reply[0].decode()) if reply[0] else None)
        if kind == b"OPENED":
            assert opening is not None  # noqa: S101  (the script opens only what it was given an opening for)
            return Image(
                session_id=session_id,
                epoch=int(reply[0]),
                ttl_s=opening.ttl_s,
                durability=opening.durability,
                version=opening.version,
                digest=opening.digest,
                opened_at=opened_at,
                idle_s=0.0,
                next_step=opening.next_step,
                snapshot=opening.snapshot,
                opened=True,
            )
        return await self._image(session_id, reply)

    async def _image(self, session_id: str, reply: list[Any]) -> Image:
        *about, at, data, low, high, page, taken = reply
        epoch, next_step, durability, idle_ms, ttl, version, digest, opened = about
        try:
            image = Image(
                session_id=session_id,
                epoch=int(epoch),
                ttl_s=float(ttl),
                durability=durability.decode(),
                version=version.decode(),
                digest=digest.decode(),
                opened_at=float(opened),
                idle_s=max(0.0, idle_ms / 1000),
                next_step=int(next_step),
                snapshot=Saved(int(at), data) if at else None,
                taken=bool(taken),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise self._damaged(session_id, f"a field is missing or wrong: {error}") from error
        pages = await self._records(session_id, image.epoch, low, high, page)
        start = image.snapshot.step if image.snapshot is not None else 0
        image.records = self._leading(session_id, pages, start, image.next_step)
        return image

    async def _records(
        self, session_id: str, epoch: int, low: int, high: int, page: list[bytes]
    ) -> list[bytes]:
        """Records low to high - 1, of which `page` came already. Nobody but the owner moves them."""
        while len(page) < high - low:
            at = low + len(page)
            _, more = await self._ask(lua.PAGE, session_id, epoch, at, high, lua.PAGE_BYTES)
            if not more:
                raise self._damaged(session_id, f"it has fewer than {high} records")
            page += more
        return page

    def _spans(self, session_id: str, pages: list[bytes]) -> list[tuple[int, int, bytes]]:
        """First step, the one behind the last, record."""
        header = lua.RECORD_HEADER
        found = []
        for page in pages:
            if len(page) < header.size:
                raise self._damaged(session_id, "a record is shorter than its header")
            first, count = header.unpack_from(page)
            found.append((first, first + count, page[header.size :]))
        return found

    def _leading(self, session_id: str, pages: list[bytes], base: int, next_step: int) -> list[bytes]:
        """Records up to next_step that have no gap. Raises StoreFault if they begin behind `base`."""
        found, at = [], next_step
        for first, stop, record in reversed(self._spans(session_id, pages)):
            if stop != at:
                break  # a gap; a session that was moved back into a request has one
            found.append(record)
            at = first
        if at > base:
            raise self._damaged(session_id, f"the records of steps {base} to {at} are missing")
        return found[::-1]

    def _damaged(self, session_id: str, how: str) -> StoreFault:
        return StoreFault(
            f"session {session_id} of model {self._model} in {self._wire.name} is damaged: {how}"
        )

    def commit(self, entries: Sequence[Entry]) -> asyncio.Future[None] | None:
        if not entries:
            return None
        if "fsync" not in self.durabilities and any(entry.sync for entry in entries):
            raise StoreFault(f"{self._wire.name} can't promise durability fsync: set `appendfsync always`")
        pack = lua.RECORD_HEADER.pack
        args: list[Arg] = [self._token]
        for e in entries:
            record = pack(e.step, e.next_step - e.step) + e.record
            args += (e.session_id, e.epoch, e.step, e.next_step, record)
        pending = asyncio.get_running_loop().create_future()
        if not self._token:
            pending.set_exception(_no_lease())
            return pending
        self._commits.add(pending)
        self._wire.send(self._script, self._meta, args, partial(self._committed, pending))
        return pending

    def _committed(self, pending: asyncio.Future[None], reply: Any, error: Exception | None) -> None:
        self._commits.discard(pending)
        if pending.done():  # cancelled
            return
        error = error or self._refusal(reply)
        if error is None:
            pending.set_result(None)
        else:
            pending.set_exception(error)

    async def save(self, snapshots: Sequence[Keeping]) -> None:
        if snapshots:
            args: list[Arg] = []
            for k in snapshots:
                args += (k.session_id, k.epoch, k.snapshot.step, k.snapshot.data, k.keep_from)
            await self._ask(lua.SAVE, *args)

    async def release(self, sessions: Sequence[Leaving]) -> None:
        args: list[Arg] = []
        size = 0
        for i, leaving in enumerate(sessions, 1):
            at, data = (
                ("", b"") if leaving.snapshot is None else (leaving.snapshot.step, leaving.snapshot.data)
            )
            args += (leaving.session_id, leaving.epoch, leaving.next_step, at, data)
            size += len(data) + 256
            # In parts: thousands leave at once when a replica drains; commits of others must not wait for it
            if size > RELEASE_BYTES or i == len(sessions):
                await self._ask(lua.RELEASE, *args)
                args, size = [], 0

    async def end(self, session_id: str, epoch: int, ending: Ending) -> None:
        await self._ask(lua.END, session_id, epoch, ending.value)

    async def history(self, session_id: str, epoch: int, step: int) -> History:
        reply = await self._ask(lua.HISTORY, session_id, epoch, step, lua.PAGE_BYTES)
        _, first_step, at, data, low, high, page = reply
        snapshot = Saved(int(at), data) if at else None
        pages = await self._records(session_id, epoch, low, high, page)
        found, reached = [], first_step if snapshot is None else snapshot.step
        for first, stop, record in self._spans(session_id, pages):
            if reached < step and first <= reached < stop:
                found.append(record)
                reached = stop
        return History(first_step, snapshot, found)

    async def rewrite(self, change: Rewriting) -> None:
        args: list[Arg] = [change.session_id, change.epoch, change.next_step, change.version, change.digest]
        args += [int(change.keep_records), int(change.keep_snapshots)]
        if change.snapshot is not None:
            args.append(change.snapshot.data)
        await self._ask(lua.REWRITE, *args)

    async def sweep(self) -> int:
        """Looks at some ten thousand keys of the server's, and goes on where the last call ended."""
        pattern = re.sub(r"([\[\]*?^\\-])", r"\\\1", self._prefix) + "s:*"
        ended = 0
        for _ in range(SWEEP_PAGES):
            _, cursor, count = await self._ask(lua.SWEEP, self._cursor, pattern, SWEEP_KEYS)
            self._cursor = cursor.decode()
            ended += count
            if self._cursor == "0":
                break
        return ended

    async def close(self) -> None:
        if self._commits:
            await asyncio.wait(self._commits)
        await self._wire.close()

    async def _ask(self, script: Script, *args: Arg, urgent: bool = False) -> list[Any]:
        """Runs a script as the current owner. Raises what the script says."""
        if not self._token:
            raise _no_lease()
        reply: list[Any] = await self._wire.run(script, self._meta, self._token, *args, urgent=urgent)
        refusal = self._refusal(reply)
        if refusal is not None:
            raise refusal
        return reply

    def _refusal(self, reply: list[Any]) -> StoreError | None:
        kind = reply[0]
        if kind == b"FENCED":
            return Fenced(
                f"this replica's lease ran out and its sessions were taken over ({self._wire.name})"
            )
        if kind == b"STALE":
            ids = [name.decode() for name in reply[1:]]
            return Stale(f"not this replica's any more, or at another step: {', '.join(ids[:5])}", ids)
        if kind == b"GAP":
            return StoreFault(f"nothing that is kept gives the state before step {reply[1].decode()}")
        return None


def _no_lease() -> Fenced:
    return Fenced("this replica has no lease: it must join first")
