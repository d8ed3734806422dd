"""A stand-in for CUDA graphs on a CPU: a body's operators, recorded once, repeated at the same addresses.

What a graph would freeze is frozen here too: what Python decided while the body was recorded, and where every
tensor lay. So a body that reads the host, or counts in Python, fails here as it would on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from service.engine.graphs import Graphs

#: Operators that hand a value to the host, or whose result's size depends on one: CUDA can't record them.
UNRECORDABLE = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_pinned", "equal")


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in UNRECORDABLE:
            raise AssertionError(f"{name} can't be recorded")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class RecordingGraphs(Graphs):
    """`recorded` counts the bodies, `replays` their replays."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.recorded = self.replays = 0

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        body()
        with _Tape() as tape:
            body()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, before in tape.calls:
                _settle(func(*args, **kwargs), before)

        return replay


def _settle(now: Any, before: Any) -> None:
    """Results go where they went when they were recorded; views and in-place operators are there already."""
    if isinstance(before, Tensor):
        if now.data_ptr() != before.data_ptr():
            before.copy_(now)
    elif isinstance(before, (tuple, list)):
        for one, other in zip(now, before, strict=True):
            _settle(one, other)
