"""How much of a session's past is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sessions.retention import MARKS, Mark, Retention, read


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        ("256", "ett", Retention(256)),
        ("0", "ett", Retention(0)),
        ("90s", "ett", Retention(seconds=90)),
        ("30m", "ett", Retention(seconds=1800)),
        ("2h", "ett", Retention(seconds=7200)),
        ("7d", "ett", Retention(seconds=604800)),
        ("256, ett=7d, words=0", "ett", Retention(seconds=604800)),
        ("256, ett=7d, words=0", "words", Retention(0)),
        ("256, ett=7d, words=0", "other", Retention(256)),
    ],
)
def test_what_a_setting_says(text: str, model: str, expected: Retention) -> None:
    assert read(text, model) == expected


@pytest.mark.parametrize("text", ["", "-1", "2.5h", "1w", "h", "256,", "=5", "ett=5", "5,6", "5,ett=1,ett=2"])
def test_what_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"steps|two|does not name"):
        read(text, "ett")


def test_steps_are_counted_back_from_the_next() -> None:
    assert Retention(100).keep_from(250, [], now=0.0) == 150
    assert Retention(100).keep_from(50, [], now=0.0) == 0
    assert Retention(100).marked(50, [], now=0.0) is None


@given(
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0.01, 50), st.integers(1, 300)), min_size=1, max_size=4 * MARKS),
)
def test_what_is_young_enough_is_kept_and_marks_are_few(
    seconds: float, paces: list[tuple[float, int]]
) -> None:
    """paces: seconds between two snapshots and the steps in them."""
    history, now, step = Retention(seconds=seconds), 0.0, 0
    marks: list[Mark] = []
    times: list[Mark] = []  # of each snapshot, all of them
    for pause, steps in paces:
        now, step = now + pause, step + steps
        kept = history.keep_from(step, marks, now)
        assert all(at < now - seconds or kept <= before for at, before in times)
        marks = history.marked(step, marks, now) or []
        times.append((now, step))
        assert len(marks) <= MARKS
        assert marks[-1] == (now, step)


def test_what_is_old_goes() -> None:
    history = Retention(seconds=60)
    marks: list[Mark] = [(0.0, 10), (50.0, 20), (100.0, 30)]
    assert history.keep_from(40, marks, now=59.0) == 0
    assert history.keep_from(40, marks, now=60.0) == 10
    assert history.keep_from(40, marks, now=115.0) == 20
    assert history.marked(40, marks, now=115.0) == [(50.0, 20), (100.0, 30), (115.0, 40)]
