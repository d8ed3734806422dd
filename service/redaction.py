"""Keeps keys out of logs: at their debug level, uvicorn and websockets log the headers of a handshake."""

from __future__ import annotations

import logging
import re

#: A key as a header or a WebSocket's protocol has it
KEY = re.compile(r"(?i)\b(bearer[ .]+)[^\s,'\"]+")


class NoKeys(logging.Filter):
    """Puts *** in the place of keys in a logger's records."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if KEY.search(message):
            record.msg, record.args = KEY.sub(r"\1***", message), None
        return True


_FILTER = NoKeys()


def guard(*names: str) -> None:
    """From now on no key is in what these loggers log. Doing it again changes nothing."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)
