"""The third tier: states that even host memory is not for are parked in the store, and fetched when wanted.

Both ways in batches. Parking is nobody's request and waits for its turn of the loop; what is wanted in one
turn is fetched together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.engine.engine import Engine
from service.engine.jobs import Place, StateHandle
from service.sessions.counters import Counters
from service.sessions.session import Session, Ticket
from service.sessions.store import Store, failure_of

log = logging.getLogger("cellstate")

#: Most states parked in one turn of the loop, so that a request that comes meanwhile waits less than 1 ms
PARK_BATCH = 256
RETRY_S = 1.0

Wanted = Sequence[tuple[Session, Ticket]]
Fetched = Callable[[Session, Ticket, BaseException | None], None]


class Residence:
    """Keeps at most about `most` states in host memory. `on_fetched` gets each session whose state is back,
    with the ticket that wanted it; or with the error why it isn't, and then the session is where it was.

    Create it on the running loop; `close` before the loop ends.
    """

    def __init__(
        self, engine: Engine, store: Store, most: int, counters: Counters, on_fetched: Fetched
    ) -> None:
        self._engine, self._store, self._most = engine, store, most
        self._counters, self._on_fetched = counters, on_fetched
        self._loop = asyncio.get_running_loop()
        self._parking = False  # a batch is on its way, or was refused a moment ago
        self._again: asyncio.TimerHandle | None = None
        self._wanted: list[tuple[Session, Ticket]] = []  # in this turn of the loop
        self._asked: dict[Session, Ticket] = {}  # the store has not answered yet

    def forget(self, session: Session) -> None:
        """Frees a session's state, wherever it is. Raises RuntimeError while it has a job."""
        stored = session.state.place is Place.STORE
        self._engine.forget(session.state)
        if stored:
            self._store.drop([session.id])

    # To the store

    def tidy_soon(self) -> None:
        """Parks a batch behind the callbacks that are ready, and more behind that, if the host holds more
        than it should. To be called when it may have grown."""
        if self._engine.on_host > self._most and not self._parking:
            self._parking = True
            self._loop.call_soon(self._park)

    def _park(self) -> None:
        over = self._engine.on_host - self._most
        # An eighth more than need be: not a handful of states after every tick
        states, values = self._engine.host.lend(max(0, min(PARK_BATCH, over + self._most // 8)))
        if not states:
            self._parked(states, None)
            return
        try:
            pending = self._store.park([state.name for state in states], values)
        except Exception as error:  # noqa: BLE001  as good as a future that fails
            self._parked(states, error)
            return
        if pending is None:
            self._parked(states, None)
        else:
            pending.add_done_callback(lambda done: self._parked(states, failure_of(done)))

    def _parked(self, states: Sequence[StateHandle], error: BaseException | None) -> None:
        gone = self._engine.host.confirm(states, kept=error is None)
        self._counters.parked += len(gone)
        if error is not None:
            about = {"event": "not_parked", "states": len(states)}
            log.warning("the store did not take idle states, they stay: %s", error, extra=about)
            self._again = self._loop.call_later(RETRY_S, self._try_again)
            return
        if len(gone) < len(states):  # moved, wanted or ended meanwhile: what the store has is old
            kept = set(gone)
            self._store.drop([state.name for state in states if state not in kept])
        self._parking = False
        if states:  # else all of them have jobs, and the next tick comes
            self.tidy_soon()

    def _try_again(self) -> None:
        self._parking = False
        self.tidy_soon()

    # From the store

    def fetch(self, session: Session, ticket: Ticket) -> None:
        """Brings back the state of a session whose place is STORE. One ticket at a time may want it."""
        self._wanted.append((session, ticket))
        self._asked[session] = ticket
        if len(self._wanted) == 1:
            self._loop.call_soon(self._ask)

    def _ask(self) -> None:
        wanted, self._wanted = self._wanted, []
        try:
            found = self._store.fetch([session.id for session, _ in wanted])
        except Exception as error:  # noqa: BLE001  as good as a future that fails
            self._back(wanted, None, error)
            return
        if isinstance(found, asyncio.Future):
            found.add_done_callback(partial(self._answered, wanted))
        else:
            self._back(wanted, found, None)

    def _answered(self, wanted: Wanted, found: asyncio.Future[NDArray[np.float32]]) -> None:
        error = failure_of(found)
        self._back(wanted, None if error is not None else found.result(), error)

    def _back(self, wanted: Wanted, values: NDArray[np.float32] | None, error: BaseException | None) -> None:
        if values is not None:
            try:
                self._engine.host.adopt([session.state for session, _ in wanted], values)
                self._counters.fetched += len(wanted)
            except Exception as failure:  # noqa: BLE001  no memory, or not what was parked
                error = failure
        for session, ticket in wanted:
            del self._asked[session]
            self._on_fetched(session, ticket, error)
        if error is None:
            self._store.drop([session.id for session, _ in wanted])

    def check_integrity(self, sessions: Iterable[Session]) -> None:
        """Raises RuntimeError unless the sessions in the store are as many as the pool says, and each that
        waits for the store is there. sessions: all."""
        stored = {session for session in sessions if session.state.place is Place.STORE}
        if len(stored) != self._engine.host.stored:
            raise RuntimeError("sessions in the store are not as many as were parked and not fetched")
        for session, ticket in self._asked.items():
            if session not in stored or session.current is not ticket:
                raise RuntimeError(f"session {session.id} is asked for and not in the store")

    def close(self, error: BaseException) -> None:
        """Stops the clockwork, and answers those who wait for the store with the error."""
        self._parking = True
        if self._again is not None:
            self._again.cancel()
        for ticket in self._asked.values():
            ticket.settle(error=error)
