"""Who runs next. Ids and counts only, no tensors: a ticket is whatever the engine queues.

Oldest first; a ticket that is not finished after its quantum goes behind those that wait, so a long request
takes turns with everybody instead of holding them up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket")


class Scheduler(Generic[Ticket]):
    """A round of tickets. `max_batch`: most tickets a tick. `quantum`: most steps of one ticket a tick.
    `tick_steps`: most steps of all tickets of a tick together, so that a full one does not take long."""

    def __init__(self, max_batch: int, quantum: int, tick_steps: int) -> None:
        self.max_batch, self.quantum, self.tick_steps = max_batch, quantum, tick_steps
        self._queue: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, ticket: Ticket) -> None:
        """Behind all others: a new ticket, or one whose quantum is over."""
        self._queue.append(ticket)

    def share(self, tickets: int) -> int:
        """Steps that each of so many tickets gets in one tick, at least 1."""
        return max(1, min(self.quantum, self.tick_steps // max(1, tickets)))

    def pick(self, admit: Callable[[Ticket], bool | None]) -> list[Ticket]:
        """Takes the next tickets, oldest first, that `admit` says True to.

        False keeps the ticket in its place (no room for it now); those behind it are still asked, for one of
        them may be what frees the room. None drops it (it ended while it waited).
        """
        picked: list[Ticket] = []
        refused: list[Ticket] = []
        queue = self._queue
        while queue and len(picked) < self.max_batch:
            ticket = queue.popleft()
            verdict = admit(ticket)
            if verdict:
                picked.append(ticket)
            elif verdict is False:
                refused.append(ticket)
        queue.extendleft(reversed(refused))
        return picked
