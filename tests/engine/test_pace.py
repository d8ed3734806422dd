"""What a tick may take on. Seconds here are told, none pass."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.engine.pace import BASE, FIRST, OUTLIER, Pace

MS = 1e-3


def make_pace(**each: float) -> Pace:
    """b8=100 says that a step of eight tickets took 100 us."""
    pace = Pace()
    for batch, microseconds in each.items():
        pace.learn(int(batch[1:]), 10, (10 + BASE) * microseconds * 1e-6)
    return pace


def test_a_first_tick_of_which_nothing_is_known_is_small() -> None:
    assert Pace().steps(8, MS, 512) == FIRST
    assert Pace().steps(8, MS, 2) == 2


def test_a_tick_has_as_many_steps_as_its_target_allows() -> None:
    assert make_pace(b8=100).steps(8, MS, 512) == 10 - BASE
    assert make_pace(b8=100).steps(8, 4 * MS, 512) == 40 - BASE
    assert make_pace(b8=100).steps(8, 4 * MS, 16) == 16


def test_a_step_that_takes_longer_than_the_target_is_made_all_the_same() -> None:
    assert make_pace(b8=5000).steps(8, MS, 512) == 1


def test_a_clock_that_stands_still_bounds_nothing() -> None:
    assert make_pace(b8=0).steps(8, MS, 512) == 512


def test_a_size_that_was_not_seen_is_taken_for_slower_than_it_can_be() -> None:
    pace = make_pace(b2=50, b64=600)
    assert pace.expected(3) == pytest.approx(50e-6)  # the same size
    assert pace.expected(8) == pytest.approx(200e-6)  # rows are never dearer in a larger batch
    assert pace.expected(1) == pytest.approx(50e-6)  # and a step never cheaper


def test_a_tick_takes_no_more_tickets_than_one_step_of_all_allows() -> None:
    pace = make_pace(b64=200, b128=400)
    assert pace.widest(MS, 256) == 127
    assert pace.widest(2 * MS, 200) == 200
    assert pace.widest(MS / 1000, 256) == 1


def test_one_tick_that_the_machine_held_up_changes_little() -> None:
    pace = make_pace(b8=100)
    pace.learn(8, 10, 1.0)
    assert pace.expected(8) == pytest.approx(100e-6 * (1 + (OUTLIER - 1) / 8))


def test_what_has_changed_for_good_is_learnt() -> None:
    pace = make_pace(b8=100)
    for _ in range(50):
        pace.learn(8, 10, (10 + BASE) * 400e-6)
    assert pace.expected(8) == pytest.approx(400e-6, rel=0.05)
    for _ in range(50):
        pace.learn(8, 10, (10 + BASE) * 100e-6)
    assert pace.expected(8) == pytest.approx(100e-6, rel=0.05)


@given(
    base=st.floats(0, 900e-6),
    step=st.floats(1e-6, 5e-3),
    row=st.floats(0, 100e-6),
    batch=st.integers(1, 256),
)
@example(base=0.0, step=0.000778, row=0.0, batch=1)  # two steps look cheap from ticks of one
@example(base=0.0, step=0.00075, row=0.0, batch=1)
def test_the_ticks_of_a_machine_settle_below_the_target(
    base: float, step: float, row: float, batch: int
) -> None:
    """A machine whose tick takes base + steps (step + row batch): the last ticks keep the target, or are one
    step."""
    pace, longest = Pace(), []
    for _ in range(300):
        steps = pace.steps(batch, MS, 512)
        seconds = base + steps * (step + row * batch)
        longest.append(0.0 if steps == 1 else seconds)
        pace.learn(batch, steps, seconds)
    assert max(longest[-20:]) <= 1.5 * MS * (1 + 1e-9)
