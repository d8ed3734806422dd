"""The host tier: states that were spilled from the device, or came from outside, and are not being stepped.

In their order of arrival, which is the order in which they were last wanted: the first are the coldest, and
go on to the store.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena
from service.engine.blocks import Blocks
from service.engine.jobs import Place, StateHandle


class HostPool:
    """Every state whose place is HOST, in rows [2, layers, hidden] float32; and how many are in the store.

    Nobody else moves a state to or from HOST or STORE.
    """

    def __init__(self, layers: int, hidden: int, *, pinned: bool = False, block_rows: int = 0) -> None:
        self.blocks = Blocks((2, layers, hidden), pinned=pinned, rows=block_rows)
        self.stored = 0  # states whose place is STORE
        self._holders: list[StateHandle | None] = []  # by row
        # A ring of rows, coldest behind the anchor: two links of 4 bytes a row, where a dict takes 100.
        # Row r is node r + 1; node 0 is the anchor.
        self._next, self._previous = array("i", [0]), array("i", [0])
        self._lent: set[int] = set()  # rows the store has been given and has not answered for

    @property
    def used(self) -> int:
        """States held here."""
        return self.blocks.used

    # Device and host

    def put(self, states: Sequence[StateHandle], arena: Arena) -> None:
        """Copies states from the arena's rows, where they stay taken, and makes their place HOST."""
        source = [state.slot for state in states]
        rows = self._acquire(len(states))
        try:
            if self.blocks.is_run(rows):
                arena.fetch(source, out=self.blocks.view(rows[0], len(rows)))
            else:
                self.blocks.write(rows, arena.fetch(source))
        except Exception:
            self._give_back(rows)
            raise
        self._hold(states, rows)

    def load(self, states: Sequence[StateHandle], arena: Arena, rows: Sequence[int]) -> None:
        """Copies states to the arena's rows, all at once; here they stay until they are released."""
        if len(states) == 1:
            arena.load(rows[0], self.blocks.view(states[0].slot)[0])
        else:
            arena.load_batch(rows, self.blocks.read([state.slot for state in states]))

    # From outside, and out of it

    def adopt(self, states: Sequence[StateHandle], values: NDArray[np.float32]) -> None:
        """Takes in values [B, 2, layers, hidden] as the contents of states that are FRESH or in the STORE."""
        rows = self._acquire(len(states))
        try:
            self.blocks.write(rows, values)
        except Exception:
            self._give_back(rows)
            raise
        self.stored -= sum(state.place is Place.STORE for state in states)
        self._hold(states, rows)

    def read(self, state: StateHandle) -> NDArray[np.float32]:
        """A copy, [2, layers, hidden]."""
        copy: NDArray[np.float32] = self.blocks.view(state.slot)[0].copy()
        return copy

    def release(self, state: StateHandle) -> None:
        """Lets go of a state that is HOST or STORE; its place is FRESH."""
        if state.place is Place.STORE:
            self.stored -= 1
        else:
            self._unlink(state.slot)
            self.blocks.release(state.slot)
        state.place, state.slot = Place.FRESH, -1

    # Host and store

    def lend(self, count: int) -> tuple[list[StateHandle], NDArray[np.float32]]:
        """The coldest states that no job wants, at most `count`, and copies of them [B, 2, layers, hidden].

        They stay here, and usable, until `confirm`. One loan at a time.
        """
        if self._lent:
            raise RuntimeError("the states lent before are not confirmed")
        lent: list[StateHandle] = []
        node = self._next[0]
        while node and len(lent) < count:
            state = self._holders[node - 1]
            assert state is not None  # noqa: S101  a row in the ring has a holder
            if state.job is None:
                lent.append(state)
            node = self._next[node]
        rows = [state.slot for state in lent]
        copies = self.blocks.read(rows) if rows else np.empty((0, *self.blocks.shape), np.float32)
        self._lent.update(rows)
        return lent, copies

    def confirm(self, states: Sequence[StateHandle], kept: bool) -> list[StateHandle]:
        """The loan is over; `kept`: the store has them. Returns the states that are in the store now; the
        others were moved or wanted meanwhile, and what the store has of them is old."""
        lent, self._lent = self._lent, set()
        gone = []
        for state in states if kept else ():
            # a state that left its row and came back to the same one is new: `_unlink` took the row off
            if state.place is Place.HOST and state.slot in lent and state.job is None:
                self.release(state)
                state.place = Place.STORE
                self.stored += 1
                gone.append(state)
        return gone

    # How

    def _acquire(self, count: int) -> list[int]:
        rows = self.blocks.acquire(count)
        new = self.blocks.capacity - len(self._holders)
        if new:
            self._holders += [None] * new
            self._next.extend([0] * new)
            self._previous.extend([0] * new)
        return rows

    def _give_back(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.blocks.release(row)

    def _hold(self, states: Sequence[StateHandle], rows: Sequence[int]) -> None:
        """Makes rows the states', as the warmest."""
        links, back = self._next, self._previous
        last = back[0]
        for state, row in zip(states, rows, strict=True):
            state.place, state.slot = Place.HOST, row
            self._holders[row] = state
            links[last], back[row + 1] = row + 1, last
            last = row + 1
        links[last], back[0] = 0, last

    def _unlink(self, row: int) -> None:
        self._holders[row] = None
        self._lent.discard(row)
        links, back = self._next, self._previous
        after, before = links[row + 1], back[row + 1]
        links[before], back[after] = after, before

    def check_integrity(self) -> None:
        """Raises RuntimeError unless each taken row has one holder, which knows it, and is in the ring."""
        held = {row for row, state in enumerate(self._holders) if state is not None}
        self.blocks.check_integrity(held)
        for row in held:
            state = self._holders[row]
            if state is None or state.place is not Place.HOST or state.slot != row:
                raise RuntimeError(f"the holder of row {row} is elsewhere")
        ring: list[int] = []
        node = self._next[0]
        while node and len(ring) <= len(held):
            if self._previous[self._next[node]] != node:
                raise RuntimeError(f"the ring is broken at row {node - 1}")
            ring.append(node - 1)
            node = self._next[node]
        if len(ring) != len(held) or set(ring) != held:
            raise RuntimeError("the ring does not hold each row once")
        if not self._lent <= held:
            raise RuntimeError("a row is lent that nobody holds")
