"""Turns the engine on an event loop: at once when there is work, never waiting for a batch to fill.

A tick runs on the loop's own thread. Between two ticks the loop polls its sockets, so what arrives during a
tick is the next batch; and a small step costs less than handing it to another thread would.

What has arrived is in three places: in the queue, in callbacks that are ready, and in sockets not yet read. A
tick at the first of them would leave the others out and run half-empty batches for ever. So it lets the loop
go round again as long as that brings more, RE_POLLS times at most: no timer, and a request alone loses a few
microseconds. With 64 connections this doubled the batch and gave a third more requests a second. And before a
tick of long requests, which takes its time, it always goes round: a short one may be on its way.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from service.engine.engine import Engine
from service.engine.jobs import Job

RE_POLLS = 2


class EngineLoop:
    """Owns the engine while it runs. `on_tick` gets, after each tick and on the loop's thread, the jobs that
    ended with it, and must commit or abort each that is DONE. `on_spill` is told when states went to the host
    between ticks."""

    def __init__(
        self,
        engine: Engine,
        on_tick: Callable[[list[Job]], None],
        on_spill: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self._on_tick, self._on_spill = on_tick, on_spill
        self._loop = asyncio.get_running_loop()
        # A tick is nobody's: not of the request that happened to arm it, whose context it would inherit
        self._context = contextvars.copy_context()
        self._armed = False
        self._tidying = False
        self._waiting = 0  # jobs when the sockets were last polled
        self._polls = 0

    def submit(self, job: Job) -> None:
        """Queues a job; its tick begins when the callbacks that are ready now have run."""
        self.engine.submit(job)
        self.wake()

    def wake(self) -> None:
        """Arms a tick if there is work: after a submission, and after rows came free."""
        if not self._armed and self.engine.has_work:
            self._armed, self._waiting, self._polls = True, 0, 0
            self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        scheduler = self.engine.scheduler
        waiting = scheduler.short or len(scheduler)
        if (waiting > max(1, self._waiting) or not scheduler.short) and self._polls < RE_POLLS:
            self._waiting, self._polls = waiting, self._polls + 1
            self._loop.call_soon(self._turn, context=self._context)
            return
        self._armed = False
        ended = self.engine.tick()
        progressed = bool(ended) or self.engine.last_tick.batch > 0
        self._on_tick(ended)
        if progressed:  # else every job waits for a row: whoever frees one wakes the loop
            self.wake()
        self._tidy_soon()

    def _tidy_soon(self) -> None:
        if self.engine.short and not self._tidying:
            self._tidying = True
            self._loop.call_soon(self._tidy)  # behind the callbacks that send this tick's replies

    def _tidy(self) -> None:
        """Frees slots ahead of need, unless there is work: then a job that finds no room makes some."""
        self._tidying = False
        if not self.engine.has_work and self.engine.short:
            self.engine.spill_ahead()
            self._on_spill()
            self._tidy_soon()
