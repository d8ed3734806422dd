"""Several threads for one call: of a step each takes its own units of all sessions, so that its part of the
weights stays in its own cache; of a chunk its own sessions.

A worker is a Python thread inside one native call that lasts as long as the team. It looks for work for a
while (a tick comes soon after another), then sleeps until it is woken: Linux's futex. Elsewhere there are no
workers, and the caller does it all.
"""

from __future__ import annotations

import platform
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import llvmlite.ir as ll
import numpy as np
from numpy.typing import NDArray

from service.engine.native.ir import INT, POINTER, WORD, Kernel, Value

#: A worker's mailbox, 8 bytes a word: what is written by the caller and by the worker on lines of their own.
TICKET, JOB, FRAME, DONE, ASLEEP, WORDS = 0, 1, 2, 16, 17, 32
STEP_JOB, CHUNK_JOB, STOP = 1, 2, 3
#: Looks for work before a worker sleeps: some 0.3 ms, about what lies between two ticks under load.
LOOKS = 20_000
_FUTEX_CALL = {"x86_64": 202, "aarch64": 98}
#: Looks at the others before a thread that waits for them lets something else run: they may want its core.
PATIENCE = 2000
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, private to the process

Array = NDArray[np.int64]

#: A call: addresses of the mailboxes, how many workers take part, the number of the call, its job, and the
#: caller's own frame.
CREW = ("mailboxes", "workers", "ticket", "job", "frame")


def can_sleep() -> bool:
    return platform.system() == "Linux" and platform.machine() in _FUTEX_CALL


def _futex(k: Kernel, box: Value, operation: int, number: Value) -> None:
    """Sleeps while the ticket's lower half is `number`, or wakes so many sleepers."""
    type_ = ll.FunctionType(INT, [INT], var_arg=True)
    syscall = k.module.globals.get("syscall") or ll.Function(k.module, type_, "syscall")
    call, null = ll.Constant(INT, _FUTEX_CALL[platform.machine()]), ll.Constant(POINTER, None)
    operation_, value = ll.Constant(WORD, operation), k.builder.trunc(number.ssa, WORD)
    k.builder.call(syscall, [call, box.ssa, operation_, value, null, null, ll.Constant(WORD, 0)])


def meet(k: Kernel, counter: Value, members: Value, order: Value) -> None:
    """Returns when all members have come here; `order`: how often they have met on this counter before."""
    k.count_up(counter)
    _wait(k, counter, members * (order + 1))


def _wait(k: Kernel, address: Value, number: Value) -> None:
    """Returns when the integer there is no less than the number."""
    looks = k.room(INT)
    k.store(k.number(0), looks, align=8)
    with k.as_long_as(lambda: k.seen(address).less(number)):
        k.pause()
        k.store(k.load_int(looks) + 1, looks, align=8)
        with k.when(k.number(PATIENCE).less(k.load_int(looks))):
            yield_ = k.module.globals.get("sched_yield") or ll.Function(
                k.module, ll.FunctionType(WORD, []), "sched_yield"
            )
            k.builder.call(yield_, [])


def add_team(module: ll.Module, step: ll.Function, chunk: ll.Function) -> None:
    """Adds `worker`, which takes its mailbox, and `together`, which takes a `CREW`."""
    _add_worker(module, step, chunk)
    k = Kernel(module, "together", {"crew": POINTER})
    crew = k.arguments["crew"]
    boxes, workers = k.load_address(crew, 0), k.load_int(crew, 1)
    ticket, job, frame = k.load_int(crew, 2), k.load_int(crew, 3), k.load_address(crew, 4)
    with k.loop(0, workers) as n:
        box = k.at(boxes, n, 8 * WORDS)
        k.show(ticket, k.at(box, 8 * TICKET))
        with k.when(k.number(0).less(k.seen(k.at(box, 8 * ASLEEP)))):
            _futex(k, box, _WAKE, k.number(1))
    own = {STEP_JOB: partial(k.call, step, frame), CHUNK_JOB: partial(k.call, chunk, frame)}
    k.choose(job, own)
    with k.loop(0, workers) as n:
        box = k.at(boxes, n, 8 * WORDS)
        _wait(k, k.at(box, 8 * DONE), ticket)
    k.end()


def _add_worker(module: ll.Module, step: ll.Function, chunk: ll.Function) -> None:
    k = Kernel(module, "worker", {"mailbox": POINTER})
    box = k.arguments["mailbox"]
    last = k.room(INT)
    k.store(k.number(0), last, align=8)
    running = k.room(INT)
    k.store(k.number(1), running, align=8)
    looks = k.room(INT)
    with k.as_long_as(lambda: k.number(0).less(k.load_int(running))):
        k.store(k.number(0), looks, align=8)
        seen = k.load_int(last)
        with k.as_long_as(lambda: k.seen(k.at(box, 8 * TICKET)).less(seen + 1)):
            k.pause()
            k.store(k.load_int(looks) + 1, looks, align=8)
            with k.when(k.number(LOOKS).less(k.load_int(looks))):
                k.show(k.number(1), k.at(box, 8 * ASLEEP))
                _futex(k, box, _WAIT, seen)  # returns at once if the ticket has changed
                k.show(k.number(0), k.at(box, 8 * ASLEEP))
        k.store(k.seen(k.at(box, 8 * TICKET)), last, align=8)
        frame = k.load_address(box, FRAME)
        jobs = {
            STEP_JOB: partial(k.call, step, frame),
            CHUNK_JOB: partial(k.call, chunk, frame),
            STOP: partial(k.store, k.number(0), running, 8),
        }
        k.choose(k.load_int(box, JOB), jobs)
        k.show(k.load_int(last), k.at(box, 8 * DONE))
    k.end()


class Team:
    """The caller's thread and `threads - 1` workers, which end with this object.

    worker, together: the native functions, from address to nothing.
    """

    def __init__(self, threads: int, worker: Callable[[int], None], together: Callable[[int], None]) -> None:
        self.size = threads if can_sleep() else 1
        self._boxes = np.zeros((max(1, self.size - 1), WORDS), np.int64)
        self._crew = np.zeros(len(CREW), np.int64)
        self._crew[0] = self._boxes.ctypes.data
        self._together = together
        workers = []
        for n, box in enumerate(self._boxes[: self.size - 1]):
            name = f"cellstate-kernel-{n + 1}"
            workers.append(threading.Thread(target=worker, args=(box.ctypes.data,), name=name, daemon=True))
            workers[-1].start()
        # also at the interpreter's exit: a thread in native code must not outlive the memory it looks at
        self._end = weakref.finalize(self, _stop, self._crew, self._boxes, together, workers)

    def run(self, job: int, frames: Sequence[int]) -> None:
        """Calls the job's function on every frame, the first of them on this thread; waits for all."""
        _call(self._crew, self._boxes, job, frames)
        self._together(self._crew.ctypes.data)

    def close(self) -> None:
        """Ends the workers."""
        self._end()


def _call(crew: Array, boxes: Array, job: int, frames: Sequence[int]) -> None:
    for box, frame in zip(boxes, frames[1:], strict=False):
        box[JOB], box[FRAME] = job, frame
    crew[1:] = len(frames) - 1, crew[2] + 1, job, frames[0]


def _stop(
    crew: Array, boxes: Array, together: Callable[[int], None], workers: Sequence[threading.Thread]
) -> None:
    _call(crew, boxes, STOP, [0] * (len(workers) + 1))
    together(crew.ctypes.data)
    for worker in workers:
        worker.join()
