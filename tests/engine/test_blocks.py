"""Blocks: rows taken once and given back once, their contents their own, and empty blocks' memory let go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import blocks as module
from service.engine.blocks import Array, Blocks

SHAPE = (2, 3)


def filled(*numbers: float) -> Array:
    """Values [B, *SHAPE] that tell their number."""
    return np.stack([np.full(SHAPE, number, np.float32) for number in numbers])


def test_a_block_is_a_power_of_two_of_bytes_and_1024_rows_or_more() -> None:
    for shape, rows in (((2, 2, 256), 1024), ((2, 3, 100), 1747), ((2, 1, 6), 1365)):
        blocks = Blocks(shape)
        assert blocks.rows == rows
        size = rows * blocks.row_bytes
        assert 2 ** (size - 1).bit_length() - size < blocks.row_bytes
        assert blocks.bytes == 0


def test_rows_taken_together_are_a_run_of_the_lowest_block_with_room() -> None:
    blocks = Blocks(SHAPE, rows=4)
    assert blocks.acquire(3) == [0, 1, 2]
    assert blocks.acquire(3) == [3, 4, 5]
    assert blocks.is_run([0, 1, 2])
    assert not blocks.is_run([3, 4])  # two blocks
    assert not blocks.is_run([0, 2])
    blocks.release(1)
    assert blocks.acquire(2) == [1, 6]
    blocks.check_integrity({0, 1, 2, 3, 4, 5, 6})


def test_what_is_written_to_rows_of_several_blocks_is_read_from_them() -> None:
    blocks = Blocks(SHAPE, rows=4)
    blocks.acquire(12)
    blocks.write([9, 0, 5, 2], filled(9, 0, 5, 2))
    np.testing.assert_array_equal(blocks.read([0, 2, 5, 9]), filled(0, 2, 5, 9))
    np.testing.assert_array_equal(blocks.view(5), filled(5))
    blocks.view(6)[:] = 7
    np.testing.assert_array_equal(blocks.read([6, 5]), filled(7, 5))


def test_empty_blocks_give_their_memory_back_all_but_one() -> None:
    blocks = Blocks(SHAPE, rows=4)
    rows = blocks.acquire(16)
    assert blocks.bytes == 16 * 24
    for row in rows[4:]:
        blocks.release(row)
        blocks.check_integrity(set(range(16)) - set(rows[4 : row + 1]))
    assert blocks.bytes == 8 * 24
    assert blocks.acquire(12) == rows[4:]
    blocks.check_integrity(set(rows))
    assert (blocks.bytes, blocks.capacity) == (16 * 24, 16)


def test_a_row_that_is_not_taken_cannot_be_released() -> None:
    blocks = Blocks(SHAPE, rows=4)
    blocks.acquire(2)
    blocks.release(1)
    for row in (-1, 1, 3, 99):
        with pytest.raises(ValueError, match=f"row {row} is not taken"):
            blocks.release(row)


def test_without_memory_no_row_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(shape: tuple[int, ...], pinned: bool) -> Array:
        raise MemoryError

    blocks = Blocks(SHAPE, rows=4)
    blocks.acquire(3)
    with monkeypatch.context() as patched:
        patched.setattr(module, "empty", no_memory)
        with pytest.raises(MemoryError):
            blocks.acquire(2)
    blocks.check_integrity({0, 1, 2})
    assert blocks.acquire(2) == [3, 4]


def test_integrity_says_when_a_holder_and_the_blocks_disagree() -> None:
    blocks = Blocks(SHAPE, rows=4)
    blocks.acquire(2)
    for held in ({0}, {0, 1, 2}, set[int](), {0, 3}):
        with pytest.raises(RuntimeError, match="are held"):
            blocks.check_integrity(held)


@given(st.lists(st.tuples(st.integers(0, 6), st.randoms(use_true_random=False)), max_size=30))
def test_whatever_the_order_contents_stay_and_nothing_leaks(operations: list[tuple[int, object]]) -> None:
    """Each takes so many rows, and then gives some back at random."""
    blocks, held, number = Blocks(SHAPE, rows=4), dict[int, float](), 0
    for count, random in operations:
        rows = blocks.acquire(count)
        assert not set(rows) & set(held)
        for row in rows:
            held[row] = number = number + 1
        if rows:
            blocks.write(rows, filled(*(held[row] for row in rows)))
        for row in list(held):
            if random.random() < 0.4:  # type: ignore[attr-defined]
                blocks.release(row)
                del held[row]
        blocks.check_integrity(set(held))
        if held:
            np.testing.assert_array_equal(blocks.read(list(held)), filled(*held.values()))
    for row in held:
        blocks.release(row)
    assert blocks.bytes <= 4 * 24
