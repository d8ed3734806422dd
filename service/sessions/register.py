"""Which sessions there are: ids, capacity, time to live, and how the ones that are gone went."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.errors import (
    InvalidValue,
    NoCapacity,
    QuotaExceeded,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
)
from service.sessions.counters import Counters
from service.sessions.expiries import Expiries
from service.sessions.names import client_id, namespace_of
from service.sessions.residence import Residence
from service.sessions.session import Session
from service.sessions.store import Ending, Store
from service.sessions.window import ReplayWindow

SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
_ISSUED_ID = re.compile(r"s-([0-9a-f]{8})-[0-9a-f]{16}")
SWEEP_S = 1.0


@dataclass(slots=True, frozen=True)
class Limits:
    """sessions: most at a time. host_sessions: states kept in host memory, beyond them in the store. queue:
    most requests accepted and not answered. wait_s: longest that one of several steps may have to wait for
    others. Times in seconds."""

    sessions: int
    host_sessions: int
    queue: int
    ttl_s: float
    replay_window: int
    durability: str
    wait_s: float = math.inf


class Register:
    """The open sessions of one model. Create it on the running loop; `close` before the loop ends."""

    def __init__(
        self,
        residence: Residence,
        store: Store,
        limits: Limits,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._residence, self._store, self._limits, self._counters = residence, store, limits, counters
        self.clock = clock
        self._sessions: dict[str, Session] = {}
        self.in_namespace: Counter[str] = Counter()  # sessions here, and on their way
        #: Whether a namespace has as many sessions as it may have
        self.full: Callable[[str], bool] = lambda namespace: False
        # Ids this process issues carry its mark, so that one of another process is known to be lost
        self._mark = secrets.token_hex(4)
        #: Told of a session whose time has run out, if a store must know
        self.on_expired: Callable[[Session], None] | None = None
        self._expiries = Expiries()
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep_on)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def __contains__(self, session: Session) -> bool:
        return self._sessions.get(session.id) is session

    def get(self, session_id: str) -> Session | None:
        """The live session of that id. One whose time has run out ends here, if not before."""
        session = self._sessions.get(session_id)
        # `at_rest` and `expires_at` spelt out: every step asks
        if session is None or session.current is not None or session.waiting is not None:
            return session
        if self.clock() >= session.used_at + session.ttl_s:
            self.remove(session, Ending.EXPIRED)
            return None
        return session

    def open(
        self, session_id: str | None = None, ttl_s: float | None = None, durability: str | None = None
    ) -> Session:
        """A new session at step 0. Raises SessionExists, NoCapacity, QuotaExceeded or InvalidValue."""
        if session_id is not None and self.get(session_id) is not None:
            raise SessionExists(f"session {session_id} is open already", session_id=session_id)
        promised = self._store.durabilities
        if durability is not None and durability not in promised:
            raise InvalidValue(
                f"durability {durability!r} is not what the store can promise: {', '.join(promised)}",
                field="durability",
            )
        session_id = session_id or self.new_id()
        try:
            self.check_quota(session_id)
        except QuotaExceeded:
            self._counters.rejected["session_quota"] += 1
            raise
        session = self.arrive(session_id)
        session.ttl_s = self._limits.ttl_s if ttl_s is None else ttl_s
        session.durability = durability or self._limits.durability
        self._store.reopen(session.id)
        self.settle(session)
        self._counters.opened += 1
        return session

    def new_id(self) -> str:
        """An id that nobody has."""
        return f"s-{self._mark}-{secrets.token_hex(8)}"

    def arrive(self, session_id: str) -> Session:
        """Room for a session that is not here yet. Raises NoCapacity."""
        self._check_capacity()
        session = Session(
            id=session_id,
            ttl_s=self._limits.ttl_s,
            durability=self._limits.durability,
            window=ReplayWindow(self._limits.replay_window),
            opened_at=time.time(),
            used_at=self.clock(),
        )
        self._sessions[session_id] = session
        self.in_namespace[namespace_of(session_id)] += 1
        return session

    def settle(self, session: Session) -> None:
        """A session has come: from now on its time runs."""
        session.used_at = self.clock()
        if len(self._expiries) > 2 * len(self._sessions) + 1024:  # mostly ended ones: let go of them
            self._expiries.keep(self.__contains__)
        self._expiries.add(session, session.expires_at)

    def drop(self, session: Session) -> None:
        """Forgets a session that a store keeps, or that did not come; its state here is freed."""
        session.end()
        self._residence.forget(session)
        del self._sessions[session.id]
        namespace = namespace_of(session.id)
        self.in_namespace[namespace] -= 1
        if not self.in_namespace[namespace]:
            del self.in_namespace[namespace]

    def remove(self, session: Session, ending: Ending | None) -> None:
        """Ends a session that no job moves, and frees its state. Without an ending it never was."""
        self.drop(session)
        if ending is not None:
            self._store.end(session.id, ending)
            self._counters.ended[ending.value] += 1
        if ending is Ending.EXPIRED and self.on_expired is not None:
            self.on_expired(session)

    def may_open(self, session_id: str) -> bool:
        """Whether step 0 opens that id: not if a session of it expired or was lost, which its client must
        learn first."""
        return self._ended_how(session_id) is None

    def absent(self, session_id: str) -> SessionNotFound | SessionExpired | SessionLost:
        """Why there is no such session."""
        how = self._ended_how(session_id)
        if how == "expired":
            self._counters.lost["expired"] += 1
            return SessionExpired(f"session {session_id} was idle for longer than its time to live")
        if how == "lost":
            self._counters.lost["process"] += 1
            return SessionLost(f"session {session_id} was kept in the memory of a process that ended")
        return SessionNotFound(f"there is no session {session_id}; step 0 opens it")

    def close(self) -> None:
        """Stops the clockwork."""
        self._sweeper.cancel()

    def _ended_how(self, session_id: str) -> str | None:
        if self._store.ending(session_id) is Ending.EXPIRED:
            return "expired"
        issued = _ISSUED_ID.fullmatch(client_id(session_id))
        return "lost" if issued is not None and issued[1] != self._mark else None

    def check_quota(self, session_id: str) -> None:
        """Raises QuotaExceeded if its namespace has no room for one more."""
        if self.full(namespace_of(session_id)):
            self.sweep()
            if self.full(namespace_of(session_id)):
                raise QuotaExceeded("as many sessions are open as the key may have", retry_after_s=1)

    def _check_capacity(self) -> None:
        if len(self._sessions) >= self._limits.sessions:
            self.sweep()
        if len(self._sessions) >= self._limits.sessions:
            self._counters.rejected["sessions"] += 1
            due = self._expiries.first - self.clock()
            raise NoCapacity(
                f"{len(self._sessions)} sessions are open, which is the most",
                retry_after_s=int(min(max(due, 1.0), 60.0)),
            )

    def _sweep_on(self) -> None:
        self.sweep()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep_on)

    def sweep(self) -> None:
        """Ends the sessions whose time has run out."""
        now = self.clock()
        for session in self._expiries.pop(now):
            if session not in self:
                continue
            if session.at_rest and session.expires_at <= now:
                self.remove(session, Ending.EXPIRED)
            else:
                self._expiries.add(session, max(session.expires_at, now + SWEEP_S))
