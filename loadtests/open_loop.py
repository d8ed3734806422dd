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
#: Bytes of an answer that comes in one piece
SMALL = 1400
#: Of so many refusals one is looked at for its Retry-After
SAMPLE = 16


@dataclass(slots=True)
class Outcome:
    """What a run saw. Latencies in seconds, from when the request was due, and of those in served and told
    from when it was sent; `seconds`: how long requests were due. unsent: due, and never sent, as no
    connection was free. broken: connections that ended."""

    seconds: float
    accepted: array[float] = field(default_factory=lambda: array("d"))
    refused: array[float] = field(default_factory=lambda: array("d"))
    served: array[float] = field(default_factory=lambda: array("d"))  # the accepted ones
    told: array[float] = field(default_factory=lambda: array("d"))  # the refused ones
    others: Counter[str] = field(default_factory=Counter)  # answers that are neither, by status
    retry_after: Counter[str] = field(default_factory=Counter)  # of a sample of the refusals
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
        return (self.answered + self.unsent + self.unanswered) / self.seconds

    @property
    def answered(self) -> int:
        return len(self.accepted) + len(self.refused) + sum(self.others.values())


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile in milliseconds; NaN of nothing."""
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else math.nan


class Caller:
    """One connection and its session: sends the session's next step, and the same again after a refusal."""

    __slots__ = ("buffer", "due", "pull", "push", "sent", "socket", "step", "steps", "template")

    def __init__(self, url: str, path: str, body: str, steps: int) -> None:
        """body: of a request without its braces and its step. steps: that it takes."""
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.push, self.pull = self.socket.send, self.socket.recv
        # A JSON number may stand behind spaces: so all bodies are of one length
        whole = '{"step":%9d,' + body.replace("%", "%%") + "}"
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"content-length: {len((whole % 0).encode())}\r\n\r\n"
        )
        self.template = (head.replace("%", "%%") + whole).encode()
        self.step, self.steps, self.due, self.sent = 0, steps, 0.0, 0.0
        self.buffer = b""

    def read(self) -> bytes | None:
        """An answer if it is whole. Raises OSError when the connection ended."""
        data = self.pull(32768)  # more would be mapped and unmapped by malloc each time
        if not data:
            raise ConnectionResetError("closed")
        if self.buffer:
            data = self.buffer + data
        # A small answer comes in one piece; of others the length is looked at
        if data[-1:] == b"}" and (len(data) < SMALL or _whole(data)):
            self.buffer = b""
            return data
        self.buffer = data
        return None


def _whole(data: bytes) -> bool:
    head, gap, body = data.partition(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    return bool(gap) and len(body) >= int(length)


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

    def closed_loop(self, seconds: float, connections: int, in_flight: int | None = None) -> Outcome:
        """So many connections send their next request when they have the answer to the one before; with
        in_flight they take turns, so many of them at a time."""
        return self._run(seconds, _Forever(), connections, in_flight)

    def open_loop(self, seconds: float, rate: float) -> Outcome:
        """Requests due by a Poisson process of that rate, on whichever connection is free."""
        return self._run(seconds, self._arrivals(rate), len(self._callers))

    def _arrivals(self, rate: float) -> Iterator[float]:
        at, draw = 0.0, self._random.expovariate
        while True:
            at += draw(rate)
            yield at

    def _run(
        self, seconds: float, arrivals: Iterator[float], connections: int, in_flight: int | None = None
    ) -> Outcome:
        out = Outcome(seconds)
        clock, cpu = time.perf_counter, time.process_time()
        idle = deque(list(self._callers.values())[:connections])
        busy, most = 0, in_flight or connections
        waiting: deque[float] = deque()  # due, and no connection was free
        start = clock()
        end, closed = start + seconds, isinstance(arrivals, _Forever)
        due = start + next(arrivals)
        while True:
            now = clock()
            if now >= end and (not busy or now >= end + PATIENCE_S):
                break
            if closed:
                while idle and busy < most and now < end:
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
                self._note(caller, answer, clock(), out)
                caller.due = 0.0
                idle.append(caller)
        out.unsent, out.unanswered = len(waiting), busy
        if busy:  # those are not to be mixed with the next run's
            for caller in [c for c in self._callers.values() if c.due]:
                self._replace(caller, out, idle)
        out.cpu_s = time.process_time() - cpu
        return out

    def _send(self, caller: Caller, due: float, out: Outcome) -> int:
        caller.due, caller.sent = due, time.perf_counter()
        try:
            caller.push(caller.template % caller.step)
        except OSError:
            pass  # that it ended is found when it is read
        return 1

    def _note(self, caller: Caller, answer: bytes, now: float, out: Outcome) -> None:
        status = answer[9:12]
        if status == OK:
            out.accepted.append(now - caller.due)
            out.served.append(now - caller.sent)
            caller.step += caller.steps
        elif status == REFUSED:
            out.refused.append(now - caller.due)
            out.told.append(now - caller.sent)
            if len(out.refused) % SAMPLE == 1:
                found = answer.lower().partition(b"\r\nretry-after:")[2].partition(b"\r\n")[0]
                out.retry_after[found.decode().strip() or "none"] += 1
        else:
            out.others[status.decode()] += 1

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
