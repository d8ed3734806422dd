"""Long work in small pieces, so that the event loop comes back to its sockets between them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

#: Seconds that a turn is put off for short requests, at most: of many there is always one
HOLD_S = 0.0006


class Turns:
    """Of all who have more to do, one goes on in each round of the event loop: eight large bodies that come
    together take as long as one behind the other, and nobody waits for more than one piece of one of them.

    busy: whether a short request is on its way, asked before each turn: it goes first, or it would wait for a
    piece before its tick and for another one before its reply."""

    def __init__(self, busy: Callable[[], bool] = lambda: False) -> None:
        self._busy = busy
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._armed = False
        self._held = 0.0  # when the next turn was first put off; 0: it was not

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
        if self._busy():
            now = time.perf_counter()
            self._held = self._held or now
            if now - self._held < HOLD_S:
                asyncio.get_running_loop().call_soon(self._go_on)
                return
        self._held = 0.0
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its task was cancelled
                turn.set_result(None)
                break
        self._armed = bool(self._waiting)
        if self._armed:
            asyncio.get_running_loop().call_soon(self._go_on)
