"""The open loop: requests go out when they are due, whether or not earlier ones were answered.

A closed loop waits for a reply before it sends on: while the service stalls it sends nothing, and the stall
is one slow request among many (coordinated omission). Here all that was due meanwhile counts, from its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from math import inf

from loadtests.generator.arrivals import Arrival
from loadtests.generator.recorder import Recorder

#: Sends what is due: the arrival and its intended time on the clock; records what became of it itself
Perform = Callable[[Arrival, float], Awaitable[None]]


async def drive(
    arrivals: Iterable[Arrival],
    perform: Perform,
    recorder: Recorder,
    give_up_s: float = 30.0,
    stopped: Callable[[], bool] = lambda: False,
    until: float = inf,
) -> None:
    """Returns when all have ended; what has not `give_up_s` behind the last arrival is cancelled and
    counted as `no_reply`. What could not be begun before the time `until` is not, and counted as
    `not_sent`: so a sender that fell behind comes to an end, and its run says so. An exception of
    `perform` is the program's own mistake and is raised."""
    clock = asyncio.get_running_loop().time
    running: set[asyncio.Task[None]] = set()
    failed: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failed.append(error)

    async def one(arrival: Arrival, intended: float) -> None:
        began = clock()
        recorder.began(intended, began)
        try:
            await perform(arrival, intended)
        except asyncio.CancelledError:
            recorder.ended("given up", intended, began, clock(), arrival.steps, "no_reply")
            recorder.tally["unknown"] += max(1, arrival.steps)
            raise

    for arrival in arrivals:
        intended = recorder.start + arrival.at
        # At 0 too: those that were begun must get their turn, or the lag would not be seen
        await asyncio.sleep(max(0.0, intended - clock()))
        if failed or stopped():
            break
        recorder.due(intended)
        if (now := clock()) > until:
            recorder.ended("given up", intended, now, now, arrival.steps, "not_sent")
            continue
        task = asyncio.create_task(one(arrival, intended))
        running.add(task)
        recorder.most_in_flight = max(recorder.most_in_flight, len(running))
        task.add_done_callback(ended)
    if running:
        await asyncio.wait(running, timeout=0 if failed else give_up_s)
    for task in list(running):
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    if failed:
        raise failed[0]
