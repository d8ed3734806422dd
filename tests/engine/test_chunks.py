"""Chunks of several lengths: every step of every session once, in an order that kernels can take."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.engine.chunks import Chunk

#: Longest first, as a batch's sessions come
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(lambda lengths: sorted(lengths)[::-1])


def inputs_of(lengths: list[int], width: int = 2) -> list[NDArray[np.float32]]:
    """Every step says whose it is, and which."""
    rows = [np.zeros((t, width), np.float32) for t in lengths]
    for b, x in enumerate(rows):
        x[:, 0], x[:, 1] = b, np.arange(len(x))
    return rows


@given(LENGTHS)
def test_every_step_of_every_session_is_one_row(lengths: list[int]) -> None:
    chunk = Chunk(inputs_of(lengths))
    assert chunk.rows == sum(lengths)
    places = [np.arange(chunk.rows)[index] for index in chunk.indices]
    assert [len(index) for index in places] == lengths
    assert sorted(np.concatenate(places)) == list(range(chunk.rows))


@given(LENGTHS)
def test_a_steps_rows_are_those_of_the_sessions_that_still_run_in_their_order(lengths: list[int]) -> None:
    inputs = inputs_of(lengths)
    chunk = Chunk(inputs)
    rows = chunk.flat(inputs)
    assert len(chunk.counts) == len(chunk.firsts) == lengths[0]
    for t, (first, count) in enumerate(zip(chunk.firsts, chunk.counts, strict=True)):
        running = [b for b, length in enumerate(lengths) if t < length]
        assert running == list(range(count))  # a prefix
        assert rows[first : first + count].tolist() == [[b, t] for b in running]


@given(LENGTHS)
def test_indices_find_again_what_flat_has_put_away(lengths: list[int]) -> None:
    inputs = inputs_of(lengths)
    chunk = Chunk(inputs)
    flat = chunk.flat(inputs)
    for index, x in zip(chunk.indices, inputs, strict=True):
        np.testing.assert_array_equal(flat[index], x)


@given(LENGTHS)
def test_tokens_are_as_good_as_rows(lengths: list[int]) -> None:
    tokens = [1000 * b + np.arange(t) for b, t in enumerate(lengths)]
    chunk = Chunk(tokens)
    flat = chunk.flat(tokens)
    assert (flat.shape, flat.dtype) == ((sum(lengths),), np.dtype(np.int64))
    for index, x in zip(chunk.indices, tokens, strict=True):
        np.testing.assert_array_equal(flat[index], x)


@given(LENGTHS, st.integers(1, 200))
def test_blocks_are_all_steps_in_order_each_once(lengths: list[int], most: int) -> None:
    chunk = Chunk(inputs_of(lengths))
    blocks = chunk.blocks(most)
    assert [t for block in blocks for t in range(block.first, block.last)] == list(range(lengths[0]))
    assert [row for b in blocks for row in range(b.row, b.row + b.rows)] == list(range(chunk.rows))
    for block in blocks:
        assert block.row == chunk.firsts[block.first]
        assert block.rows == chunk.counts[block.first : block.last].sum()


@given(LENGTHS, st.integers(1, 200))
def test_a_block_is_as_large_as_it_may_be(lengths: list[int], most: int) -> None:
    """At most so many rows, or one step; and the next step would not have fitted in."""
    chunk = Chunk(inputs_of(lengths))
    blocks = chunk.blocks(most)
    for block in blocks:
        assert block.rows <= most or block.last == block.first + 1
    for block in blocks[:-1]:
        assert block.rows + chunk.counts[block.last] > most


def test_kernels_read_its_numbers_as_64_bits() -> None:
    chunk = Chunk(inputs_of([3, 1]))
    for numbers in (chunk.counts, chunk.firsts):
        assert numbers.dtype == np.int64
    assert (chunk.counts.tolist(), chunk.firsts.tolist()) == ([2, 1, 1], [0, 2, 3])
