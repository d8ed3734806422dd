"""Whether everybody computes the same, and what is left after `kill -9` in the middle of it.

Every session's inputs are drawn by its number, so that a float64 reference can say what each reply must be:
also what it would be had the state been lost, or a step been taken twice.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from loadtests.peers.load import Failed, Form
from loadtests.peers.servers import Server
from model.bundle import Bundle
from model.reference import Reference

CHECKED, SESSIONS, CLIENTS = 20, 24, 8
#: How far from the reference a reply may be. Ours are computed with weights in bfloat16, as by default.
TOLERANCE = 2e-2
BEFORE_S, ANSWER_S = 1.0, 40.0
STATUS_AGAIN = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT, HTTPStatus.BAD_GATEWAY)


@dataclass
class Session:
    """One client's session. `acked`: replies it has; `underway`: it sent a step and has no reply."""

    number: int
    name: str
    bundle: Bundle
    acked: int = 0
    underway: bool = False
    worst: float = 0.0
    reference: Reference = field(init=False)

    def __post_init__(self) -> None:
        self.reference = self.new()

    def new(self) -> Reference:
        return Reference(self.bundle.spec, {name: w.numpy() for name, w in self.bundle.weights.items()})

    def x(self, step: int) -> NDArray[np.float64]:
        """Inputs with few digits, the same for everybody: no rounding but the arithmetic's."""
        return np.round(np.random.default_rng((self.number, step)).uniform(-2, 2, 8), 3)

    def text(self, step: int) -> str:
        return ",".join(str(float(value)) for value in self.x(step))

    def compare(self, reply: Sequence[float]) -> float:
        """Steps the reference on; the largest difference to the reply."""
        difference = float(np.abs(self.reference.step(self.x(self.acked))[0] - reply).max())
        self.acked += 1
        self.worst = max(self.worst, difference)
        return difference


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a kill -9 left of `sessions`; `underway`: had a step sent and no reply."""

    way: str
    sessions: int
    underway: int
    kept: int
    zero: int
    refused: int
    doubled: int
    wrong: int
    #: What the second of two equal requests did: "the same reply", "a second step" or an error
    again: str
    start_s: float
    answer_s: float


class Client:
    """One kept connection, steps of one after the other."""

    def __init__(self, url: str, form: Form) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=15)
        self._form = form

    def step(self, session: Session, step: int) -> tuple[int, list[float]]:
        """Status and numbers of one step. Raises OSError or HTTPException without a reply."""
        body = self._form.body(session.name, session.text(step), step)
        path = self._form.path.replace("{id}", session.name)
        self._connection.request("POST", path, body, {"content-type": "application/json"})
        reply = self._connection.getresponse()
        text = reply.read()
        if reply.status >= HTTPStatus.BAD_REQUEST:
            return reply.status, []
        return reply.status, self._form.outputs(json.loads(text))

    def close(self) -> None:
        self._connection.close()


def check(server: Server, url: str, bundle: Bundle, prefix: str) -> list[Session]:
    """New sessions, stepped in turn and each reply compared to the reference. Raises Failed."""
    sessions = [Session(number, f"{prefix}{number}", bundle) for number in range(SESSIONS)]
    client = Client(url, server.form)
    for step in range(CHECKED):
        for session in sessions:
            status, reply = client.step(session, step)
            if not reply or (difference := session.compare(reply)) > TOLERANCE:
                what = f"status {status}" if not reply else f"{difference:.2g} from the reference"
                raise Failed(
                    f"{server.name} is not the same model: session {session.number}, step {step}: {what}"
                )
    client.close()
    return sessions


def retried(server: Server, url: str, session: Session) -> str:
    """Sends one step twice, as after a lost reply: what the second did."""
    client = Client(url, server.form)
    step = session.acked
    _, first = client.step(session, step)
    session.compare(first)
    status, second = client.step(session, step)
    client.close()
    if not second:
        return f"error {status}"
    return "the same reply" if second == first else "a second step"


def killed(server: Server, way: str, sessions: list[Session]) -> Outcome:
    """Kills the server while its sessions are stepped, starts it again and asks every session for its next
    step: the one that was under way once more, as a client would."""
    again = retried(server, server.ways[way], sessions[-1])
    sessions = sessions[:-1]  # the last may have made a step twice
    before = threading.Barrier(CLIENTS + 1)
    threads = [
        threading.Thread(target=_go_on, args=(server, server.ways[way], sessions[i::CLIENTS], before))
        for i in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    before.wait()
    time.sleep(BEFORE_S)
    server.kill()
    for thread in threads:
        thread.join()
    underway = sum(session.underway for session in sessions)
    start_s = server.start()
    began = time.monotonic()
    found = [_look(server, server.ways[way], session) for session in sessions]
    counts = {kind: found.count(kind) for kind in ("kept", "zero", "refused", "doubled", "wrong")}
    answer_s = time.monotonic() - began
    return Outcome(way, len(sessions), underway, **counts, again=again, start_s=start_s, answer_s=answer_s)


def _go_on(server: Server, url: str, sessions: list[Session], before: threading.Barrier) -> None:
    """Steps these sessions in turn until the server is gone."""
    client = Client(url, server.form)
    before.wait()
    while True:
        for session in sessions:
            session.underway = True
            try:
                _, reply = client.step(session, session.acked)
            except (OSError, http.client.HTTPException):
                client.close()
                return
            if not reply:
                return  # a door that has lost its server says so
            session.compare(reply)
            session.underway = False


def _look(server: Server, url: str, session: Session) -> str:
    """What the session's next step says about its state."""
    deadline = time.monotonic() + ANSWER_S
    while True:
        client = Client(url, server.form)
        try:
            # A session that is not there is never opened anew by this: step is not 0.
            status, reply = client.step(session, session.acked)
        except (OSError, http.client.HTTPException):
            status, reply = HTTPStatus.SERVICE_UNAVAILABLE, []
        client.close()
        if reply or status not in STATUS_AGAIN or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if not reply:
        return "refused"
    x = session.x(session.acked)
    empty = session.new()
    zero = empty.step(x)[0]
    right = session.reference.step(x)[0]
    twice = session.reference.step(x)[0]
    distance = {
        kind: float(np.abs(value - reply).max())
        for kind, value in (("kept", right), ("doubled", twice), ("zero", zero))
    }
    nearest = min(distance, key=lambda kind: distance[kind])
    return nearest if distance[nearest] < TOLERANCE else "wrong"
