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
AWAY = {"event": "store_away"}


class Lease:
    """Create it on the running loop. on_lost: another replica took over what this one owned. trusted: only a
    test of the tests goes on whatever the store says."""

    def __init__(self, store: Store, on_lost: Callable[[], None], *, trusted: bool = True) -> None:
        self._store, self._on_lost, self._trusted = store, [on_lost], trusted
        self._loop = asyncio.get_running_loop()
        self._until = float("-inf")
        self._expiry: asyncio.TimerHandle | None = None
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
        deadline, waiting = self._loop.time() + START_S, False
        while True:
            try:
                await self._join(address)
                break
            except StoreAway as error:
                if self._loop.time() > deadline:
                    raise
                if not waiting:
                    log.warning("waiting for the store: %s", error, extra=AWAY)
                waiting = True
                await asyncio.sleep(AWAY_S)
        if waiting:
            log.warning("the store is there", extra={"event": "store_back"})
        self._renewing = self._loop.create_task(self._renew(address))

    async def _join(self, address: str) -> None:
        asked = self._loop.time()
        await self._store.join(address)
        self.joined += 1
        self._hold_until(asked + self._store.lease_s)

    async def _renew(self, address: str) -> None:
        lease_s, joined, wait = self._store.lease_s, True, RENEW
        away_since = 0.0
        while True:
            await asyncio.sleep(wait * lease_s)
            asked = self._loop.time()
            try:
                if joined:
                    await self._store.renew()
                    self._hold_until(asked + lease_s)
                else:
                    await self._join(address)
                    joined = True
                wait, self.store_answers = RENEW, True
                if away_since:
                    seconds = round(self._loop.time() - away_since, 3)
                    log.warning("the store is back", extra={"event": "store_back", "seconds": seconds})
                    away_since = 0.0
            except Fenced:
                self.store_answers = True
                if not self._trusted:
                    continue
                self.losses["fenced"] += joined
                lost = {"event": "lease_lost", "lease_s": lease_s}
                log.warning("the lease ran out and another replica took over; joining again", extra=lost)
                self.lost()
                joined, wait = False, 0.0
                for on_lost in self._on_lost:
                    on_lost()
            except Exception as error:  # noqa: BLE001  a replica that gives up renewing is of no use any more
                self.store_answers = False
                if not away_since:  # once for all of the time that it is away
                    away_since, why = self._loop.time(), f"{type(error).__name__}: {error}"
                    log.warning("the store is away: the lease could not be renewed: %s", why, extra=AWAY)
                wait = AGAIN

    def _hold_until(self, when: float) -> None:
        self._end()
        self._until = when
        self._expiry = self._loop.call_at(when, self._expired)

    def _expired(self) -> None:
        self.losses["expired"] += 1

    def _end(self) -> None:
        self._until = float("-inf")
        if self._expiry is not None:
            self._expiry.cancel()

    def lost(self) -> None:
        """A commit was refused: the lease is no more, though its renewal has not said so yet."""
        self._end()

    async def give_up(self) -> None:
        """Stops renewing, and leaves."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        self._end()
        with contextlib.suppress(StoreError):
            await self._store.leave()
