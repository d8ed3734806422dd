"""Large bodies and replies go in pieces, and nobody can tell by what they say."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from model.config import Architecture, ModelSpec, Signal
from service.api.messages import parse
from service.api.pieces import LARGE, PIECE, read_bulk, read_plain, read_sequence
from service.api.render import PIECE as WRITTEN
from service.api.render import Renderer, joined
from service.api.schemas import BulkBody, StepBody
from service.api.turns import HOLD_S, Turns
from service.errors import CellstateError
from service.sessions.inputs import InputReader
from service.sessions.replies import Options, Reply

SIGNALS = (Signal("a"), Signal("b"))
SPEC = ModelSpec(Architecture("series", 2, 4, 1, 2), SIGNALS, SIGNALS)
READER = InputReader(SPEC, max_steps=4000)
NUMBERS = np.random.default_rng(0).standard_normal((3000, 2)).tolist()


class Counted(Turns):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    async def next(self) -> None:
        self.count += 1
        await super().next()


async def read(text: str) -> tuple[Any, bool]:
    """What a body says, with its steps' bytes or its error; and whether it was read in pieces."""
    turns = Counted()
    try:
        body, steps = await read_sequence(StepBody, text.encode(), READER, turns)
        pieces = steps is not None
        if steps is None:
            steps = READER.series(body.inputs or [])
    except CellstateError as error:
        return (type(error), str(error), error.facts), False
    assert not pieces or turns.count > len(text) // (2 * PIECE)
    said = body.model_dump(exclude={"inputs"})
    return (said, steps.raw, steps.prepared.tobytes(), steps.prepared.shape), pieces


def whole(text: str) -> Any:
    """The same as if there were no pieces."""
    try:
        body = parse(StepBody, text)
        steps = READER.series(body.inputs or [])
    except CellstateError as error:
        return type(error), str(error), error.facts
    said = body.model_dump(exclude={"inputs"})
    return said, steps.raw, steps.prepared.tobytes(), steps.prepared.shape


