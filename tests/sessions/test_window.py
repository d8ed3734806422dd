"""The replay window: a retry is answered with what was said, or refused; never guessed."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.errors import StepConflict
from service.sessions.inputs import Steps
from service.sessions.replies import PLAIN, Options, Reply
from service.sessions.window import Committed, ReplayWindow


def inputs(first: int, count: int, seed: int = 0) -> Steps:
    """Steps whose inputs tell their number."""
    rows = np.arange(first, first + count, dtype=np.float64)[:, None] + [0, 1000 + seed]
    return Steps(rows.astype(np.float32), rows.tobytes())


def committed(first: int, count: int, options: Options = PLAIN) -> Committed:
    """A request whose outputs tell the number of their step, and of their request."""
    outputs = np.array([[t, first] for t in range(first, first + count)], np.float64)
    return Committed(inputs(first, count).raw, Reply("a", first, first + count, outputs, options))


def make_window(*counts: int, limit: int = 16) -> tuple[ReplayWindow, int]:
    """A window after requests of so many steps, and the next step."""
    window, at = ReplayWindow(limit), 0
    for count in counts:
        window.add(committed(at, count))
        at += count
    return window, at


def test_a_retry_gets_the_stored_reply_said_to_be_replayed() -> None:
    window, end = make_window(3, 1, 5)
    for first, count in ((0, 3), (3, 1), (4, 5)):
        reply = window.answer("a", first, inputs(first, count), PLAIN, end)
        assert reply.replayed
        assert (reply.step, reply.next_step) == (first, first + count)
        np.testing.assert_array_equal(reply.outputs, committed(first, count).reply.outputs)


@pytest.mark.parametrize(("first", "count"), [(0, 2), (1, 2), (2, 3), (1, 7), (0, 9), (3, 2)])
def test_a_retry_in_other_pieces_is_put_together(first: int, count: int) -> None:
    """A part of one request, pieces that begin and end within requests, several at once, and all."""
    window, end = make_window(3, 1, 5)
    reply = window.answer("a", first, inputs(first, count), PLAIN, end)
    assert (reply.step, reply.next_step, reply.replayed) == (first, first + count, True)
    assert reply.session_id == "a"
    assert reply.outputs[:, 0].tolist() == list(range(first, first + count))


@pytest.mark.parametrize(("first", "count"), [(0, 3), (3, 1), (4, 5), (2, 3), (0, 9)])
def test_other_inputs_are_a_conflict(first: int, count: int) -> None:
    window, end = make_window(3, 1, 5)
    with pytest.raises(StepConflict, match="other inputs") as raised:
        window.answer("a", first, inputs(first, count, seed=1), PLAIN, end)
    assert raised.value.facts["expected_step"] == 9


def test_one_other_number_at_any_place_is_a_conflict() -> None:
    window, end = make_window(4, 4)
    for at in range(8):
        rows = np.frombuffer(inputs(0, 8).raw).copy().reshape(8, 2)
        rows[at, 1] = np.nextafter(rows[at, 1], 0)
        for first, count in ((0, 8), (at, 1), (4 * (at // 4), 4)):
            part = rows[first : first + count]
            with pytest.raises(StepConflict, match="other inputs"):
                window.answer("a", first, Steps(part.astype(np.float32), part.tobytes()), PLAIN, end)


def test_other_options_are_a_conflict() -> None:
    window = ReplayWindow(16)
    window.add(committed(0, 2, Options(gates=True)))
    window.add(committed(2, 2))
    assert window.answer("a", 0, inputs(0, 2), Options(gates=True), 4).replayed
    for first, count, options in (
        (0, 2, PLAIN), (2, 2, Options(state=True)), (0, 4, Options(gates=True)), (1, 1, Options(gates=True)),
    ):  # fmt: skip
        with pytest.raises(StepConflict, match="other options"):
            window.answer("a", first, inputs(first, count), options, 4)


def test_a_request_that_is_only_partly_committed_is_a_conflict() -> None:
    window, end = make_window(3, 3)
    for first, count in ((5, 2), (3, 4), (0, 7)):
        with pytest.raises(StepConflict, match="partly committed") as raised:
            window.answer("a", first, inputs(first, count), PLAIN, end)
        assert raised.value.facts["expected_step"] == 6


def test_the_newest_limit_steps_are_answered_and_no_older_one() -> None:
    window, end = make_window(*[1] * 40, limit=16)
    for first in range(24, 40):
        assert window.answer("a", first, inputs(first, 1), PLAIN, end).outputs[0, 0] == first
    assert window.answer("a", 24, inputs(24, 16), PLAIN, end).replayed
    for first, count in ((23, 1), (0, 1), (23, 17)):
        with pytest.raises(StepConflict, match="older than the newest 16"):
            window.answer("a", first, inputs(first, count), PLAIN, end)
    assert len(window) == 16


def test_a_step_beyond_the_limit_is_too_old_even_if_its_request_is_still_held() -> None:
    window, end = make_window(10, 10, limit=16)
    assert window.answer("a", 4, inputs(4, 16), PLAIN, end).replayed
    with pytest.raises(StepConflict, match="older"):
        window.answer("a", 3, inputs(3, 1), PLAIN, end)
    with pytest.raises(StepConflict, match="older"):
        window.answer("a", 0, inputs(0, 10), PLAIN, end)


def test_a_request_longer_than_the_window_is_answered_while_it_is_the_newest() -> None:
    window, end = make_window(5, 50, limit=16)
    assert window.answer("a", 5, inputs(5, 50), PLAIN, end).replayed
    assert window.answer("a", 39, inputs(39, 16), PLAIN, end).replayed
    with pytest.raises(StepConflict, match="older"):
        window.answer("a", 5, inputs(5, 1), PLAIN, end)
    window.add(committed(55, 1))
    with pytest.raises(StepConflict, match="older"):
        window.answer("a", 5, inputs(5, 50), PLAIN, 56)


def test_an_empty_window_answers_nothing() -> None:
    """As after a restore at a later step: what was before is not known here."""
    with pytest.raises(StepConflict) as raised:
        ReplayWindow(16).answer("a", 3, inputs(3, 2), PLAIN, 5)
    assert raised.value.facts["expected_step"] == 5


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20), st.data())
def test_whatever_was_committed_a_retry_is_the_same_numbers_or_a_conflict(
    counts: list[int], limit: int, data: st.DataObject
) -> None:
    window, end = make_window(*counts, limit=limit)
    first = data.draw(st.integers(0, end - 1))
    count = data.draw(st.integers(1, end - first))
    newest = (end - counts[-1], counts[-1])
    reachable = first >= end - limit or (first, count) == newest
    if not reachable:
        with pytest.raises(StepConflict):
            window.answer("a", first, inputs(first, count), PLAIN, end)
    else:
        reply = window.answer("a", first, inputs(first, count), PLAIN, end)
        assert reply.outputs[:, 0].tolist() == list(range(first, first + count))
    assert len(window) <= limit


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_a_plain_reply_is_kept_as_bytes_and_answered_to_the_last_bit(
    kind: type[np.float64] | type[np.float32],
) -> None:
    outputs: NDArray[np.floating] = np.random.default_rng(3).standard_normal((5, 7)).astype(kind)
    outputs[0, :4] = [np.nextafter(kind(1), 2), -0.0, 1e-38, 1e38]
    window = ReplayWindow(16)
    window.add(Committed(inputs(0, 5).raw, Reply("a", 0, 5, outputs)))
    reply = window.answer("a", 0, inputs(0, 5), PLAIN, 5)
    assert reply.outputs.dtype == outputs.dtype
    assert reply.outputs.tobytes() == outputs.tobytes()
    assert window._records is not None
    assert [type(record) for record in window._records] == [bytes]


def test_steps_far_on_are_as_good_as_early_ones() -> None:
    window, at = ReplayWindow(16), 2**53 - 20
    for step in range(at, at + 8):
        window.add(committed(step, 1))
    reply = window.answer("a", at + 3, inputs(at + 3, 2), PLAIN, at + 8)
    assert (reply.step, reply.next_step) == (at + 3, at + 5)
    assert reply.outputs[:, 0].tolist() == [at + 3, at + 4]


def test_plain_and_other_replies_share_a_window() -> None:
    window = ReplayWindow(16)
    window.add(committed(0, 2))
    window.add(committed(2, 1, Options(state=True)))
    window.add(committed(3, 2))
    assert window.answer("a", 0, inputs(0, 5), PLAIN, 5).outputs[:, 0].tolist() == list(range(5))
    assert window.answer("a", 2, inputs(2, 1), Options(state=True), 5).replayed


@pytest.mark.parametrize("options", [PLAIN, Options(gates=True)], ids=["plain", "gates"])
def test_what_is_kept_does_not_keep_the_whole_ticks_array_alive(options: Options) -> None:
    """A request's outputs come as a view of the tick's, of all sessions."""
    tick = np.ones((100, 2))
    window = ReplayWindow(16)
    reply = Reply("a", 0, 1, tick[3:4], options)
    window.add(Committed(inputs(0, 1).raw, reply))
    alive = weakref.ref(tick)
    del tick, reply
    assert alive() is None
    assert window.answer("a", 0, inputs(0, 1), options, 1).outputs.tolist() == [[1, 1]]
