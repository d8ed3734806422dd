"""The client and a real service: all calls, and what lasts."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from service import client as package
from service.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidValue,
    NotFound,
    Reply,
    SessionExists,
    SessionNotFound,
    StepConflict,
    Stream,
    TooLarge,
)
from service.client.streaming import StreamCalls
from tests.api.serving import SERIES, TEXT, Served
from tests.client.conftest import QUICK
from tests.client.faulty import Break, Fault, Faulty, StreamFault

pytestmark = pytest.mark.usefixtures("no_plan")
ROW = [10.0, 0.5]
ids = (f"service-{n}" for n in itertools.count())


def test_all_there_is_to_a_session(client: Client, proxy: Faulty) -> None:
    """Each call once with its reply lost."""
    model = client.model(SERIES)
    proxy.plan.append(Fault.CUT_AFTER)
    assert model.facts()["task"] == "series"
    proxy.plan.append(Fault.CUT_AFTER)
    predicted = model.predict([ROW, ROW], horizon=3)
    assert predicted.forecast is not None
    assert len(predicted.forecast) == 3
    proxy.plan.append(Fault.CUT_AFTER)
    session = model.open(ttl_s=60)
    assert session.facts()["ttl_s"] == 60
    proxy.plan.append(Fault.CUT_AFTER)
    reply = session.step([ROW, ROW], horizon=3, returns=["outputs", "state", "gates"])
    assert reply.replayed
    assert reply.attempts == 2
    np.testing.assert_allclose(reply.forecast or [], predicted.forecast, rtol=1e-5, atol=1e-5)
    assert reply.state is not None
    assert reply.gates is not None
    proxy.plan.append(Fault.CUT_AFTER)
    snapshot = session.state()
    other = model.session(next(ids))
    proxy.plan.append(Fault.CUT_AFTER)
    assert other.put_state(snapshot)["next_step"] == other.next_step == 2
    proxy.plan.append(Fault.CUT_AFTER)
    fork = session.fork()
    assert (fork.next_step, fork.id != session.id) == (2, True)
    steps = [each.step(ROW).outputs for each in (session, other, fork)]
    assert steps[0] == steps[1] == steps[2]
    for each in (session, other, fork):
        proxy.plan.append(Fault.CUT_AFTER)
        each.close()
        with pytest.raises(SessionNotFound):
            each.facts()


def test_a_fork_whose_name_is_given(client: Client, proxy: Faulty) -> None:
    session = client.model(SERIES).open()
    session.step(ROW)
    proxy.plan.append(Fault.CUT_AFTER)
    fork = session.fork(next(ids))
    with pytest.raises(SessionExists):
        session.fork(fork.id)


def test_text(client: Client) -> None:
    session = client.model(TEXT).open()
    reply = session.step(text="abca", generate={"length": 5, "seed": 1})
    assert (reply.next_step, len(reply.generated or "")) == (4, 5)
    with session.stream() as stream:
        assert stream.step(text="bc").next_step == 6


@pytest.mark.parametrize(
    "inputs",
    [
        [ROW, ROW],
        np.array([ROW, ROW]),
        np.array([ROW, ROW], np.float32),
        [np.array(ROW), np.array(ROW)],
        ((10, np.float32(0.5)), tuple(ROW)),
        np.array([ROW, ROW]).T.copy().T,
    ],
    ids=["lists", "array", "float32", "rows", "tuples", "strided"],
)
def test_inputs_of_many_kinds(client: Client, inputs: object) -> None:
    reply = client.model(SERIES).session(next(ids)).step(inputs)
    assert reply.outputs == client.model(SERIES).session(next(ids)).step([ROW, ROW]).outputs


@pytest.mark.parametrize("row", [ROW, tuple(ROW), np.array(ROW)], ids=["list", "tuple", "array"])
def test_one_step_needs_no_list_around(client: Client, row: object) -> None:
    assert client.model(SERIES).session(next(ids)).step(row).next_step == 1


def test_inputs_or_text(client: Client) -> None:
    session = client.model(SERIES).session("never")
    with pytest.raises(ValueError, match="inputs, or a text"):
        session.step()
    with pytest.raises(ValueError, match="inputs, or a text"):
        session.step([ROW], text="a")


def test_a_bad_value_names_its_place(client: Client) -> None:
    session = client.model(SERIES).session(next(ids))
    with pytest.raises(InvalidValue) as raised:
        session.step([ROW, [1.0, float("nan")]])
    assert raised.value.field == "inputs[1][1]"
    assert session.step(ROW).next_step == 1


def test_no_such_model(client: Client) -> None:
    with pytest.raises(NotFound, match="there is no model"):
        client.model("nothing").facts()
    with pytest.raises(NotFound), client.model("nothing").session("s").stream() as stream:
        stream.step(ROW)


def test_somebody_else_stepped(client: Client) -> None:
    mine = client.model(SERIES).open()
    theirs = client.model(SERIES).session(mine.id)
    theirs.step(ROW)
    with pytest.raises(StepConflict) as raised:
        mine.step([11.0, 0.6])
    assert (raised.value.expected_step, mine.next_step) == (1, 0)
    mine.next_step = raised.value.expected_step or 0
    assert mine.step([11.0, 0.6]).next_step == 2


def test_nobody_gets_the_reply_to_anothers_inputs(client: Client, proxy: Faulty) -> None:
    mine, theirs = (client.model(SERIES).session(name) for name in [next(ids)] * 2)
    proxy.plan.append(StreamFault(Break.CUT, 0, of_client=True))
    with mine.stream() as stream:
        stream.send(ROW)  # is lost
        theirs.step([11.0, 0.6])
        with pytest.raises(StepConflict):
            stream.receive()
    assert mine.next_step == 0


def test_past_the_deadline(proxy: Faulty) -> None:
    with Client(proxy.url, timeout_s=0.3, retries=QUICK, trust_env=False) as client:
        session = client.model(SERIES).open()
        proxy.plan.extend([Fault.BAD_GATEWAY] * 1000)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="502"):
            session.step(ROW)
        assert time.monotonic() - started < 1.5  # on a busy machine too
        proxy.plan.clear()
        proxy.plan.extend([StreamFault(Break.REFUSED)] * 1000)
        with session.stream() as stream:
            with pytest.raises(DeadlineExceeded):
                stream.step(ROW)
            proxy.plan.clear()
            assert stream.step(ROW).next_step == session.next_step == 1


def test_nobody_listens() -> None:
    with Client("http://127.0.0.1:9", timeout_s=0.1, retries=QUICK, trust_env=False) as client:
        with pytest.raises(DeadlineExceeded, match="ConnectError"):
            client.model(SERIES).facts()
        with pytest.raises(DeadlineExceeded), client.model(SERIES).session("s").stream() as stream:
            stream.step(ROW)


def test_of_many_sessions_each_has_its_own_result(client: Client) -> None:
    model = client.model(SERIES)
    good, bad, moved = (model.session(next(ids)) for _ in range(3))
    model.session(moved.id).step([11.0, 0.6])
    results = model.steps([good.item([ROW, ROW], horizon=2), (bad, [[1.0]]), (moved, [ROW])])
    assert isinstance(results[0], Reply)
    assert results[0].forecast is not None
    assert isinstance(results[1], InvalidValue)
    assert isinstance(results[2], StepConflict)
    assert (good.next_step, bad.next_step, moved.next_step) == (2, 0, 0)
    with pytest.raises(ValueError, match="once"):
        model.steps([(good, [ROW]), (good, [ROW])])
    assert model.steps([]) == []


def test_what_is_sent_ahead_comes_back_in_order(client: Client) -> None:
    session = client.model(SERIES).session(next(ids))
    with session.stream(ahead=7) as stream:
        for _ in range(50):
            stream.send([ROW, ROW])
            with pytest.raises(RuntimeError, match="waits for"):
                session.step(ROW)
        assert stream.outstanding == 50
        with pytest.raises(RuntimeError, match="50 replies"):
            stream.step(ROW)
        assert [stream.receive().step for _ in range(50)] == list(range(0, 100, 2))
        with pytest.raises(RuntimeError, match="nothing was sent"):
            stream.receive()
    assert session.step(ROW).next_step == session.next_step == 101


def test_what_was_sent_behind_a_refused_message_was_not_executed(client: Client, straight: Client) -> None:
    session = client.model(SERIES).session(next(ids))
    with session.stream() as stream:
        for inputs in (ROW, [1.0], ROW, ROW):
            stream.send(inputs)
        assert stream.receive().step == 0
        with pytest.raises(InvalidValue) as raised:
            stream.receive()
        assert raised.value.attempts == 1
        assert (stream.outstanding, session.next_step) == (0, 1)
        assert straight.model(SERIES).session(session.id, None).next_step == 1
        assert stream.step(ROW).step == 1


def test_a_message_that_is_too_big_is_found_out(client: Client) -> None:
    session = client.model(SERIES).session(next(ids))
    with session.stream(ahead=100_000) as stream:
        with pytest.raises(TooLarge):  # from sending or receiving, whichever hears of it
            _send_and_receive(stream, [ROW, [ROW] * 10_000, ROW])
        assert session.next_step == 1
        for _ in range(stream.outstanding):
            assert stream.receive().step == 0
        assert stream.step(ROW).step == session.next_step - 1 == 1


def _send_and_receive(stream: Stream, each: list[Any]) -> None:
    for inputs in each:
        stream.send(inputs)
    for _ in each:
        stream.receive()


def test_a_session_that_ended_under_its_stream(client: Client) -> None:
    session = client.model(SERIES).session(next(ids))
    with session.stream() as stream:
        stream.step(ROW)
        client.model(SERIES).session(session.id).close()
        with pytest.raises(SessionNotFound):
            stream.step(ROW)


@pytest.mark.parametrize("wrong", [{"key": "a\nb"}, {"connections": 0}, {"timeout_s": -1.0}])
def test_a_client_that_could_not_work_is_not_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Client("http://localhost", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ahead"):
        StreamCalls(Client("http://localhost").model("m").session("s")._calls, 0, False)


def test_many_threads_share_a_client(client: Client, straight: Client) -> None:
    shared = client.model(SERIES).session(next(ids))
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: shared.step(ROW), range(40)))
    assert sorted(reply.step for reply in replies) == list(range(40))
    assert straight.model(SERIES).session(shared.id, None).next_step == 40


def test_a_call_that_was_cancelled_may_be_repeated(
    runner: asyncio.Runner, awaited: AsyncClient, proxy: Faulty
) -> None:
    async def go() -> list[Reply]:
        session = await awaited.model(SERIES).open()
        proxy.plan.append(Fault.SILENT_AFTER)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.step(ROW)
        replies = [await session.step(ROW)]
        proxy.plan.append(StreamFault(Break.SILENT, 0))
        async with session.stream() as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.step(ROW)
            replies.append(await stream.step(ROW))
        return replies

    assert [(reply.step, reply.replayed) for reply in runner.run(go())] == [(0, True), (1, True)]


def test_all_there_is_awaited(runner: asyncio.Runner, awaited: AsyncClient) -> None:
    async def go() -> None:
        model = awaited.model(SERIES)
        assert (await model.facts())["name"] == model.name == SERIES
        assert len((await model.predict([ROW])).outputs) == 1
        session = await model.open()
        fork = await session.fork()
        results = await model.steps([(session, ROW), fork.item(ROW, returns=["state"])])
        assert [type(each) for each in results] == [Reply, Reply]
        await fork.put_state(await session.state())
        assert (await fork.facts())["next_step"] == fork.next_step == 1
        await fork.close()
        with pytest.raises(SessionNotFound):
            await fork.step(ROW)
        found = await model.session(session.id, None)
        assert found.next_step == 1
        await asyncio.gather(*(found.step(ROW) for _ in range(10)))
        assert found.next_step == 11

    runner.run(go())


def test_the_key_goes_along(served: Served, proxy: Faulty) -> None:
    with Client(proxy.url, key="secret", trust_env=False) as client:
        assert client._setup.headers == {"authorization": "Bearer secret"}
        assert client._http.headers["authorization"] == "Bearer secret"


def test_importing_it_is_light() -> None:
    program = "import sys, service.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"torch", "numpy", "ray", "pydantic", "uvicorn", "prometheus_client", "websockets", "model"}
    assert not loaded & heavy
    ours = {name for name in loaded if name.startswith("service.") and not name.startswith("service.client")}
    assert ours == set()


def test_the_public_names_are_there() -> None:
    assert all(hasattr(package, name) for name in package.__all__)
