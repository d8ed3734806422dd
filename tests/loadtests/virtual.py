"""An event loop with a clock of its own: nobody waits, and what takes how long is exact."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time stands still while something is ready, and jumps to the next timer when nothing is."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now

    def busy(self, seconds: float) -> None:
        """As if the loop's thread had worked so long."""
        self._now += seconds


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        if timeout is None:
            return super().select(None)  # only another thread can wake it
        if timeout > 0:
            self._loop.busy(timeout)
        return super().select(0)
