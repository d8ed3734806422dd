"""Keeps keys out of logs: at their debug level, uvicorn and websockets log the headers of a handshake."""

from __future__ import annotations

import logging
import re

#: A key as a header or a WebSocket's protocol has it, and one of ours wherever it is
KEY = re.compile(
    r"(?i)((?:\bauthorization: *)?\bbearer[ .]+|\bauthorization: *)[^\s,'\"]+|cellstate_[\w-]{43}"
)


def _hidden(found: re.Match[str]) -> str:
    return (found[1] or "") + "***"


class NoKeys(logging.Filter):
    """Puts *** in the place of keys in a logger's records."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if KEY.search(message):
            record.msg, record.args = KEY.sub(_hidden, message), None
        return True


_FILTER = NoKeys()


def guard(*names: str) -> None:
    """From now on no key is in what these loggers log. Doing it again changes nothing."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)
