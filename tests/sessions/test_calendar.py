"""Sessions of a model with a calendar: the client sends the time, the network reads what it is of the day."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from model.bundle import Bundle
from service.engine.engine import Engine
from service.errors import InvalidValue
from service.sessions.inputs import InputReader
from service.sessions.manager import SessionManager
from service.sessions.register import Limits
from service.sessions.replies import PLAIN, Options, StepCommand
from service.sessions.store import MemoryStore
from tests.engine.making import CPU, Oracle, make_network, make_spec
from tests.sessions.making import TOLERANCE

SPEC = make_spec(inputs=2, hidden=8, leads=3, calendar=("day", "week"))
BUNDLE = Bundle("timed", "1", SPEC, make_network(SPEC).state_dict(), digest="d" * 64)
START = 1_732_000_000.0
READER = InputReader(SPEC, 100)


def make_rows(count: int) -> list[list[float]]:
    """Two values, of mean 0 and 10 and deviation 1 and 2, and every hour the time."""
    values = np.random.default_rng(3).standard_normal((count, 2)) * [1, 2] + [0, 10]
    return [[float(a), float(b), START + 3600 * k] for k, (a, b) in enumerate(values)]


def prepared(row: list[float]) -> NDArray[np.float64]:
    """What the network reads, made by hand."""
    angles = [2 * math.pi * row[2] / period for period in (86_400, 604_800)]
    return np.array([row[0], (row[1] - 10) / 2, *(w(a) for a in angles for w in (math.sin, math.cos))])


def in_units(predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(predictions * [s.std for s in SPEC.outputs] + [s.mean for s in SPEC.outputs])


@contextmanager
def managed() -> Iterator[SessionManager]:
    engine = Engine(BUNDLE.network(), slots=8, max_batch=4, quantum=4, device=CPU)
    limits = Limits(100, 100, 100, 60.0, 16, "none", float("inf"))
    manager = SessionManager(BUNDLE, engine, MemoryStore(), limits)
    try:
        yield manager
        manager.check_integrity()
    finally:
        manager.close()


def command(rows: list[list[float]], step: int, options: Options = PLAIN) -> StepCommand:
    return StepCommand("a", READER.series(rows), step, options)


async def test_steps_are_the_network_on_what_the_time_says() -> None:
    rows = make_rows(30)
    expected = in_units(Oracle(BUNDLE.network()).run([prepared(row) for row in rows]))
    with managed() as manager:
        for first, last in ((0, 1), (1, 2), (2, 20), (20, 21), (21, 30)):
            reply = await manager.step(command(rows[first:last], first))
            np.testing.assert_allclose(reply.outputs, expected[first:last], atol=TOLERANCE)
        again = await manager.step(command(rows[21:30], 21))
        assert again.replayed
        whole = await manager.predict(command(rows, 0))
        np.testing.assert_allclose(whole.outputs, expected, atol=TOLERANCE)


async def test_a_forecast_goes_on_hour_by_hour() -> None:
    rows = make_rows(5)
    oracle = Oracle(BUNDLE.network())
    oracle.run([prepared(row) for row in rows])
    ahead = list(in_units(oracle.head))
    for k in range(9):
        last = [ahead[k][1], ahead[k][0], START + 3600 * (4 + k + 1)]  # outputs are in another order
        oracle.run([prepared(last)])
        if k % 3 == 2:
            ahead += list(in_units(oracle.head))
    with managed() as manager:
        reply = await manager.step(command(rows, 0, Options(horizon=12)))
        assert reply.forecast is not None
        np.testing.assert_allclose(reply.forecast, ahead, atol=1e-3)


def test_rows_are_read_alike_alone_together_and_from_the_journal() -> None:
    rows = make_rows(50)
    together, alone = READER.series(rows), [READER.series([row]) for row in rows]
    bulk = READER.single_rows(rows)
    assert bulk is not None
    assert together.raw == b"".join(s.raw for s in alone) == b"".join(s.raw for s in bulk)
    for found in (alone, bulk):
        np.testing.assert_array_equal(np.concatenate([s.prepared for s in found]), together.prepared)
    np.testing.assert_array_equal(READER.prepared(together.raw), together.prepared)
    assert together.prepared.shape == (50, 6)


@pytest.mark.parametrize("time", [START * 1000, -1.1e11, 1e300])
async def test_a_time_that_is_none_is_refused_by_its_place_and_nothing_moves(time: float) -> None:
    rows = make_rows(3)
    with managed() as manager:
        await manager.step(command(rows[:1], 0))
        for bad, t in (([[0.0, 10.0, time]], 0), ([rows[1], [0.0, 10.0, time]], 1)):
            with pytest.raises(InvalidValue, match=r"\(time\) is .*: a time in seconds since 1970") as raised:
                await manager.step(command(bad, 1))
            assert raised.value.facts["field"] == f"inputs[{t}][2]"
        assert READER.single_rows([rows[1], [0.0, 10.0, time]]) is None
        assert manager.facts("a").next_step == 1


def test_a_value_far_off_is_refused_by_its_place_as_ever() -> None:
    for rows, field in (
        ([[0.0, 1e9, START]], "inputs[0][1]"),
        ([[0.0, 1.0, START], [1e9, 1.0, START]], "inputs[1][0]"),
    ):
        with pytest.raises(InvalidValue, match="standard deviations") as raised:
            READER.series(rows)
        assert raised.value.facts["field"] == field
    with pytest.raises(InvalidValue, match="has 2 numbers, must have 3"):
        READER.series([[0.0, 1.0]])
