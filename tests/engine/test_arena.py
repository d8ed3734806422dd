"""The arena: what is written to a row is read from it, and from no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.engine.arena import Arena
from tests.engine.making import DEVICES

LAYERS, SLOTS, HIDDEN = 2, 5, 3


@pytest.fixture(params=DEVICES, ids=str)
def arena(request: pytest.FixtureRequest) -> Arena:
    """Every row filled with its number; the padding is zero."""
    arena = Arena(LAYERS, SLOTS, HIDDEN, request.param)
    for row in range(SLOTS):
        arena.load(row, np.full((2, LAYERS, HIDDEN), row + 1, np.float32))
    return arena


def test_a_new_arena_is_zero_and_knows_its_size() -> None:
    arena = Arena(LAYERS, SLOTS, HIDDEN, torch.device("cpu"))
    assert not arena.h.any()
    assert not arena.c.any()
    assert arena.padding == SLOTS
    assert arena.bytes == 2 * LAYERS * (SLOTS + 1) * HIDDEN * 4


def test_gather_gives_copies_in_the_order_asked_for(arena: Arena) -> None:
    h, c = arena.gather([3, 0, SLOTS, 3])
    assert h.shape == c.shape == (LAYERS, 4, HIDDEN)
    assert h[0, :, 0].tolist() == c[1, :, 2].tolist() == [4, 1, 0, 4]
    h += 100
    c += 100
    assert arena.gather([3])[0].max() == 4


def test_scatter_writes_the_rows_named_and_no_other(arena: Arena) -> None:
    h = torch.full((LAYERS, 2, HIDDEN), 50.0, device=arena.device)
    h[:, 1] = 60
    arena.scatter([4, 1], h, -h)
    expected = [1, 60, 3, 4, 50, 0]
    assert arena.h[1, :, 2].tolist() == expected
    assert arena.c[0, :, 0].tolist() == [1, -60, 3, 4, -50, 0]


def test_a_fetched_state_has_memory_of_its_own(arena: Arena) -> None:
    first, second = arena.fetch([2, 0])
    assert first.shape == (2, LAYERS, HIDDEN)
    assert first.dtype == np.float32
    assert (first == 3).all()
    assert (second == 1).all()
    assert not np.shares_memory(first, arena.h.cpu().numpy())
    first[:] = 9
    assert (arena.fetch([2])[0] == 3).all()


def test_h_and_c_keep_their_places_through_load_and_fetch(arena: Arena) -> None:
    state = np.arange(2 * LAYERS * HIDDEN, dtype=np.float32).reshape(2, LAYERS, HIDDEN)
    arena.load(1, state)
    np.testing.assert_array_equal(arena.fetch([1])[0], state)
    np.testing.assert_array_equal(arena.h[:, 1].cpu(), state[0])
    np.testing.assert_array_equal(arena.c[:, 1].cpu(), state[1])
    assert not arena.h[:, arena.padding].any()


def test_a_batch_of_states_is_fetched_into_memory_given_and_loaded_to_other_rows(arena: Arena) -> None:
    both = np.zeros((2, 2, LAYERS, HIDDEN), np.float32)
    assert arena.fetch([3, 0], out=both) is both
    arena.load_batch([1, 4], both + 0.5)
    assert arena.h[1, :, 2].tolist() == arena.c[0, :, 0].tolist() == [1, 4.5, 3, 4, 1.5, 0]
