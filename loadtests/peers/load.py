"""Load: wrk over HTTP, and what it prints as numbers."""

from __future__ import annotations

import http.client
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = Path(__file__).with_name("step.lua")
#: wrk's units, in milliseconds
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}


class Failed(Exception):
    """A cell of the table can't be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: steps a second, milliseconds, and replies that were none or errors."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Form:
    """How a rival wants its requests: templates with {id} for the session and {x} for eight numbers.

    `first` opens a session, `next` steps it; with `numbered` they carry {step}, as a client that may retry
    would send it.
    """

    path: str
    next: str
    first: str = ""
    numbered: str = ""
    #: The way to the numbers in the parsed reply
    reply: tuple[str | int, ...] = ("outputs", 0)

    def body(self, session: str, x: str, step: int | None = None) -> str:
        """A request of one step. step: its number; None: as the load generator sends it."""
        template = self.next
        if step is not None:
            template = self.numbered or (self.first if step == 0 and self.first else self.next)
        return template.replace("{id}", session).replace("{x}", x).replace("{step}", str(step))

    def outputs(self, reply: object) -> list[float]:
        """The numbers in a parsed reply. Raises LookupError or TypeError when they are not there."""
        for key in self.reply:
            reply = reply[key]  # type: ignore[index]
        assert isinstance(reply, list)
        return [float(value) for value in reply]


def parse_wrk(printed: str) -> Cell:
    """What `wrk --latency` printed. Raises Failed when that is not a whole result."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", printed, re.MULTILINE)
    p50, p99 = (re.search(rf"^\s+{p}%\s+([\d.]+)(us|ms|s|m|h)\s*$", printed, re.MULTILINE) for p in (50, 99))
    if not (rate and p50 and p99 and float(rate[1])):
        raise Failed(f"wrk: {printed.strip() or 'printed nothing'}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    socket = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", printed)
    errors = (int(bad[1]) if bad else 0) + (sum(map(int, socket.groups())) if socket else 0)
    p50_ms, p99_ms = (float(p[1]) * UNITS[p[2]] for p in (p50, p99))
    return Cell(float(rate[1]), p50_ms, p99_ms, errors)


def run_wrk(url: str, form: Form, connections: int, seconds: int, prefix: str, x: str) -> Cell:
    """Single steps from that many connections. The sessions must be open: `sessions_for(connections)`."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "5s"]
    command += ["-s", str(SCRIPT), url, "--", form.path, form.next.replace("{x}", x)]
    command += [str(sessions_for(connections)), prefix]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    return parse_wrk(done.stdout + done.stderr)


def sessions_for(connections: int) -> int:
    """wrk's script does not know which connection it speaks for: with a session each, two of them would often
    meet in one session. So there are more sessions, and they take turns."""
    return connections if connections == 1 else 4 * connections


def open_sessions(url: str, form: Form, prefix: str, count: int, x: str) -> None:
    """The first step of each session, for those rivals that want to be told. Raises Failed."""
    if not form.first:
        return
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    for number in range(count):
        session = f"{prefix}{number}"
        body = form.body(session, x, 0)
        path = form.path.replace("{id}", session)
        connection.request("POST", path, body, {"content-type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        if reply.status >= http.client.BAD_REQUEST:
            raise Failed(f"opening a session: {reply.status} {text[:200]!r}")
    connection.close()
