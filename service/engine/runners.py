"""Which runner steps a network: by its device, the precision asked for, and what this machine can do."""

from __future__ import annotations

import logging

from model.network import Network
from service.engine.arena import Arena
from service.engine.cuda_runner import CudaRunner
from service.engine.runner import Runner

log = logging.getLogger("cellstate")

#: What the weights are kept in. The cell, the gates and the biases are float32 in all of them.
PRECISIONS = ("fp32", "bf16", "int8")


def make_runner(
    network: Network, arena: Arena, *, max_batch: int, precision: str = "fp32", threads: int = 1
) -> Runner:
    """The fastest runner for the arena's device. Raises ValueError for a precision that is not one.

    max_batch: most sessions of one batch. threads: of a runner on a CPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if arena.device.type == "cpu":
        return _on_cpu(network, arena, max_batch, precision, threads)
    if arena.device.type == "cuda":
        return CudaRunner(network, arena, max_batch, precision)
    return Runner(network, arena)


def _on_cpu(network: Network, arena: Arena, max_batch: int, precision: str, threads: int) -> Runner:
    """The native runner; where there is no llvmlite, the plain one, which is float32 alone."""
    try:
        from service.engine.cpu_runner import CpuRunner
    except ImportError as error:
        log.warning("llvmlite is not installed (%s): steps are slower, and in fp32", error)
        return Runner(network, arena)
    return CpuRunner(network, arena, max_batch, precision, threads)
