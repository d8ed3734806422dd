"""CUDA graphs: a body of many kernels, recorded once, launched as one."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Graphs:
    """Records bodies on one device. On another than CUDA a body is its own recording.

    A body may use the host for nothing but to queue work: a replay repeats that work at the same addresses,
    whatever Python would do now. What it leaves for others lies in buffers that were made outside of it. For
    then all graphs can share their memory: no two run at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self._pool, self._aside = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Runs the body once, records it, and returns what replays it on the current stream.

        The run before the recording loads kernels and makes the libraries' workspaces, which a recording must
        not do. Calls on other threads, as of another model that warms up, don't disturb the recording.
        """
        if self.device.type != "cuda":
            body()
            return body
        with torch.cuda.device(self.device):
            self._aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._aside):
                body()
            torch.cuda.current_stream().wait_stream(self._aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, self._aside, capture_error_mode="thread_local"):
                body()
        replay: Callable[[], None] = graph.replay
        return replay


def batch_sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ...: powers of two and what lies halfway, up to `most`, which is the last."""
    powers = [2**p for p in range(most.bit_length())]
    return sorted({n for p in powers for n in (p, p + p // 2) if n < most} | {most})
