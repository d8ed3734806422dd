"""Several ways to compute the same thing, timed in turns.

A machine's speed changes from minute to minute, with its clock, its guests and its caches: figures taken one
after the other are not comparable. So each contestant runs a short burst, then the next, round after round,
in another order each time: nobody always finds the caches as the same one left them.
"""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

ROUNDS = 5, 101  # at least, whatever the time; at most
#: Longest burst of calls that are shorter than it. With several threads longer: OpenMP's and ONNX Runtime's
#: spin on for some milliseconds after their last call and hold a core, which is no part of a median then.
BURST_S, LONG_BURST_S = 0.01, 0.05


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way. inference: it is torch's own and runs in inference mode, its fastest."""

    name: str
    call: Callable[[], object]
    inference: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of a call, a median of each round. `us` is their median, `best_us` the best."""

    each: tuple[float, ...]

    @property
    def us(self) -> float:
        return statistics.median(self.each)

    @property
    def best_us(self) -> float:
        return min(self.each)

    @property
    def rounds(self) -> int:
        return len(self.each)

    def share_of(self, other: Timing) -> float:
        """This time over another's, round by round: their median, which the machine's moods change least."""
        return statistics.median(a / b for a, b in zip(self.each, other.each, strict=True))


@contextlib.contextmanager
def quiet(threads: int) -> Iterator[None]:
    """So many threads of tensor arithmetic; no garbage collection, as in `timeit`; and on CUDA no TF32, which
    torch lets cuDNN alone use and which is no float32."""
    before, collecting, tf32 = torch.get_num_threads(), gc.isenabled(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = tf32
        if collecting:
            gc.enable()


def interleave(
    contestants: Sequence[Contestant],
    seconds: float,
    device: torch.device | None = None,
    rounds: int = ROUNDS[0],
    threads: int = 1,
) -> dict[str, Timing]:
    """Times every contestant for about `seconds` in all; longer if `rounds` rounds take longer.

    device: a CUDA device is waited for after each call. threads: that each contestant uses.
    """
    settle = torch.cuda.synchronize if device is not None and device.type == "cuda" else None
    burst_s = LONG_BURST_S if threads > 1 else min(BURST_S, seconds / (rounds * len(contestants)))
    counts = {c.name: _count(c, burst_s, settle) for c in contestants}
    medians: dict[str, list[float]] = {c.name: [] for c in contestants}
    until, done, order = time.perf_counter() + seconds, 0, list(contestants)
    shuffle = random.Random(0).shuffle  # noqa: S311  an order, not a secret
    while done < rounds or (done < ROUNDS[1] and time.perf_counter() < until):
        shuffle(order)
        for c in order:
            medians[c.name].append(statistics.median(_burst(c, counts[c.name], settle)))
        done += 1
    return {name: Timing(tuple(us)) for name, us in medians.items()}


def _count(c: Contestant, burst_s: float, settle: Callable[[], None] | None) -> int:
    """Calls that fill a burst; makes the first calls, which are slow, on the way."""
    fastest = _burst(c, 1, settle)[0]
    if fastest < 1e6 * burst_s:
        fastest = min(_burst(c, 3, settle))
    return max(1, int(1e6 * burst_s / fastest))


def _burst(c: Contestant, count: int, settle: Callable[[], None] | None) -> list[float]:
    """Microseconds of each call."""
    clock, call, times = time.perf_counter_ns, c.call, []
    with torch.inference_mode(c.inference):
        for _ in range(count):
            began = clock()
            call()
            if settle is not None:
                settle()
            times.append((clock() - began) / 1e3)
    return times
