"""A response in one write is, byte for byte, what uvicorn would have sent in two."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.api.messages import Response
from service.api.whole import send_whole


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True


def make_cycle(transport: Any, ended: list[bool], **changes: Any) -> Any:
    """uvicorn's own; untyped, for its messages are of types that ours don't name."""
    arguments: dict[str, Any] = {
        "scope": {"method": changes.pop("method", "POST"), "http_version": "1.1"},
        "transport": transport,
        "flow": FlowControl(transport),
        "logger": None,
        "access_logger": None,
        "access_log": False,
        "default_headers": [(b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")],
        "message_event": asyncio.Event(),
        "expect_100_continue": False,
        "keep_alive": True,
        "on_response": lambda: ended.append(True),
    }
    return RequestResponseCycle(**(arguments | changes))


@pytest.mark.parametrize("response", [
    Response(200, b'{"a": 1}'),
    Response(503, b"{}", headers=((b"retry-after", b"1"),)),
    Response(200),
    Response(204),
])  # fmt: skip
@pytest.mark.parametrize("changes", [{}, {"method": "HEAD"}, {"method": "GET"}, {"keep_alive": False}])
async def test_the_same_bytes_and_the_same_end(response: Response, changes: dict[str, Any]) -> None:
    whole, parts = Transport(), Transport()
    ended: list[bool] = []
    ours, plain = make_cycle(whole, ended, **changes), make_cycle(parts, ended, **changes)
    head = changes.get("method") == "HEAD"
    await response.send(ours.send, head=head)
    send = plain.send
    await response.send(lambda message: send(message), head=head)  # not a method of the cycle: two writes
    assert b"".join(whole.written) == b"".join(parts.written)
    assert len(whole.written) == 1
    assert whole.closed == parts.closed == ("keep_alive" in changes)
    assert ended == [True, True]
    for name in ("response_started", "response_complete", "expected_content_length", "keep_alive"):
        assert getattr(ours, name) == getattr(plain, name)
    assert ours.message_event.is_set()


async def test_a_second_response_is_refused() -> None:
    cycle = make_cycle(Transport(), [])
    await Response(200, b"a").send(cycle.send)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}
    with pytest.raises(RuntimeError, match="already completed"):
        await send_whole(cycle.send, start, {"type": "http.response.body", "body": b"b"})


async def test_a_client_that_is_gone_gets_nothing() -> None:
    transport = Transport()
    cycle = make_cycle(transport, [])
    cycle.disconnected = True
    await Response(200, b"a").send(cycle.send)
    assert transport.written == []
