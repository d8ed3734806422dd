"""What tests of the log hear, as an operator's collector would: JSON lines, as they are written."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from service.logs import JsonLines


class Heard:
    """All lines so far."""

    def __init__(self, text: io.StringIO) -> None:
        self._text = text

    @property
    def text(self) -> str:
        return self._text.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def until(self, event: str, count: int) -> list[dict[str, Any]]:
        """So many of them: a line about a request may come behind its answer."""
        deadline = time.monotonic() + 20
        while len(found := self.of(event)) < count:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)
        return found


@contextmanager
def listening(level: int = logging.INFO) -> Iterator[Heard]:
    """Hears `cellstate` and what others warn of, whichever thread it is in."""
    text, log, root = io.StringIO(), logging.getLogger("cellstate"), logging.getLogger()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonLines({}))
    before = log.level
    root.addHandler(handler)
    log.setLevel(level)
    try:
        yield Heard(text)
    finally:
        root.removeHandler(handler)
        log.setLevel(before)
