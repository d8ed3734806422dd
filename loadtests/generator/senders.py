"""Several processes that send: one alone, with httpx, is busy at about a thousand requests a second."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from loadtests.generator.arrivals import Arrival, Schedule
from loadtests.generator.clock import clock, new_event_loop
from loadtests.generator.drive import drive
from loadtests.generator.recorder import Recorder
from loadtests.scenarios.traffic import Plan, Traffic
from service import processes

#: From the order to send to second 0: all processes must have got it
AHEAD_S = 0.3
GIVE_UP_S = 30.0
#: Behind the last arrival and the giving up, a sender has this long to hand in what it has
HAND_IN_S = 60.0
PREPARE_S = 600.0
TELL_S = 0.5
#: Objects between two collections of garbage: one with everything in it takes some milliseconds
GC_ALLOCATIONS = 50_000

#: Makes a sender's traffic from its plan; at the top level of a module, since it goes to another process
Make = Callable[[Plan], Traffic]
Sample = tuple[int, int, list[float]]


class SenderFailed(Exception):
    """A sender ended, or met a mistake of the program's own; the message has it."""


@dataclass(frozen=True, slots=True)
class Driven:
    """What the senders found. busy: share of a core that the busiest took."""

    recorder: Recorder
    busy: float


class Senders:
    """The processes, from `with` to its end. said: is told how many were answered and how many failed."""

    def __init__(
        self, make: Make, plan: Plan, count: int, said: Callable[[int, int], None] = lambda ok, errors: None
    ) -> None:
        self._said = said
        self._context = multiprocessing.get_context("spawn")
        self._plans = [replace(plan, part=part, parts=count) for part in range(count)]
        self._make = make
        self._pipes: list[Connection[Any, Any]] = []
        self._processes: list[Any] = []
        self.tally: Counter[str] = Counter()

    def __enter__(self) -> Senders:
        for plan in self._plans:
            here, there = self._context.Pipe()
            process = self._context.Process(target=_main, args=(self._make, plan, there, os.getpid()))
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # a sender whose pipe is closed ends
        for process in self._processes:
            process.join(5 if error is None else 0.5)
            if process.is_alive():
                process.kill()
                process.join()

    def prepare(self) -> None:
        """Opens the sessions."""
        self._count(self._all("prepare", [()] * len(self._pipes), PREPARE_S))

    def open_idle(self, count: int) -> None:
        """So many more sessions that nobody uses."""
        parts = len(self._pipes)
        shares = [(len(range(part, count, parts)),) for part in range(parts)]
        self._count(self._all("open_idle", shares, PREPARE_S))

    def drive(self, schedule: Schedule, keep: bool = False) -> Driven:
        """Sends; returns when all was answered or given up. keep: the arrivals that were answered."""
        start = clock() + AHEAD_S
        told: Counter[tuple[int, int]] = Counter()

        def tell(part: int, ok: int, errors: int) -> None:
            told[part, 0], told[part, 1] = ok, errors
            parts = range(len(self._pipes))
            self._said(sum(told[n, 0] for n in parts), sum(told[n, 1] for n in parts))

        limit_s = AHEAD_S + schedule.seconds + GIVE_UP_S + HAND_IN_S
        orders = [(schedule, start, keep)] * len(self._pipes)
        results: list[tuple[Recorder, float]] = self._all("drive", orders, limit_s, tell)
        whole = Recorder(start, keep=keep)
        for recorder, _ in results:
            whole.merge(recorder)
        self.tally.update(whole.tally)
        return Driven(whole, max(busy for _, busy in results))

    def closed(self, together: int, seconds: float) -> float:
        """What a closed loop reaches: so many at a time, each its next when the last is done. A second."""
        parts = len(self._pipes)
        orders = [(len(range(part, together, parts)), seconds) for part in range(parts)]
        results: list[tuple[Recorder, int]] = self._all("closed", orders, seconds + GIVE_UP_S + HAND_IN_S)
        for recorder, _ in results:
            self.tally.update(recorder.tally)
        return sum(count for _, count in results) / seconds

    def finish(self) -> list[Sample]:
        """Ends the connections, and the sessions if the plan says so. What is to be compared."""
        results = self._all("finish", [()] * len(self._pipes), PREPARE_S)
        self._count([recorder for recorder, _ in results])
        return [sample for _, samples in results for sample in samples]

    def _count(self, recorders: list[Recorder]) -> None:
        for recorder in recorders:
            self.tally.update(recorder.tally)

    def _all(
        self,
        what: str,
        orders: list[tuple[Any, ...]],
        limit_s: float,
        tell: Callable[[int, int, int], None] = lambda part, ok, errors: None,
    ) -> list[Any]:
        """Has every sender do it, and waits for all."""
        for pipe, order in zip(self._pipes, orders, strict=True):
            try:
                pipe.send((what, order))
            except OSError as error:
                raise SenderFailed(f"a sender has ended: {error}") from None
        results: dict[int, Any] = {}
        deadline = time.monotonic() + limit_s
        while len(results) < len(self._pipes):
            open_ones = [pipe for n, pipe in enumerate(self._pipes) if n not in results]
            ready = wait(open_ones, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise SenderFailed(f"a sender did not end `{what}` within {limit_s:.0f} s")
            for found in ready:
                part = next(n for n, each in enumerate(self._pipes) if each is found)
                try:
                    kind, content = self._pipes[part].recv()
                except EOFError:
                    raise SenderFailed(f"sender {part} ended during `{what}`") from None
                if kind == "failed":
                    raise SenderFailed(content)
                if kind == "told":
                    tell(part, *content)
                else:
                    results[part] = content
        return [results[part] for part in range(len(self._pipes))]


def _main(make: Make, plan: Plan, pipe: Connection[Any, Any], parent: int) -> None:
    """A sender's process. Ctrl-C is the parent's; it ends when its pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    processes.end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_obey(make(plan), pipe))


async def _obey(traffic: Traffic, pipe: Connection[Any, Any]) -> None:
    loop = asyncio.get_running_loop()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)
    try:
        while True:
            what, order = await loop.run_in_executor(None, pipe.recv)
            try:
                done = await _do(traffic, pipe, what, order)
            except Exception as error:  # noqa: BLE001  the parent says it
                pipe.send(("failed", f"{what}: {type(error).__name__}: {error}"))
                return
            pipe.send(("done", done))
    except (EOFError, OSError):
        os._exit(0)  # nobody is there; what is open is closed with the process


async def _do(traffic: Traffic, pipe: Connection[Any, Any], what: str, order: tuple[Any, ...]) -> Any:
    traffic.recorder = Recorder(clock())
    match what:
        case "drive":
            return await _drive(traffic, pipe, *order)
        case "closed":
            return traffic.recorder, await _closed(traffic, *order)
        case "finish":
            samples = traffic.samples()
            await traffic.finish()
            return traffic.recorder, samples
    await getattr(traffic, what)(*order)
    return traffic.recorder


async def _drive(
    traffic: Traffic, pipe: Connection[Any, Any], schedule: Schedule, start: float, keep: bool
) -> tuple[Recorder, float]:
    plan = traffic.plan
    recorder = traffic.recorder = Recorder(start, keep=keep)
    held = traffic.lanes.held + traffic.pool.held
    telling = asyncio.create_task(_tell(recorder, pipe))
    try:
        await asyncio.sleep(max(0.0, start - clock()))
        began, used = clock(), time.process_time()
        arrivals, until = schedule.arrivals(plan.part, plan.parts), start + schedule.seconds + GIVE_UP_S
        await drive(arrivals, traffic.perform, recorder, GIVE_UP_S, until=until)
        busy = (time.process_time() - used) / max(1e-3, clock() - began)
    finally:
        telling.cancel()
    recorder.held = traffic.lanes.held + traffic.pool.held - held
    return recorder, busy


async def _tell(recorder: Recorder, pipe: Connection[Any, Any]) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        ok = sum(kind.ok for kind in recorder.kinds.values())
        pipe.send(("told", (ok, recorder.errors().total())))


async def _closed(traffic: Traffic, together: int, seconds: float) -> int:
    until, count = clock() + seconds, 0

    async def one() -> None:
        nonlocal count
        while clock() < until:
            await traffic.perform(Arrival(0.0), clock())
            count += 1

    await asyncio.gather(*(one() for _ in range(together)))
    return count
