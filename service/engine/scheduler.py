"""Who runs next. Ids and counts only, no tensors: a ticket is whatever the engine queues.

Oldest first, one kind a tick; a ticket that is not finished after its quantum goes behind those that wait, so
a long request takes turns with everybody instead of holding them up. Short ones have every second tick, if
they want it; and the ticks between are kept so small that nobody waits for long.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from service.engine.pace import Pace

Ticket = TypeVar("Ticket")
Admit = Callable[[Ticket], bool | None]

#: While nobody wants a single step, a tick may take so many times longer: larger ones are more efficient
PATIENCE = 4.0
#: Seconds after the last single step for which more of them are expected
LULL_S = 1.0


class Kind(enum.IntEnum):
    """What a ticket wants of a tick. Those of a kind run together."""

    SHORT = 0  # one step
    LONG = 1  # several
    TRACED = 2  # with their gates, which takes another way and many times longer


SHORT, LONG, TRACED = Kind  # each look at a member through its class is a tenth of what a ticket may cost


class Scheduler(Generic[Ticket]):
    """Rounds of tickets. `max_batch`: most tickets a tick. `quantum`: most steps of one ticket a tick.
    `tick_steps`: most steps of all tickets of a tick together. `target`: seconds that a tick of several steps
    should take at most, while there are short tickets."""

    def __init__(self, max_batch: int, quantum: int, tick_steps: int, target: float) -> None:
        self.max_batch, self.quantum, self.tick_steps, self.target = max_batch, quantum, tick_steps, target
        self._queues: list[deque[Ticket]] = [deque() for _ in Kind]  # by kind
        #: `add` of a short ticket, in one call: thousands of them may come for a tick
        self.add_short: Callable[[Ticket], None] = self._queues[SHORT].append
        self._paces = {LONG: Pace(), TRACED: Pace()}
        self._order = list(Kind)  # whose turn it is
        self.kind = SHORT  # of the newest tick
        self._now, self._short_at = 0.0, float("-inf")  # when it, and the newest of short ones, was picked

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    @property
    def short(self) -> int:
        """Short tickets that wait."""
        return len(self._queues[SHORT])

    @property
    def expecting(self) -> bool:
        """Whether short tickets come now and then."""
        return self._now - self._short_at < LULL_S

    def waiting(self, kind: Kind) -> int:
        """Tickets of a kind that wait."""
        return len(self._queues[kind])

    def add(self, ticket: Ticket, kind: Kind = LONG) -> None:
        """Behind all others of its kind: a new ticket, or one whose quantum is over."""
        self._queues[kind].append(ticket)

    def pick(self, admit: Admit[Ticket], now: float = 0.0) -> list[Ticket]:
        """Takes the next tickets, of one kind, oldest first, that `admit` says True to.

        False keeps the ticket in its place (no room for it now); those behind it are still asked, for one of
        them may be what frees the room. None drops it (it ended while it waited). A kind of which no ticket
        was taken keeps its turn, and another kind is asked: what runs already is what frees the room.
        """
        self._now = now
        kept = []  # those before the one that is picked: theirs is the next turn
        for kind in list(self._order):
            picked = self._take(kind, admit)
            if not picked:
                if self._queues[kind]:
                    kept.append(kind)
                continue
            self.kind = kind
            if kind is SHORT:
                self._short_at = now
            self._pass_on(kind, kept)
            return picked
        return []

    def _pass_on(self, kind: Kind, kept: list[Kind]) -> None:
        """The turn after one of a kind: of those that were passed over; then of the short ones, or of the
        others, whoever waited longer first."""
        others = [k for k in self._order if k is not kind and k not in kept and k is not SHORT]
        if kind is SHORT:
            self._order = [*kept, *others, kind]
        else:
            first = [] if SHORT in kept else [SHORT]
            self._order = [*kept, *first, *others, kind]

    def _take(self, kind: Kind, admit: Admit[Ticket]) -> list[Ticket]:
        queue, most = self._queues[kind], self.max_batch
        if kind in self._paces:
            most = self._paces[kind].widest(self._seconds, most)
        picked: list[Ticket] = []
        refused: list[Ticket] = []
        while queue and len(picked) < most:
            ticket = queue.popleft()
            verdict = admit(ticket)
            if verdict:
                picked.append(ticket)
            elif verdict is False:
                refused.append(ticket)
        queue.extendleft(reversed(refused))
        return picked

    def share(self, tickets: int) -> int:
        """Steps that each of the so many tickets picked gets in this tick, at least 1."""
        if self.kind is SHORT:
            return 1
        most = max(1, min(self.quantum, self.tick_steps // max(1, tickets)))
        return self._paces[self.kind].steps(max(1, tickets), self._seconds, most)

    def learn(self, rows: int, steps: int, seconds: float) -> None:
        """What the newest tick took: rows of all steps together, steps of its longest ticket."""
        if self.kind in self._paces and steps:
            self._paces[self.kind].learn(max(1, round(rows / steps)), steps, seconds)

    @property
    def _seconds(self) -> float:
        """What a tick of several steps may take now."""
        return self.target * (1.0 if self.expecting else PATIENCE)
