"""What is logged, and how: one line an event, JSON or text, each with the request it was about.

Code logs by the standard library, under `cellstate`: a sentence for people, and for programs the fields in
`extra`, of which `event` names what happened. Never in a line: inputs, outputs, states, keys. A session's id
is: it is what a client and an operator have in common.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import time
from collections.abc import Hashable
from typing import Any, TextIO

from service.asked import ASKED

LEVELS = ("debug", "info", "warning", "error")
#: What a record has that was not given as `extra`
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
#: Seconds that a line may wait for whoever reads it
SEND_S = 1.0
LONGEST = 32_000  # characters of a traceback


class JsonLines(logging.Formatter):
    """A record as one JSON object. always: fields of every line."""

    def __init__(self, always: dict[str, Any]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": _iso(record.created),
                "level": record.levelname.lower(),
                **fields_of(record, self._always),
            },
            default=str,
        )


class TextLines(logging.Formatter):
    """A record as one line for people: when, how bad, what, and the fields as key=value."""

    def __init__(self, always: dict[str, Any]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record, self._always)
        message = fields.pop("message")
        fields.pop("event", None)
        rest = "".join(f" {name}={_plain(value)}" for name, value in fields.items())
        return f"{_iso(record.created)} {record.levelname:<7} {_one_line(message)}{rest}"


def fields_of(record: logging.LogRecord, always: dict[str, Any]) -> dict[str, Any]:
    """What a line says beside its time and level: event, message, its fields, whose it is, the exception."""
    given = {name: value for name, value in vars(record).items() if name not in _OWN}
    fields = {"event": given.pop("event", record.name), "message": record.getMessage(), **given}
    fields |= {name: value for name, value in always.items() if name not in fields}
    asked = ASKED.get()
    if asked is not None and "request_id" not in fields:
        fields["request_id"] = asked.id
    if record.exc_info:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)[-LONGEST:]
    return fields


def _iso(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _one_line(text: str) -> str:
    """What is in it that would end a line, or move a terminal's cursor, is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _plain(value: object) -> str:
    if isinstance(value, list):
        value = ",".join(map(str, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = _one_line(text)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in ' "=' for c in text) else text


def formatter(log_format: str, stream: TextIO, **always: Any) -> logging.Formatter:
    """Of the setting `log_format`: auto is text on a terminal, else json."""
    always = {name: value for name, value in always.items() if value}
    return (TextLines if shown_as(log_format, stream) == "text" else JsonLines)(always)


def shown_as(log_format: str, stream: TextIO) -> str:
    """text or json."""
    return log_format if log_format != "auto" else "text" if stream.isatty() else "json"


def configure(log_level: str, log_format: str, log_to: str = "", **always: Any) -> None:
    """For a process that is ours: its lines go to stderr, or to the socket at `log_to` if somebody listens.
    always: fields of every line; empty ones are left out. Done again, it replaces the first."""
    handler: logging.Handler = ToSocket(log_to) if log_to else logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format, sys.stderr, **always))
    root = logging.getLogger()
    for old in [h for h in root.handlers if getattr(h, "of_cellstate", False)]:
        root.removeHandler(old)
        old.close()
    handler.of_cellstate = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # what others say of their progress is nobody's concern here
    logging.getLogger("cellstate").setLevel(log_level.upper())
    logging.captureWarnings(True)


class ToSocket(logging.StreamHandler[TextIO]):
    """Lines for the `cellstate serve` that started this process; on stderr when nobody listens any more."""

    def __init__(self, path: str) -> None:
        super().__init__(sys.stderr)
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(SEND_S)
            self._socket.connect(path)
        except OSError:
            self._hang_up()

    def emit(self, record: logging.LogRecord) -> None:
        if self._socket is not None:
            try:
                self._socket.sendall(self.format(record).encode() + b"\n")
                return
            except OSError:
                self._hang_up()
        super().emit(record)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._hang_up()
        super().close()


class Repeated:
    """For what may happen a thousand times a second: the first is logged as it comes, and of the rest one
    line a second says how many they were. Keys must be bounded: they are counted apart."""

    def __init__(self, log: logging.Logger, period_s: float = 1.0) -> None:
        self._log, self._period_s = log, period_s
        self._counts: dict[Hashable, int] = {}

    def tell(self, key: Hashable, level: int, message: str, **fields: Any) -> None:
        """Cheap when it repeats: nothing is formatted."""
        if key in self._counts:
            self._counts[key] += 1
            return
        if not self._log.isEnabledFor(level):
            return
        self._log.log(level, message, extra=fields)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no clock to count by: each is told
            return
        self._counts[key] = 0
        fields = {name: value for name, value in fields.items() if name not in ("request_id", "session")}
        loop.call_later(self._period_s, self._sum_up, key, level, message, fields)

    def _sum_up(self, key: Hashable, level: int, message: str, fields: dict[str, Any]) -> None:
        count = self._counts.pop(key)
        if not count:
            return
        token = ASKED.set(None)  # the timer was set by the first of them, and these are others
        try:
            self._log.log(level, message, extra={**fields, "more": count})
        finally:
            ASKED.reset(token)
        self._counts[key] = 0
        asyncio.get_running_loop().call_later(self._period_s, self._sum_up, key, level, message, fields)
