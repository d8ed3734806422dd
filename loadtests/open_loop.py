"""An open-loop HTTP generator: requests are due by a clock of their own, whatever the answers do.

Latency counts from when a request was due, not from when it could be sent: so a service that stands still
can't hide it. Written on epoll and sockets, as the generator shares the machine with what it measures: about
10 us a request. Requests are sent at most a millisecond late, several together at high rates.
"""

from __future__ import annotations

import contextlib
import math
import random
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

OK, REFUSED = b"200", b"429"
#: Seconds that the last answers may take when no more requests are due
PATIENCE_S = 15.0


@dataclass(slots=True)
class Outcome:
    """What a run saw. Latencies in seconds, from when the request was due; `seconds`: how long requests were
    due. unsent: due, and never sent, as no connection was free. broken: connections that ended."""

    seconds: float
    accepted: array[float] = field(default_factory=lambda: array("d"))
    refused: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[str] = field(default_factory=Counter)
    retry_after: Counter[str] = field(default_factory=Counter)  # of 429 answers, by the header's value
    unsent: int = 0
    unanswered: int = 0
    broken: int = 0
    cpu_s: float = 0.0  # of the generator

    @property
    def rate(self) -> float:
        """Accepted requests a second."""
        return len(self.accepted) / self.seconds

    @property
    def offered(self) -> float:
        return (sum(self.statuses.values()) + self.unsent + self.unanswered) / self.seconds


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile in milliseconds; NaN of nothing."""
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else math.nan


class Caller:
    """One connection and its session: sends the session's next step, and the same again after a refusal."""

    __slots__ = ("body", "buffer", "due", "head", "length", "socket", "step", "steps")

    def __init__(self, url: str, path: str, body: str, steps: int) -> None:
        """body: of a request without its braces and its step. steps: that it takes."""
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        # A JSON number may stand behind spaces: so that all bodies are of one length
        self.body = '{{"step":{:9d},' + body.replace("{", "{{").replace("}", "}}") + "}}"
        length = len(self.body.format(0).encode())
        self.head = (
            f"POST {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"content-length: {length}\r\n\r\n"
        )
        self.step, self.steps, self.due = 0, steps, 0.0
        self.buffer, self.length = b"", 0

    def send(self) -> None:
        """The next request. It fits the socket's buffer. Raises OSError."""
        self.socket.send((self.head + self.body.format(self.step)).encode())

    def read(self) -> bytes | None:
        """An answer if it is whole: its first bytes. Raises OSError when the connection ended."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionResetError("closed")
        if self.buffer:
            data = self.buffer + data
        if not self.length:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.buffer = data
                return None
            head = data[:end].lower()
            at = head.find(b"content-length:")
            self.length = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(data) < self.length:
            self.buffer = data
            return None
        self.buffer, self.length = b"", 0
        return data


class Generator:
    """Connections with their sessions, and runs of load over them."""

    def __init__(self, make: Callable[[int], Caller], connections: int, seed: int = 1) -> None:
        self._make, self._random = make, random.Random(seed)
        self._callers: dict[int, Caller] = {}
        self._epoll = select.epoll()
        self._made = 0
        for _ in range(connections):
            self._add()

    def _add(self) -> Caller:
        caller = self._make(self._made)
        self._made += 1
        self._callers[caller.socket.fileno()] = caller
        self._epoll.register(caller.socket.fileno(), select.EPOLLIN)
        return caller

    def close(self) -> None:
        for caller in self._callers.values():
            caller.socket.close()
        self._epoll.close()

    def closed_loop(self, seconds: float, connections: int) -> Outcome:
        """So many connections send their next request when they have the answer to the one before."""
        return self._run(seconds, itertools_forever(), connections)

    def open_loop(self, seconds: float, rate: float) -> Outcome:
        """Requests due by a Poisson process of that rate, on whichever connection is free."""
        return self._run(seconds, self._arrivals(rate), len(self._callers))

    def _arrivals(self, rate: float) -> Iterator[float]:
        at, draw = 0.0, self._random.expovariate
        while True:
            at += draw(rate)
            yield at

    def _run(self, seconds: float, arrivals: Iterator[float], connections: int) -> Outcome:
        out = Outcome(seconds)
        clock, cpu = time.perf_counter, time.process_time()
        idle = deque(list(self._callers.values())[:connections])
        busy = 0
        waiting: deque[float] = deque()  # due, and no connection was free
        start = clock()
        end, closed = start + seconds, isinstance(arrivals, _Forever)
        due = start + next(arrivals)
        while True:
            now = clock()
            if now >= end and (not busy or now >= end + PATIENCE_S):
                break
            if closed:
                while idle and now < end:
                    busy += self._send(idle.popleft(), now, out)
            else:
                while due <= now and due < end:
                    waiting.append(due)
                    due = start + next(arrivals)
                while waiting and idle and now < end:
                    busy += self._send(idle.popleft(), waiting.popleft(), out)
            wait = 0.05 if closed or due >= end or waiting else max(0.0, due - now)
            for number, _ in self._epoll.poll(wait):
                caller = self._callers[number]
                try:
                    answer = caller.read()
                except BlockingIOError:
                    continue
                except OSError:
                    busy -= caller.due > 0
                    idle = deque(c for c in idle if c is not caller)
                    self._replace(caller, out, idle)
                    continue
                if answer is None:
                    continue
                busy -= 1
                self._note(caller, answer, clock() - caller.due, out)
                caller.due = 0.0
                idle.append(caller)
        out.unsent, out.unanswered = len(waiting), busy
        if busy:  # those are not to be mixed with the next run's
            for caller in [c for c in self._callers.values() if c.due]:
                self._replace(caller, out, idle)
        out.cpu_s = time.process_time() - cpu
        return out

    def _send(self, caller: Caller, due: float, out: Outcome) -> int:
        caller.due = due
        with contextlib.suppress(OSError):  # that it ended is found when it is read
            caller.send()
        return 1

    def _note(self, caller: Caller, answer: bytes, latency: float, out: Outcome) -> None:
        status = answer[9:12]
        out.statuses[status.decode()] += 1
        if status == OK:
            out.accepted.append(latency)
            caller.step += caller.steps
        elif status == REFUSED:
            out.refused.append(latency)
            head = answer[:512].lower()
            at = head.find(b"retry-after:")
            out.retry_after[head[at + 12 :].split(b"\r\n", 1)[0].decode().strip() if at > 0 else "none"] += 1

    def _replace(self, caller: Caller, out: Outcome, idle: deque[Caller]) -> None:
        """A connection that ended: a new one, with a session of its own."""
        out.broken += 1
        del self._callers[caller.socket.fileno()]
        with contextlib.suppress(OSError):
            self._epoll.unregister(caller.socket.fileno())
        caller.socket.close()
        with contextlib.suppress(OSError):
            idle.append(self._add())


class _Forever:
    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        return math.inf


def itertools_forever() -> _Forever:
    return _Forever()
