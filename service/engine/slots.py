"""Which rows of the arena are taken, and by nobody twice. Ids only: no tensor is touched here."""

from __future__ import annotations


class SlotTable:
    """Hands out the numbers 0 .. slots-1. Last released, first taken, so that warm rows are used again."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.unused = list(range(slots - 1, -1, -1))  # for others to count
        self._taken = bytearray(slots)

    @property
    def free(self) -> int:
        return len(self.unused)

    def acquire(self) -> int:
        """A free slot, now taken. Raises IndexError if there is none: see `free`."""
        slot = self.unused.pop()
        self._taken[slot] = 1
        return slot

    def release(self, slot: int) -> None:
        """Gives a taken slot back. Raises ValueError for one that isn't taken: a double release would
        hand one row to two sessions."""
        taken = self._taken
        if not 0 <= slot < self.slots or not taken[slot]:
            raise ValueError(f"slot {slot} is not taken")
        taken[slot] = 0
        self.unused.append(slot)

    def check_integrity(self, held: set[int]) -> None:
        """Raises RuntimeError unless exactly the slots in `held` are taken, and the rest are free once."""
        taken = {slot for slot in range(self.slots) if self._taken[slot]}
        if taken != held:
            raise RuntimeError(f"taken slots {sorted(taken ^ held)} are not the held ones")
        if sorted(self.unused) != sorted(set(range(self.slots)) - taken):
            raise RuntimeError("a slot is neither free nor taken, or both")
