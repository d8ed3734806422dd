"""With any faults in between, the replies are those without, and the service is where the client counts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.client import AsyncClient, Client, Reply
from tests.api.serving import SERIES
from tests.client.faulty import Break, Fault, Faulty, StreamFault

pytestmark = pytest.mark.usefixtures("no_plan")
STEPS = 12
ROWS = [[10 + n % 3, 0.5 - 0.05 * (n % 4)] for n in range(STEPS)]
ids = (f"faults-{n}" for n in itertools.count())

property_test = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
#: Silence takes 0.4 seconds, so it has tests of its own
LOUD = [fault for fault in Fault if not fault.name.startswith("SILENT")]
faults = st.lists(st.none() | st.sampled_from(LOUD), max_size=3 * STEPS)
breaks = st.builds(
    StreamFault,
    st.sampled_from([kind for kind in Break if kind is not Break.SILENT]),
    st.integers(0, STEPS),
    st.booleans(),
)
pieces = st.lists(st.integers(1, 4), min_size=STEPS, max_size=STEPS)


@pytest.fixture(scope="module")
def outputs(straight: Client) -> list[list[float]]:
    """What the model says to the rows, one step after the other, without any fault."""
    return straight.model(SERIES).predict(ROWS).outputs


def cut(sizes: Sequence[int]) -> list[list[list[float]]]:
    """The rows in requests of these sizes."""
    parts, at = [], 0
    for size in sizes:
        if at < STEPS:
            parts.append(ROWS[at : at + size])
            at += size
    return parts


def check(replies: Sequence[Reply], outputs: list[list[float]]) -> None:
    steps = [0] + [reply.next_step for reply in replies]
    assert [reply.step for reply in replies] == steps[:-1]
    assert steps[-1] == STEPS
    said = [row for reply in replies for row in reply.outputs or ()]
    np.testing.assert_allclose(said, outputs, rtol=1e-5, atol=1e-5)


def next_step(straight: Client, session_id: str) -> int:
    """As the service says."""
    return straight.model(SERIES).session(session_id, None).next_step


@property_test
@given(plan=faults, sizes=pieces)
def test_steps(
    client: Client,
    straight: Client,
    proxy: Faulty,
    outputs: list[list[float]],
    plan: list[Fault | None],
    sizes: list[int],
) -> None:
    proxy.plan.clear()
    proxy.plan.extend(plan)
    session = client.model(SERIES).open()
    replies = [session.step(part) for part in cut(sizes)]
    check(replies, outputs)
    assert session.next_step == STEPS == next_step(straight, session.id)


@property_test
@given(plan=faults, sizes=pieces)
def test_steps_awaited(
    runner: asyncio.Runner,
    awaited: AsyncClient,
    straight: Client,
    proxy: Faulty,
    outputs: list[list[float]],
    plan: list[Fault | None],
    sizes: list[int],
) -> None:
    async def go() -> tuple[list[Reply], str]:
        session = await awaited.model(SERIES).open()
        return [await session.step(part) for part in cut(sizes)], session.id

    proxy.plan.clear()
    proxy.plan.extend(plan)
    replies, session_id = runner.run(go())
    check(replies, outputs)
    assert next_step(straight, session_id) == STEPS


@property_test
@given(plan=faults)
def test_many_sessions_at_once(
    client: Client, straight: Client, proxy: Faulty, outputs: list[list[float]], plan: list[Fault | None]
) -> None:
    proxy.plan.clear()
    proxy.plan.extend(plan)
    model = client.model(SERIES)
    sessions = [model.session(next(ids)) for _ in range(3)]
    replies: list[list[Reply]] = [[], [], []]
    for row in ROWS:
        for said, reply in zip(replies, model.steps([(s, [row]) for s in sessions]), strict=True):
            assert isinstance(reply, Reply)
            said.append(reply)
    for session, said in zip(sessions, replies, strict=True):
        check(said, outputs)
        assert session.next_step == STEPS == next_step(straight, session.id)


@property_test
@given(plan=st.lists(breaks, max_size=6), ahead=st.integers(1, 2 * STEPS), resume=st.booleans())
def test_a_stream(
    client: Client,
    straight: Client,
    proxy: Faulty,
    outputs: list[list[float]],
    plan: list[StreamFault],
    ahead: int,
    resume: bool,
) -> None:
    proxy.plan.clear()
    proxy.plan.extend(plan)
    session = client.model(SERIES).session(next(ids))
    with session.stream(ahead=ahead, resume=resume) as stream:
        for row in ROWS[:-1]:
            stream.send(row)
        replies = [stream.receive() for _ in ROWS[:-1]]
        replies.append(stream.step(ROWS[-1]))
    check(replies, outputs)
    assert session.next_step == STEPS == next_step(straight, session.id)


@property_test
@given(plan=st.lists(breaks, max_size=6), ahead=st.integers(1, 2 * STEPS))
def test_a_stream_awaited(
    runner: asyncio.Runner,
    awaited: AsyncClient,
    straight: Client,
    proxy: Faulty,
    outputs: list[list[float]],
    plan: list[StreamFault],
    ahead: int,
) -> None:
    async def go() -> tuple[list[Reply], str]:
        session = await awaited.model(SERIES).session(next(ids))
        async with session.stream(ahead=ahead) as stream:
            for row in ROWS[:-1]:
                await stream.send(row)
            replies = [await stream.receive() for _ in ROWS[:-1]]
            replies.append(await stream.step(ROWS[-1]))
        return replies, session.id

    proxy.plan.clear()
    proxy.plan.extend(plan)
    replies, session_id = runner.run(go())
    check(replies, outputs)
    assert next_step(straight, session_id) == STEPS


@pytest.mark.parametrize("fault", [Fault.SILENT_BEFORE, Fault.SILENT_AFTER], ids=lambda fault: fault.name)
def test_a_half_open_connection(
    client: Client, straight: Client, proxy: Faulty, outputs: list[list[float]], fault: Fault
) -> None:
    session = client.model(SERIES).open()
    proxy.plan.append(fault)
    reply = session.step(ROWS)
    check([reply], outputs)
    assert reply.attempts == 2
    assert reply.replayed is (fault is Fault.SILENT_AFTER)
    assert next_step(straight, session.id) == STEPS


@pytest.mark.parametrize("of_client", [True, False])
def test_a_half_open_stream(
    client: Client, straight: Client, proxy: Faulty, outputs: list[list[float]], of_client: bool
) -> None:
    session = client.model(SERIES).session(next(ids))
    proxy.plan.append(StreamFault(Break.SILENT, 3, of_client))
    with session.stream() as stream:
        replies = [stream.step(row) for row in ROWS]
    check(replies, outputs)
    assert [reply.attempts for reply in replies] == [1, 1, 1, 2] + [1] * (STEPS - 4)
    assert next_step(straight, session.id) == STEPS


def test_a_half_open_connection_awaited(
    runner: asyncio.Runner, awaited: AsyncClient, proxy: Faulty, outputs: list[list[float]]
) -> None:
    async def go() -> list[Reply]:
        session = await awaited.model(SERIES).open()
        proxy.plan.extend([Fault.SILENT_AFTER, StreamFault(Break.SILENT, 2)])
        replies = [await session.step(ROWS[:2])]
        async with session.stream() as stream:
            return replies + [await stream.step([row]) for row in ROWS[2:]]

    check(runner.run(go()), outputs)
