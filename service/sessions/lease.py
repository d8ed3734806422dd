"""A replica's right to step the sessions it owns: taken, renewed, and given up.

The lease is counted from before its renewal was asked for, on this machine's own steady clock: so a replica
that was paused knows before it answers that it may not be the owner any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable

from service.sessions.stores.protocol import Fenced, Store, StoreAway, StoreError

log = logging.getLogger("cellstate")

#: Of a lease, after which it is renewed; and after which again when that failed
RENEW, AGAIN = 1 / 3, 1 / 20
#: Of a lease: with less of it left, its renewal should have been answered
LATE = 1 / 3
#: Seconds that a start waits for a store that is away, and between two looks
START_S, AWAY_S = 20.0, 1.0


class Lease:
    """Create it on the running loop. on_lost: another replica took over what this one owned. trusted: only a
    test of the tests goes on whatever the store says."""

    def __init__(self, store: Store, on_lost: Callable[[], None], *, trusted: bool = True) -> None:
        self._store, self._on_lost, self._trusted = store, [on_lost], trusted
        self._loop = asyncio.get_running_loop()
        self._until = float("-inf")
        self._renewing: asyncio.Task[None] | None = None
        self.store_answers = True  # the newest time it was asked
        self.losses: Counter[str] = Counter()  # by reason: expired, fenced
        self.joined = 0  # how often; a session that was claimed before the newest time is not this replica's

    @property
    def holds(self) -> bool:
        """Whether nobody else can own this replica's sessions now."""
        return self._loop.time() < self._until or not self._trusted

    @property
    def remaining_s(self) -> float:
        """Seconds that it holds for if it is not renewed; 0 if it does not."""
        return max(0.0, self._until - self._loop.time())

    @property
    def store_up(self) -> bool:
        """Whether the store answers: it did when it was last asked, and is not late now."""
        return self.store_answers and self.remaining_s > self._store.lease_s * LATE

    def share(self, on_lost: Callable[[], None]) -> Lease:
        """The same, for others who own sessions by it."""
        self._on_lost.append(on_lost)
        return self

    async def take(self, address: str) -> None:
        """Joins under that address, and renews from now on. Waits a while for a store that is away: it may
        have been started, or killed, at the same time. Raises StoreError."""
        deadline = self._loop.time() + START_S
        while True:
            try:
                await self._join(address)
                break
            except StoreAway as error:
                if self._loop.time() > deadline:
                    raise
                log.warning("waiting for the store: %s", error)
                await asyncio.sleep(AWAY_S)
        self._renewing = self._loop.create_task(self._renew(address))

    async def _join(self, address: str) -> None:
        asked = self._loop.time()
        await self._store.join(address)
        self.joined += 1
        self._until = asked + self._store.lease_s

    async def _renew(self, address: str) -> None:
        lease_s, joined, wait, held = self._store.lease_s, True, RENEW, True
        while True:
            await asyncio.sleep(wait * lease_s)
            asked = self._loop.time()
            if held and not self.remaining_s and self._until > float("-inf"):  # else it was refused
                held = False
                self.losses["expired"] += 1
            try:
                if joined:
                    await self._store.renew()
                    self._until = asked + lease_s
                else:
                    await self._join(address)
                    joined = True
                wait, held, self.store_answers = RENEW, True, True
            except Fenced:
                self.store_answers = True
                if not self._trusted:
                    continue
                if joined:
                    self.losses["fenced"] += 1
                held = False
                log.warning("the lease ran out and another replica took over; joining again")
                self._until, joined, wait = float("-inf"), False, 0.0
                for on_lost in self._on_lost:
                    on_lost()
            except Exception as error:  # noqa: BLE001  a replica that gives up renewing is of no use any more
                self.store_answers = False
                log.warning("the lease could not be renewed: %s: %s", type(error).__name__, error)
                wait = AGAIN

    def lost(self) -> None:
        """A commit was refused: the lease is no more, though its renewal has not said so yet."""
        self._until = float("-inf")

    async def give_up(self) -> None:
        """Stops renewing, and leaves."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        self._until = float("-inf")
        with contextlib.suppress(StoreError):
            await self._store.leave()
