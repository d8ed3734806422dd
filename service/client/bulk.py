"""Many sessions in one request: what failed in passing is tried again alone, the rest is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from service.client.calls import ModelCalls, SessionCalls
from service.client.effects import Call, Response, Sleep
from service.client.errors import ClientError, Fault
from service.client.judging import judge_problem, read_object
from service.client.messages import Generate, Message, Reply, Rows, message, read_reply
from service.client.retries import Tries

MOST = 10_000  #: items of one request
LARGEST = 4 * 1024 * 1024  #: characters of one request, if it has several items: half of what a body may have


@dataclass(frozen=True, slots=True)
class Item:
    """The next steps of one session."""

    session: SessionCalls
    inputs: Rows | None
    text: str | None
    horizon: int | None
    returns: Sequence[str] | None
    generate: Generate | None


Result = Reply | ClientError


class _Open:
    """An item that has no result yet."""

    __slots__ = ("place", "sent", "session")

    def __init__(self, place: int, session: SessionCalls, sent: Message) -> None:
        self.place, self.session, self.sent = place, session, sent


def bulk(model: ModelCalls, wanted: Sequence[Item]) -> Call[list[Result]]:
    """A reply or an error for each, in order. Where the request as a whole fails, or time runs out, that is
    raised if no item has a result yet; else those without one have that error, and the others keep theirs.
    """
    waiting = [_open(place, each) for place, each in enumerate(wanted)]
    if len({item.session.id for item in waiting}) < len(waiting):
        raise ValueError("a session may be in it once: put all its steps into one item")
    results: dict[int, Result] = {}
    tries = model.caller.retries.begin()
    while waiting:
        left: list[_Open] = []
        try:
            for part in _parts(waiting):
                left += yield from _round(model, part, results, tries)
            if left:
                yield Sleep(tries.delay())
        except ClientError as error:
            if not results:
                raise
            for item in waiting:
                results.setdefault(item.place, error)
            break
        waiting = left
    return [results[place] for place in range(len(wanted))]


def _open(place: int, each: Item) -> _Open:
    s = each.session
    if s.ahead:
        raise RuntimeError(f"a stream of session {s.id} waits for {s.ahead} replies")
    sent = message(
        s.next_step, each.inputs, each.text, each.horizon, each.returns, each.generate, session_id=s.id
    )
    return _Open(place, s, sent)


def _parts(items: list[_Open]) -> Iterator[list[_Open]]:
    part: list[_Open] = []
    size = 0
    for item in items:
        if part and (len(part) == MOST or size + len(item.sent.text) > LARGEST):
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item.sent.text)
    yield part


def _round(
    model: ModelCalls, items: list[_Open], results: dict[int, Result], tries: Tries
) -> Call[list[_Open]]:
    """One request. Returns the items that are to be tried again."""

    def read(response: Response) -> list[Any]:
        answers = read_object(response.body).get("results")
        if not isinstance(answers, list) or len(answers) != len(items):
            raise ValueError("not as many results as requests")
        return answers

    body = '{"requests":[' + ",".join(item.sent.text for item in items) + "]}"
    answers = yield from model.caller.call("POST", model.path + "/steps", read, body.encode(), tries=tries)
    again: list[_Open] = []
    faults: list[Fault] = []
    for item, answer in zip(items, answers, strict=True):
        verdict = _judge(item, answer, tries.attempts)
        if isinstance(verdict, Fault):
            faults.append(verdict)
            again.append(item)
            continue
        if isinstance(verdict, Reply):
            item.session.next_step = verdict.next_step
        else:
            tries.sign(verdict)
        results[item.place] = verdict
    if faults:
        tries.note(max(faults, key=lambda fault: fault.wait_s or 0.0))
    if len(again) < len(items):
        tries.progress()
    return again


def _judge(item: _Open, answer: Any, attempts: int) -> Result | Fault:
    try:
        problem = answer.get("error")
        if problem is None:
            return read_reply(answer, item.session.id, item.sent, attempts)
        return judge_problem(int(problem["status"]), problem)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Fault(f"the reply can't be read: {error}", executed=True)
