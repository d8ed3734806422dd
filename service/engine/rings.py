"""Host memory that a device copies from and to: what a tick reads goes down in one copy, what it gives comes
up in one.

There are several such stages, so that the host fills one while the device still reads another. On CUDA they
are pinned (page-locked): only then does a copy run beside the host. On a CPU the copies are plain ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def views(buffer: Tensor, integers: int, rows: int, width: int) -> tuple[Tensor, Tensor, int]:
    """A buffer of bytes seen as int64 [integers] and, behind them, float32 [rows, width].

    With width 0 the rows are tokens: int64 [rows]. The last value returned is the bytes of both together.
    """
    start = 8 * integers
    if not width:
        end = start + 8 * rows
        return buffer[:start].view(torch.int64), buffer[start:end].view(torch.int64), end
    end = start + 4 * rows * width
    return buffer[:start].view(torch.int64), buffer[start:end].view(torch.float32).view(rows, width), end


class Stage:
    """One pinned input and one pinned output. `taken` from `send_back` until `read`."""

    def __init__(self, in_bytes: int, out_shape: tuple[int, int], device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.inputs = torch.empty(in_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.outputs = torch.empty(out_shape, pin_memory=pinned)
        self._array: NDArray[np.float32] = self.outputs.numpy()
        self._done = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self.taken = False

    def send(self, device_inputs: Tensor, end: int) -> None:
        """Queues the copy of the first `end` bytes down; they must not change until `read` returns."""
        device_inputs[:end].copy_(self.inputs[:end], non_blocking=True)

    def send_back(self, device_outputs: Tensor, rows: int) -> None:
        """Queues the copy of `rows` outputs up, and marks the end of the tick."""
        self.outputs[:rows].copy_(device_outputs[:rows], non_blocking=True)
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(device_outputs.device))
        self.taken = True

    def read(self, rows: int) -> NDArray[np.float32]:
        """Waits for the tick, and frees the stage. Returns a copy of its outputs [rows, O]."""
        self.taken = False
        if self._done is not None:
            self._done.synchronize()
        return self._array[:rows].copy()


class Ring:
    """The stages of a runner: as many ticks can be under way."""

    def __init__(self, stages: int, in_bytes: int, out_shape: tuple[int, int], device: torch.device) -> None:
        self.stages = [Stage(in_bytes, out_shape, device) for _ in range(stages)]

    def free(self) -> Stage:
        """One that no tick uses. Raises RuntimeError if there is none: a tick must be collected first."""
        for stage in self.stages:
            if not stage.taken:
                return stage
        raise RuntimeError(
            f"{len(self.stages)} ticks are under way; collect one before the next is submitted"
        )
