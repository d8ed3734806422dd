"""The open loop: what was due while the service stalled is seen, and so is a sender that is late itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from loadtests.generator.arrivals import Arrival, Schedule
from loadtests.generator.clock import clock, new_event_loop
from loadtests.generator.drive import drive
from loadtests.generator.recorder import Recorder
from loadtests.generator.senders import Driven
from loadtests.results import doubts, phase
from tests.loadtests.virtual import VirtualLoop

T = TypeVar("T")
STALL = (0.3, 0.8)  # seconds of the run in which the made server answers nothing


class Server:
    """Answers in a millisecond, many at a time; but not during its stall."""

    async def answer(self) -> None:
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(STALL[1] - now if STALL[0] <= now < STALL[1] else 0.001)


def evenly(rate: float, seconds: float) -> list[Arrival]:
    return list(Schedule(rate, seconds, "uniform").arrivals())


def at_virtual_time(run: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run)


def test_a_stall_is_seen_in_the_open_loop_and_hidden_in_a_closed_one() -> None:
    """Half of a second out of one and a half is stalled, so a third of what is due waits, a quarter of
    a second on average. The closed loop has one slow request among many: coordinated omission."""

    async def open_loop() -> Recorder:
        recorder, time = Recorder(0.0), asyncio.get_running_loop().time

        async def perform(arrival: Arrival, intended: float) -> None:
            sent = time()
            await Server().answer()
            recorder.ended("step", intended, sent, time(), 1)

        await drive(evenly(200, 1.5), perform, recorder)
        return recorder

    async def closed_loop() -> Recorder:
        recorder, time = Recorder(0.0), asyncio.get_running_loop().time
        while (sent := time()) < 1.5:
            await Server().answer()
            recorder.ended("step", sent, sent, time(), 1)
            await asyncio.sleep(1 / 200)
        return recorder

    seen, hidden = (at_virtual_time(run()).latency() for run in (open_loop, closed_loop))
    assert seen.count == 300
    assert seen.above(0.01) == pytest.approx(100, abs=3)
    assert seen.quantile(0.99) == pytest.approx(0.49, abs=0.01)
    assert hidden.above(0.01) == 1
    assert hidden.quantile(0.99) < 0.002
    assert hidden.max == pytest.approx(seen.max, abs=0.01)  # it is there, and counts as one


def test_latency_is_from_the_intended_time_not_from_the_sending() -> None:
    async def run() -> Recorder:
        recorder, time = Recorder(0.0), asyncio.get_running_loop().time
        free = asyncio.Lock()  # one connection

        async def perform(arrival: Arrival, intended: float) -> None:
            async with free:
                sent = time()
                await asyncio.sleep(0.05)
                recorder.ended("step", intended, sent, time(), 1)

        await drive([Arrival(0.0)] * 4, perform, recorder)
        return recorder

    kind = at_virtual_time(run()).kinds["step"]
    assert [kind.latency.min, kind.latency.max] == pytest.approx([0.05, 0.2])
    assert [kind.service.min, kind.service.max] == pytest.approx([0.05, 0.05])


def test_a_sender_that_is_late_says_so() -> None:
    """Its loop is held up by work of its own: the service, which answers at once, is not what is measured."""

    async def run() -> Recorder:
        recorder, loop = Recorder(0.0), asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def perform(arrival: Arrival, intended: float) -> None:
            loop.busy(0.02)
            recorder.ended("step", intended, loop.time(), loop.time(), 1)

        await drive(evenly(100, 0.5), perform, recorder)
        return recorder

    late = Driven(at_virtual_time(run()), 0.5)
    assert late.recorder.lag.quantile(1) == pytest.approx(49 * 0.01)  # 10 ms later with every one
    (said,) = doubts(late)
    assert said.startswith("the sender began 48")  # 490 ms, to the histogram's half percent
    assert phase("steps", Schedule(100, 0.5), late, 0.0)["doubts"] == [said]


def test_work_of_the_sender_below_its_limit_is_no_doubt() -> None:
    async def run() -> Recorder:
        recorder, loop = Recorder(0.0), asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def perform(arrival: Arrival, intended: float) -> None:
            loop.busy(0.001)
            await asyncio.sleep(0.005)
            recorder.ended("step", intended, loop.time(), loop.time(), 1)

        await drive(evenly(100, 0.5), perform, recorder)
        return recorder

    assert doubts(Driven(at_virtual_time(run()), 0.5)) == []


def test_a_busy_sender_says_so() -> None:
    recorder = Recorder(0.0)
    for n in range(100):
        recorder.began(n / 100, n / 100 + 1e-4)
        recorder.ended("step", n / 100, n / 100 + 1e-4, n / 100 + 1e-3, 1)
    assert doubts(Driven(recorder, 0.5)) == []
    (said,) = doubts(Driven(recorder, 0.97))
    assert "97%" in said


def test_a_slow_service_is_not_the_senders_fault() -> None:
    recorder = Recorder(0.0)
    for n in range(100):
        recorder.began(n / 100, n / 100 + 0.004)
        recorder.ended("step", n / 100, n / 100 + 0.004, n / 100 + 2.0, 1)
    assert doubts(Driven(recorder, 0.5)) == []


def test_what_never_ends_is_given_up_and_counted() -> None:
    at_virtual_time(_given_up())


async def _given_up() -> None:
    recorder = Recorder(0.0)

    async def perform(arrival: Arrival, intended: float) -> None:
        await asyncio.Event().wait()

    await drive([Arrival(0.0, 2), Arrival(0.01)], perform, recorder, give_up_s=30)
    assert recorder.errors() == {"no_reply": 2}
    assert recorder.tally["unknown"] == 3


async def test_a_sender_that_is_too_far_behind_comes_to_an_end() -> None:
    began: list[float] = []

    async def perform(arrival: Arrival, intended: float) -> None:
        began.append(arrival.at)
        time.sleep(0.02)  # noqa: ASYNC251  it is the sender that is slow

    recorder = Recorder(clock())
    await drive([Arrival(n / 1000) for n in range(100)], perform, recorder, until=recorder.start + 0.2)
    assert 5 <= len(began) <= 15
    assert recorder.errors() == {"not_sent": 100 - len(began)}


async def test_a_mistake_of_the_program_is_raised_not_counted() -> None:
    async def perform(arrival: Arrival, intended: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await drive([Arrival(0.0), Arrival(0.0), Arrival(0.05)], perform, Recorder(clock()))


def test_the_timers_are_exact_to_less_than_a_millisecond() -> None:
    """epoll's own timeout is rounded up to whole milliseconds: 0.2 ms would be 1.06 at least."""

    async def run() -> list[float]:
        late = []
        for _ in range(300):
            due = clock() + 0.0002
            await asyncio.sleep(due - clock())
            late.append(clock() - due)
        return late

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert min(runner.run(run())) < 0.0005


def test_errors_are_not_among_the_latencies() -> None:
    recorder = Recorder(0.0)
    recorder.ended("step", 0.1, 0.1, 0.1001, 1, "no_capacity")
    recorder.ended("step", 0.2, 0.2, 0.3, 1)
    assert recorder.latency().count == 1
    assert recorder.errors() == {"no_capacity": 1}
    assert (recorder.seconds[0].ok, recorder.seconds[0].errors) == (1, 1)


def test_recorders_of_several_processes_are_one() -> None:
    one, other = Recorder(0.0, keep=True), Recorder(0.0, keep=True)
    for recorder, at in ((one, 0.5), (other, 1.5)):
        recorder.began(at, at + 0.001)
        recorder.due(at)
        recorder.ended("step", at, at, at + 0.01, 2)
        recorder.tally["steps"] += 2
    one.merge(other)
    assert one.kinds["step"].ok == one.lag.count == 2
    assert {n: second.ok for n, second in one.seconds.items()} == {0: 1, 1: 1}
    assert one.tally["steps"] == 4
    assert one.sent == [Arrival(0.5, 2), Arrival(1.5, 2)]
