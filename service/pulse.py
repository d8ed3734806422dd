"""How late the event loop is: what a request waits for before anybody looks at it."""

from __future__ import annotations

import asyncio

from service.sessions.counters import SECONDS, Histogram

EVERY_S = 0.25


class Pulse:
    """Asks the running loop to be called in a while, again and again, and notes how much later it was."""

    def __init__(self) -> None:
        self.lag = Histogram(SECONDS)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """In the loop that runs now."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(EVERY_S, self._beat, loop, loop.time() + EVERY_S)

    def _beat(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self.lag.observe(max(0.0, loop.time() - due))
        self._timer = loop.call_later(EVERY_S, self._beat, loop, loop.time() + EVERY_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
