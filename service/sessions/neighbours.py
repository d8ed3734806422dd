"""The other replicas, as those see them who want a session: asked to let go of it, or waited for.

After a crash a thousand requests may want the sessions of one dead replica. Each of them would ask it, wait a
moment and claim again, many times until its lease has run out; here they do so together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from service.sessions.stores.protocol import Elsewhere

#: Asks a replica at an address to let go of a session: whether it did; None if there was no answer
Release = Callable[[str, str], Awaitable[bool | None]]

RETRY_S = 0.1  # a replica that did not answer is asked again, and the store whether it still is the owner
CLAIMS_PER_S = 1000  # of all who wait: not more, so that others get their turn at the store
LATE_S = 0.005  # after the end of a lease, that it surely is the end
ASKED_AT_ONCE = 32  # of one replica: if it is dead, that is so many connections that fail


class _Neighbour:
    """One replica. asks: to it at a time; silent_until: it did not answer, and is not asked before."""

    __slots__ = ("asks", "silent_until")

    def __init__(self) -> None:
        self.asks = asyncio.Semaphore(ASKED_AT_ONCE)
        self.silent_until = float("-inf")


class Neighbours:
    """Of one model in one replica. Create it on the running loop."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, _Neighbour] = {}
        self._waiting = 0

    async def release(self, owner: Elsewhere, session_id: str) -> bool | None:
        """Whether the owner let go of the session; None if it does not answer before its lease ends, or did
        not answer others a moment ago."""
        neighbour = self._known.setdefault(owner.address, _Neighbour())
        try:
            async with asyncio.timeout(owner.lease_s + LATE_S), neighbour.asks:
                if self._loop.time() < neighbour.silent_until:
                    return None
                let_go = await self._release(owner.address, session_id)
        except TimeoutError:
            let_go = None
        if let_go is None:
            neighbour.silent_until = self._loop.time() + RETRY_S
        return let_go

    async def wait(self, owner: Elsewhere) -> None:
        """Until the store should be asked again who owns the session: at the end of the lease, or sooner."""
        self._waiting += 1
        try:
            pause = max(RETRY_S, self._waiting / CLAIMS_PER_S)
            await asyncio.sleep(min(pause, owner.lease_s + LATE_S))
        finally:
            self._waiting -= 1
