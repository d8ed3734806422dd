"""Long work in small pieces, so that the event loop comes back to its sockets between them."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Of all who have more to do, one goes on in each round of the event loop: eight large bodies that come
    together take as long as one behind the other, and nobody waits for more than one piece of one of them."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._armed = False

    async def next(self) -> None:
        """Until it is the caller's turn: in a later round of the loop, behind those who asked before."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._armed:
            self._armed = True
            loop.call_soon(self._go_on)
        await turn

    async def rest(self) -> None:
        """Until nobody has more to do: what was begun is at its end."""
        quiet = 0
        while quiet < 3:  # who had a turn asks for the next in the round behind it
            quiet = 0 if self._waiting else quiet + 1
            await asyncio.sleep(0)

    def _go_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its task was cancelled
                turn.set_result(None)
                break
        self._armed = bool(self._waiting)
        if self._armed:
            asyncio.get_running_loop().call_soon(self._go_on)