LONG = json.dumps(NUMBERS)
FORMS = {
    "alone": f'{{"inputs": {LONG}}}',
    "compact": json.dumps({"step": 5, "inputs": NUMBERS}, separators=(",", ":")),
    "fields behind": f'{{"inputs":{LONG},"step":5,"return":["outputs","state"],"timeout_ms":7}}',
    "fields before": f' {{ "return" : ["outputs"] , "step" : 5 ,\n"inputs" : {LONG} }} ',
    "indented a little": json.dumps({"step": 5, "inputs": NUMBERS}, indent=1),
    "whole numbers": json.dumps({"inputs": [[1, -2]] * 4000}),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
async def test_a_large_body_says_the_same_in_pieces(text: str) -> None:
    assert len(text) > LARGE
    said, pieces = await read(text)
    assert pieces
    assert said == whole(text)


def bad(at: int, value: str) -> str:
    rows = [json.dumps(row) for row in NUMBERS]
    rows[at] = value
    return ",".join(rows)


WRONG = {
    "text in a row": f'{{"inputs":[{bad(2000, "[1,true]")}]}}',
    "a short row": f'{{"inputs":[{bad(2000, "[1]")}]}}',
    "a row too many": f'{{"inputs":[{bad(2000, "[1,2],")}]}}',
    "an open row": f'{{"inputs":[{bad(2000, "[1,2")}]}}',
    "a nested row": f'{{"inputs":[{bad(2000, "[[1,2]]")}]}}',
    "an empty row": f'{{"inputs":[{bad(2999, "[]")}]}}',
    "not finite": f'{{"inputs":[{bad(2000, "[1,1e999]")}]}}',
    "far off": f'{{"inputs":[{bad(2000, "[1,1e30]")}]}}',
    "nothing before": f'{{"inputs":[,{LONG[1:]}}}',
    "nothing behind": f'{{"inputs":{LONG[:-1]},]}}',
    "too many": f'{{"inputs":[{bad(0, "[1,2]," * 2000 + "[1,2]")}]}}',
    "twice": f'{{"inputs":{LONG},"inputs":[[1,2]]}}',
    "twice, empty": f'{{"inputs":{LONG},"inputs":[]}}',
    "twice, spelt otherwise": f'{{"inputs":{LONG},"\\u0069nputs":[]}}',
    "in a text": json.dumps({"text": f'"inputs":{LONG}', "inputs": []}),
    "in a text, unescaped": f'{{"text":""inputs":{LONG}","inputs":[]}}',
    "below another": f'{{"generate":{{"inputs":{LONG}}}}}',
    "in a list": f'[{{"inputs":{LONG}}}]',
    "with a text": f'{{"inputs":{LONG},"text":"a"}}',
    "an unknown field": f'{{"inputs":{LONG},"more":[[1]]}}',
    "no end": f'{{"inputs":{LONG}',
    "more behind": f'{{"inputs":{LONG}}} {{}}',
    "not a list": f'{{"inputs":{{"a":{LONG}}}}}',
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
async def test_a_large_body_that_is_wrong_is_told_so_in_the_same_words(text: str) -> None:
    assert len(text) > LARGE
    said, pieces = await read(text)
    assert not pieces
    assert said == whole(text)


@given(at=st.integers(0, 40_000), length=st.integers(0, 3), other=st.sampled_from(list('[]{},:"\\ 1e-')))
def test_a_large_body_with_any_slip_says_the_same(at: int, length: int, other: str) -> None:
    text = FORMS["fields behind"]
    at %= len(text)
    text = text[:at] + other + text[at + length :]
    said, _ = asyncio.run(read(text))
    assert said == whole(text)


def make_bulk(*counts: int) -> str:
    requests = [{"session_id": f"s{n}", "inputs": NUMBERS[:count]} for n, count in enumerate(counts)]
    return json.dumps({"requests": requests})


@pytest.mark.parametrize("counts", [(1,) * 500, (2500,) * 3, (1, 1, 2500, 1), (1,)])
async def test_a_bulk_body_says_the_same_in_pieces(counts: tuple[int, ...]) -> None:
    text = make_bulk(*counts)
    items = await read_bulk(text.encode(), READER, Turns())
    assert items is not None
    expected = BulkBody.model_validate_json(text).requests
    assert [item.session_id for item, _ in items] == [item.session_id for item in expected]
    for (item, steps), plain in zip(items, expected, strict=True):
        steps = READER.series(item.inputs or []) if steps is None else steps
        assert steps.raw == READER.series(plain.inputs or []).raw


async def test_a_bulk_body_with_a_wrong_request_or_too_many_is_left_to_be_read_one_by_one() -> None:
    for text in (
        make_bulk(1, 2500, 1).replace('"s2"', '"?"'),
        json.dumps({"requests": [{"session_id": "a", "inputs": [[1, 2]]}] * 10_001}),
        make_bulk(2500, 1)[:-1] + ',"more":1}',
    ):
        assert await read_bulk(text.encode(), READER, Turns()) is None


PLAIN_BODIES = {
    "usual": make_bulk(*(1,) * 500),
    "one": make_bulk(1),
    "numbered": json.dumps(
        {"requests": [{"step": n, "session_id": f"s{n}", "inputs": [[n, -0.5e-3]]} for n in range(40)]}
    ),
    "not numbered": '{"requests":[{"session_id":"a","inputs":[[1,2]],"step":null}]}',
    "twice": '{"requests":[{"session_id":"a","inputs":[[1,2]],"inputs":[[3,4]],"session_id":"b"}]}',
}


@pytest.mark.parametrize("text", PLAIN_BODIES.values(), ids=PLAIN_BODIES)
async def test_a_plain_bulk_body_is_read_as_one_of_any_kind(text: str) -> None:
    items = await read_plain(text.encode(), Turns())
    expected = BulkBody.model_validate_json(text).requests
    assert items == [{name: getattr(item, name) for name in item.model_fields_set} for item in expected]


@given(
    at=st.integers(0, 3_000),
    length=st.integers(0, 3),
    other=st.sampled_from([*'[]{},:"\\ 1e-.', '"text":"a",', "null", "true", "NaN", "1e999", "00"]),
)
def test_a_plain_bulk_body_with_any_slip_is_refused_or_read_as_one_of_any_kind(
    at: int, length: int, other: str
) -> None:
    text = PLAIN_BODIES["numbered"]
    at %= len(text)
    text = text[:at] + other + text[at + length :]
    items = asyncio.run(read_plain(text.encode(), Turns()))
    if items is not None:
        expected = BulkBody.model_validate_json(text).requests
        assert [(i["session_id"], i["inputs"], i.get("step")) for i in items] == [
            (item.session_id, item.inputs, item.step) for item in expected
        ]
        assert all(item.model_fields_set <= {"session_id", "inputs", "step"} for item in expected)


@pytest.mark.parametrize(
    "text",
    [
        make_bulk(1, 1).replace('"inputs"', '"horizon":2,"inputs"', 1),
        make_bulk(1, 1)[:-3] + ',"return":["state"]}]}',
        make_bulk(1, 1).replace('"s1"', '"?"'),
        make_bulk(1, 1).replace('"inputs"', '"step":-1,"inputs"', 1),
        make_bulk(1, 1).replace('"inputs"', '"step":1.0,"inputs"', 1),
        make_bulk(2500, 1),
        json.dumps({"requests": []}),
        json.dumps({"requests": [{"session_id": "a", "text": "a"}]}),
        json.dumps({"requests": [{"session_id": "a", "inputs": [[1, 2]]}] * 10_001}),
        json.dumps({"requests": [{"session_id": "a", "inputs": [[1, 2]]}], "more": 1}),
    ],
)
async def test_a_bulk_body_that_is_not_plain_is_left_to_those_who_can_read_it(text: str) -> None:
    assert not await read_plain(text.encode(), Turns())


# Replies


def make_reply(steps: int, *, gates: bool = False) -> Reply:
    rng = np.random.default_rng(1)
    trace = rng.standard_normal((steps, 1, 6, 4)).astype(np.float32) if gates else None
    outputs = rng.standard_normal((steps, 2))
    state = rng.standard_normal((2, 1, 4)).astype(np.float32)
    options = Options(gates=gates, state=True)
    return Reply("s", 3, 3 + steps, outputs, options, gates=trace, state=state)


@pytest.mark.parametrize("steps", [1, 2, 127, 128, 129, 3000])
async def test_a_long_reply_in_pieces_is_the_reply(steps: int) -> None:
    reply, turns = make_reply(steps, gates=True), Counted()
    text = await joined(Renderer(2).reply_parts(reply), turns)
    assert text == Renderer(2).reply(reply)
    assert turns.count >= len(text) // (4 * WRITTEN)
    said = json.loads(text)
    assert reply.gates is not None
    np.testing.assert_allclose(said["outputs"], reply.outputs, rtol=1e-8)
    np.testing.assert_allclose(said["gates"]["o"], reply.gates[:, :, 3], rtol=1e-8)


class Said(BaseModel):
    outputs: list[list[float]] = []


@pytest.mark.parametrize("outputs", [True, False])
async def test_a_prediction_is_the_reply_without_a_session(outputs: bool) -> None:
    reply = make_reply(5)
    reply.options, reply.state = Options(outputs=outputs), None
    said = Said.model_validate_json(await joined(Renderer(2).prediction_parts(reply), Turns()))
    assert len(said.outputs) == (5 if outputs else 0)


# Turns


async def test_one_goes_on_in_each_round_and_all_come_to_their_end() -> None:
    turns, rounds, order = Turns(), [0], []

    async def work(name: str) -> None:
        for _ in range(3):
            await turns.next()
            order.append((name, rounds[0]))

    async def watch() -> None:
        while len(order) < 9:
            rounds[0] += 1
            await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.gather(watch(), *(work(name) for name in "abc")), 10)
    assert [name for name, _ in order] == list("abcabcabc")
    assert len({number for _, number in order}) == 9


async def test_rest_comes_when_the_last_piece_is_done() -> None:
    turns, done = Turns(), []

    async def work() -> None:
        for _ in range(5):
            await turns.next()
        done.append(True)

    tasks = [asyncio.ensure_future(work()) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.wait_for(turns.rest(), 10)
    assert len(done) == len(tasks)


async def test_one_that_is_cancelled_holds_nobody_up() -> None:
    turns = Turns()
    tasks = [asyncio.ensure_future(turns.next()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait_for(asyncio.gather(*tasks[1:]), 10)
    await asyncio.wait_for(turns.next(), 10)


async def test_a_turn_is_put_off_for_short_requests_but_not_for_long() -> None:
    busy = [True]
    turns, began = Turns(lambda: busy[0]), time.perf_counter()
    await asyncio.wait_for(turns.next(), 10)
    assert time.perf_counter() - began >= HOLD_S
    busy[0] = False
    turn = asyncio.ensure_future(turns.next())
    for _ in range(3):
        await asyncio.sleep(0)
    assert turn.done()
