"""The head and the body of a response in one write.

uvicorn gives its transport the head, then the body, and uvloop writes each as it comes: for a small response
that is a system call, a segment and a wake-up of the client too many. ASGI has no message for both.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.asgi import Send


class _Held:
    """A transport that keeps what is written until `flush`; in all else the one that it stands for."""

    __slots__ = ("_parts", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def send_whole(send: Send, start: dict[str, Any], body: dict[str, Any]) -> None:
    """Both messages of a response. send: uvicorn's own, else it is as if each were sent."""
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle:
        await send(start)
        await send(body)
        return
    transport = cycle.transport
    held: Any = _Held(transport)
    cycle.transport = held
    try:
        await send(start)
        await send(body)
    finally:
        cycle.transport = transport
        held.flush()
