"""Bodies that are large or slow: what is here at a time is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from service.api.messages import LARGE, Intake, Request
from service.asgi import Message
from service.errors import NoCapacity, TooLarge, TooSlow

MB = 1024 * 1024


def make_request(intake: Intake, *parts: bytes, length: int | None = None, whole: bool = True) -> Request:
    """A request whose body comes in these parts. Without the last of them nothing comes any more."""
    messages: Iterator[Message] = iter(
        {"type": "http.request", "body": part, "more_body": not whole or n < len(parts) - 1}
        for n, part in enumerate(parts)
    )

    async def receive() -> Message:
        for message in messages:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"method": "POST", "path": "/", "headers": headers}
    return Request(scope, receive, intake, "m", "a", dict(headers))


def make_intake(timeout_s: float = 10.0) -> Intake:
    return Intake(requests=8, body=4 * MB, bodies=6 * MB, timeout_s=timeout_s)


async def test_small_bodies_are_not_counted() -> None:
    intake = make_intake()
    request = make_request(intake, b"x" * LARGE, length=LARGE)
    assert await request.body() == b"x" * LARGE
    assert (request.held, intake.held) == (0, 0)


@pytest.mark.parametrize("told", [True, False], ids=["by their length", "by what came"])
async def test_large_bodies_are_bounded_together(told: bool) -> None:
    intake = make_intake()
    first = make_request(intake, b"x" * MB, b"x" * 3 * MB, length=4 * MB if told else None)
    assert len(await first.body()) == 4 * MB
    assert (first.held, intake.held) == (4 * MB, 4 * MB)
    second = make_request(intake, b"x" * MB, b"x" * 2 * MB, length=3 * MB if told else None)
    with pytest.raises(NoCapacity) as refused:
        await second.body()
    assert refused.value.facts["retry_after_s"] == 1
    assert intake.held == first.held + second.held  # each is given back by whoever made the request


async def test_one_body_is_taken_in_any_case() -> None:
    intake = Intake(requests=8, body=4 * MB, bodies=MB, timeout_s=10.0)
    assert len(await make_request(intake, b"x" * 4 * MB, length=4 * MB).body()) == 4 * MB


async def test_one_that_is_too_large_is_not_held() -> None:
    intake = make_intake()
    with pytest.raises(TooLarge):
        await make_request(intake, b"", length=5 * MB).body()
    assert intake.held == 0


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    request = make_request(make_intake(timeout_s=0.01), b"x" * 100, length=200, whole=False)
    with pytest.raises(TooSlow):
        await request.body()
