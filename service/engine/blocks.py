"""Host memory for many states, in blocks: it grows by a block at a time and gives empty ones back.

A state of its own array each would cost a hundred bytes of objects beside every 4 KB, and a copy each time it
moves. Here a batch of states is one copy a block, and rows are numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]

LEAST_ROWS = 1024


class Blocks:
    """Rows of one shape, float32, numbered from 0. A new row comes from the lowest block that has room, so
    that the highest ones run empty; an empty block's memory is let go, all but one's.

    pinned: page-locked memory, which a CUDA device copies from and to at full speed. rows: of a block; by
    default as many as fill a power of two of bytes, in which pinned memory is handed out, and at least 1,024.
    """

    def __init__(self, shape: tuple[int, ...], *, pinned: bool = False, rows: int = 0) -> None:
        self.shape, self.pinned = shape, pinned
        self.row_bytes = 4 * int(np.prod(shape))
        self.rows = rows or 2 ** (LEAST_ROWS * self.row_bytes - 1).bit_length() // self.row_bytes
        self.used = 0
        self._memory: list[Array | None] = []  # by block; None: the block is empty, its memory let go
        self._free: list[list[int]] = []  # by block: its free rows
        self._roomy: list[int] = []  # a heap: the blocks with a free row
        self._taken = bytearray()  # by row
        self._spare = -1  # the one empty block that keeps its memory

    @property
    def capacity(self) -> int:
        """Rows there are numbers for; most of the free ones have memory too."""
        return len(self._taken)

    @property
    def bytes(self) -> int:
        """Of all memory held."""
        return sum(self.rows * self.row_bytes for memory in self._memory if memory is not None)

    def acquire(self, count: int) -> list[int]:
        """So many free rows, now taken. Raises MemoryError or RuntimeError if there is no memory; then none
        is taken."""
        taken: list[int] = []
        try:
            while len(taken) < count:
                block = self._block_with_room()
                free = self._free[block]
                part = free[: -1 - count + len(taken) : -1]  # from the end, the next ones to be used
                del free[len(free) - len(part) :]
                if not free:
                    heapq.heappop(self._roomy)
                for row in part:
                    self._taken[row] = 1
                taken += part
        finally:
            self.used += len(taken)
            if len(taken) < count:
                for row in taken:
                    self.release(row)
        return taken

    def release(self, row: int) -> None:
        """Gives a taken row back. Raises ValueError for one that isn't taken."""
        if not 0 <= row < len(self._taken) or not self._taken[row]:
            raise ValueError(f"row {row} is not taken")
        self._taken[row] = 0
        self.used -= 1
        block = row // self.rows
        free = self._free[block]
        if not free:
            heapq.heappush(self._roomy, block)
        free.append(row)
        if len(free) == self.rows:
            if self._spare >= 0:
                self._memory[max(block, self._spare)] = None
                block = min(block, self._spare)
            self._spare = block
            self._free[row // self.rows].sort(reverse=True)  # in order again: rows in a run are one copy

    def view(self, row: int, count: int = 1) -> Array:
        """Rows from `row` on, [count, *shape], all of one block; not a copy."""
        memory = self._memory[row // self.rows]
        assert memory is not None  # noqa: S101  a block with a taken row has memory
        at = row % self.rows
        return memory[at : at + count]

    def is_run(self, rows: Sequence[int]) -> bool:
        """Whether these rows lie one behind the other in one block."""
        first, last = rows[0], rows[-1]
        if last - first != len(rows) - 1 or first // self.rows != last // self.rows:
            return False
        return all(row == first + n for n, row in enumerate(rows))

    def read(self, rows: Sequence[int]) -> Array:
        """Copies of these rows, [B, *shape], in page-locked memory if the blocks are."""
        out = empty((len(rows), *self.shape), self.pinned)
        for memory, places, at in self._by_block(rows):
            out[places] = memory[at]
        return out

    def write(self, rows: Sequence[int], values: Array) -> None:
        """Writes values [B, *shape] to these rows."""
        for memory, places, at in self._by_block(rows):
            memory[at] = values[places]

    def _by_block(self, rows: Sequence[int]) -> Iterator[tuple[Array, NDArray[np.intp], NDArray[np.intp]]]:
        """For each block of these rows: its memory, places among `rows`, and places in the block."""
        blocks, offsets = np.divmod(np.array(rows, np.intp), self.rows)
        order = np.argsort(blocks, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
            memory = self._memory[blocks[places[0]]]
            assert memory is not None  # noqa: S101  a block with a taken row has memory
            yield memory, places, offsets[places]

    def _block_with_room(self) -> int:
        """The lowest block that has a free row, with memory."""
        if not self._roomy:
            block = len(self._memory)
            memory = empty((self.rows, *self.shape), self.pinned)
            first = self.capacity
            self._memory.append(memory)
            self._free.append(list(range(first + self.rows - 1, first - 1, -1)))
            self._taken.extend(bytes(self.rows))
            heapq.heappush(self._roomy, block)
            return block
        block = self._roomy[0]
        if self._memory[block] is None:
            self._memory[block] = empty((self.rows, *self.shape), self.pinned)
        elif block == self._spare:
            self._spare = -1
        return block

    def check_integrity(self, held: set[int]) -> None:
        """Raises RuntimeError unless exactly the rows in `held` are taken, and the rest are free once."""
        if len(held) != self.used or sum(self._taken) != self.used or not all(self._taken[r] for r in held):
            raise RuntimeError(f"{self.used} rows are taken, {len(held)} are held, or not the same ones")
        free = [row for rows in self._free for row in rows]
        if len(free) + self.used != self.capacity or any(self._taken[row] for row in free):
            raise RuntimeError("a row is neither free nor taken, or both")
        if sorted(self._roomy) != [block for block, rows in enumerate(self._free) if rows]:
            raise RuntimeError("the blocks with room are not those that have free rows")
        for block, rows in enumerate(self._free):
            empty_block = len(rows) == self.rows
            if (self._memory[block] is not None) != (not empty_block or block == self._spare):
                raise RuntimeError(f"block {block} has memory it does not need, or needs memory")


def empty(shape: tuple[int, ...], pinned: bool) -> Array:
    """Memory with anything in it."""
    if not pinned:
        return np.empty(shape, np.float32)
    memory: Array = torch.empty(shape, pin_memory=True).numpy()
    return memory
