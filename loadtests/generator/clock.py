"""An event loop whose timers are exact to some microseconds.

asyncio's waits for its sockets with epoll, whose timeout is in whole milliseconds: a request would be sent up
to one late, which is as long as a step takes.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import time

#: Seconds; of the machine, so that several processes agree on it
clock = time.monotonic


class _Selector(selectors.EpollSelector):
    """Waits by select(2), whose timeout is in microseconds, for epoll's own descriptor to become readable."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """For asyncio.Runner."""
    return asyncio.SelectorEventLoop(_Selector())
