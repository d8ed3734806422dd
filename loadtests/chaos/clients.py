"""Sessions that are stepped whatever happens, and what is known of them: inputs, replies, times."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtests.chaos.proxy import Stray
from loadtests.chaos.subject import MODEL
from model.bundle import Bundle
from model.network import Scaler
from model.reference import Reference
from service.client import AsyncClient, AsyncSession, ClientError, DeadlineExceeded, StepConflict

#: Between a reply in fp32 and float64, in normalised units.
TOLERANCE = 1e-4
CALL_S = 10.0


@dataclass(slots=True)
class Track:
    """One session as its client sees it. outputs: of the acknowledged steps, in order."""

    number: int
    session: AsyncSession
    outputs: list[list[float]] = field(default_factory=list)
    broken: str = ""  # why it ended early


@dataclass(slots=True)
class Findings:
    """What is wrong. lost: acknowledged steps that the service has not; doubled: steps it has beside them;
    wrong: replies that are not the reference's; broken: sessions that could not go on."""

    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    broken: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def damage(self) -> int:
        return self.lost + self.doubled + self.wrong + self.broken

    def note(self, what: str) -> None:
        if len(self.examples) < 8:
            self.examples.append(what)


class Clients:
    """All of them, in this process. Each has its own way: by a proxy alone, or by direct addresses too."""

    def __init__(
        self,
        urls: Iterable[tuple[str, bool]],
        bundle: Bundle,
        seed: int,
        rate: float,
        patience_s: float,
        model: str = MODEL,
    ) -> None:
        self._clients = [
            AsyncClient(url, timeout_s=CALL_S, direct=direct, trust_env=False) for url, direct in urls
        ]
        self._bundle, self._seed, self._rate, self._model = bundle, seed, rate, model
        self._in, self._out = (
            np.array([(signal.mean, signal.std) for signal in signals]).T
            for signals in (bundle.spec.inputs, bundle.spec.outputs)
        )
        self._stop, self._patience_s, self._last_s = asyncio.Event(), patience_s, math.inf
        self.tracks: list[Track] = []
        self.seconds: list[float] = []
        self.seen: Counter[str] = Counter()
        self.late: list[str] = []  # why calls took too long

    def inputs(self, number: int, first: int, count: int) -> NDArray[np.float64]:
        """The rows of some steps of a session, in units; always the same ones. [count, I]"""
        mean, std = self._in
        rows = [np.random.default_rng([self._seed, number, step]) for step in range(first, first + count)]
        drawn = [(rng.standard_normal(len(mean)) * std + mean).round(4) for rng in rows]
        return np.array(drawn).reshape(count, len(mean))  # also of a session that was never stepped

    async def open(self, count: int) -> None:
        for number in range(count):
            model = self._clients[number % len(self._clients)].model(self._model)
            self.tracks.append(Track(number, await model.open(f"chaos-{number}")))

    async def run(self) -> None:
        """Steps all sessions until `stop`, and then until each has the reply that it waits for."""
        await asyncio.gather(*(self._drive(track) for track in self.tracks))

    def stop(self) -> None:
        """No session begins another request; one that has no reply after the patience is stuck."""
        self._last_s = time.monotonic() + self._patience_s
        self._stop.set()

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    async def _drive(self, track: Track) -> None:
        rng = random.Random(f"{self._seed}/{track.number}")
        pause_s = len(self.tracks) / self._rate
        await self._rest(pause_s * rng.random())
        while not self._stop.is_set() and not track.broken:
            count = rng.choice((1, 1, 1, 1, 2, 5))
            await self._step(track, self.inputs(track.number, len(track.outputs), count))
            await self._rest(pause_s * rng.uniform(0.5, 1.5))

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _step(self, track: Track, inputs: NDArray[np.float64]) -> None:
        """Sends a request until it has a reply; the session is broken if there will be none."""
        began = time.monotonic()
        while True:
            try:
                reply = await track.session.step(inputs)
            except DeadlineExceeded as error:
                self.seen["calls that took too long and were made again"] += 1
                self.late.append(f"{track.session.id}: {error}")
                if time.monotonic() > self._last_s:
                    track.broken = f"no reply: {error}"
                    return
                continue
            except StepConflict as error:
                track.broken = f"refused: {error}"
                return
            except ClientError as error:
                track.broken = f"{type(error).__name__}: {error}"
                return
            break
        self.seconds.append(time.monotonic() - began)
        self.seen["requests"] += 1
        self.seen["retries"] += reply.attempts - 1
        self.seen["replayed"] += reply.replayed
        expected = len(track.outputs) + len(inputs)
        if reply.next_step != expected or reply.outputs is None:
            track.broken = f"the reply says step {reply.next_step} is next, not {expected}"
            return
        track.outputs += reply.outputs

    async def compare(self, strays: Iterable[Stray]) -> Findings:
        """All that was ever said, against the reference; and where the service says its sessions are."""
        found = Findings()
        reference = [self._reference(track) for track in self.tracks]
        for track, truth in zip(self.tracks, reference, strict=True):
            if track.broken:
                found.broken += 1
                found.note(f"{track.session.id}: {track.broken}")
            await self._count(track, found)
            error = self._error(np.array(track.outputs).reshape(truth.shape), truth).max(axis=1, initial=0.0)
            bad = np.flatnonzero(~(error <= TOLERANCE))
            if len(bad):
                found.wrong += len(bad)
                step = bad[0]
                found.note(f"{track.session.id}: step {step} is {error[step]:.1e} from the reference")
        for stray in strays:
            self._compare_stray(stray, reference, found)
        return found

    def _reference(self, track: Track) -> NDArray[np.float64]:
        weights = {name: tensor.numpy() for name, tensor in self._bundle.weights.items()}
        out_mean, out_std = self._out
        prepared = Scaler(self._bundle.spec).normalise(self.inputs(track.number, 0, len(track.outputs)))
        return np.asarray(Reference(self._bundle.spec, weights).run(prepared) * out_std + out_mean)

    def _error(self, outputs: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
        """In normalised units."""
        return np.asarray(np.abs(outputs - truth) / self._out[1])

    async def _count(self, track: Track, found: Findings) -> None:
        try:
            at = int((await track.session.facts())["next_step"])
        except ClientError as error:
            found.lost += len(track.outputs)
            found.note(f"{track.session.id}: {type(error).__name__}: {error}")
            return
        counted = len(track.outputs)
        found.lost += max(0, counted - at)
        found.doubled += max(0, at - counted)
        if at != counted:
            found.note(f"{track.session.id}: the service is at step {at}, its client at {counted}")

    def _compare_stray(self, stray: Stray, reference: list[NDArray[np.float64]], found: Findings) -> None:
        """A reply to a request sent again: as right as the first one was."""
        reply = json.loads(stray.body)
        truth = reference[int(reply["session_id"].removeprefix("chaos-"))]
        step, outputs = json.loads(stray.request)["step"], np.array(reply["outputs"])
        wanted = truth[step : step + len(outputs)]
        if len(wanted) < len(outputs):
            return  # its client broke off before that step
        self.seen["replies to what was sent again"] += 1
        if reply["step"] != step or not self._error(outputs, wanted).max() <= TOLERANCE:
            found.wrong += 1
            found.note(f"{reply['session_id']}: the second reply to step {step} is wrong")
