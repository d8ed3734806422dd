"""Turns the engine on an event loop: at once when there is work, never waiting for a batch to fill.

A tick runs on the loop's own thread. Between two ticks the loop polls its sockets, so what arrives during a
tick is the next batch; and a small step costs less than handing it to another thread would.

What has arrived is in three places: in the queue, in callbacks that are ready, and in sockets not yet read. A
tick at the first of them would leave the others out and run half-empty batches for ever. So it lets the loop
go round again as long as that brings more, RE_POLLS times at most: no timer, and a request alone loses a few
microseconds. With 64 connections this doubled the batch and gave a third more requests a second. And before a
tick of long requests, which takes its time, it always goes round: a short one may be on its way; and if a
request was read meanwhile, until its job can be there.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from service.engine.engine import Engine
from service.engine.jobs import Job

RE_POLLS = 2
#: Rounds that a request takes from its socket to its job. So many after a tick, what came while it ran goes
#: before all else, if short requests are about
FRESH = 2
#: Rounds before a tick, whatever is expected
MOST_POLLS = 12


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
        self._fresh = 0  # rounds in which others should wait
        self._expected = 0  # rounds until the job of a request that was read may be there

    def busy(self) -> bool:
        """Whether other work on the loop should wait for the next round: a job of one step waits, or a tick
        has just ended, and its replies, or what came meanwhile, go first. To be asked once a round."""
        if self._fresh:
            self._fresh -= 1
            return True
        return self.engine.scheduler.short > 0

    def submit(self, job: Job) -> None:
        """Queues a job; its tick begins when the callbacks that are ready now have run."""
        self.engine.submit(job)
        self.wake()

    def wake(self) -> None:
        """Arms a tick if there is work: after a submission, and after rows came free."""
        if not self._armed and self.engine.has_work:
            self._armed, self._waiting, self._polls = True, 0, 0
            self._loop.call_soon(self._turn, context=self._context)

    def expect(self) -> None:
        """A request was read from its socket. It may be short: a tick of long ones that has not begun gives
        it time to get here."""
        self._expected = self._fresh = FRESH

    def _turn(self) -> None:
        if self._polls < MOST_POLLS and self._goes_round():
            self._polls += 1
            self._loop.call_soon(self._turn, context=self._context)
            return
        self._armed = False
        ended = self.engine.tick()
        self._fresh = FRESH if self.engine.scheduler.expecting else 0
        progressed = bool(ended) or self.engine.last_tick.batch > 0
        self._on_tick(ended)
        if progressed:  # else every job waits for a row: whoever frees one wakes the loop
            self.wake()
        self._tidy_soon()

    def _goes_round(self) -> bool:
        """Whether the loop should go round once more before a tick."""
        scheduler, waited = self.engine.scheduler, self._waiting
        self._waiting = scheduler.short or len(scheduler)
        if scheduler.short:
            return self._polls < RE_POLLS and self._waiting > max(1, waited)
        if self._expected:
            self._expected -= 1
            return True
        return self._polls < RE_POLLS + (FRESH if scheduler.expecting else 0)

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
