"""Measures the engine's runner on a CUDA device: session-steps a second of single-step ticks from the host.

Beside it, torch's nn.LSTM (cuDNN), and what the device's bandwidth and arithmetic allow: docs/gpu.md has the
formulas. Needs torch and numpy alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from model.config import Architecture, ModelSpec, Signal
from model.network import Network
from service.engine.arena import Arena
from service.engine.cuda_runner import CudaRunner
from service.engine.runner import Batch
from service.engine.runners import PRECISIONS

HIDDEN = (256, 512, 1024)
BATCHES = tuple(2**p for p in range(15))
SECONDS = 0.3  # at least, of each measurement
COLUMNS = "{:>5} {:>6} | {:>12} {:>9} {:>9} {:>9} | {:>9} | {:>9}"
HEAD = COLUMNS.format("H", "B", "steps/s", "tick", "2 in turn", "graph", "nn.LSTM", "roof")


def tick_bytes(layers: int, inputs: int, hidden: int, batch: int, weight_bytes: int) -> int:
    """What one tick must move in device memory: weights and biases, h and c read and written, the gates
    written by the product and read by the cell, inputs and outputs."""
    weights = sum(4 * hidden * (width + hidden) for width in _widths(layers, inputs, hidden))
    biases = layers * 16 * hidden
    head = 4 * hidden * inputs
    state = layers * 4 * 4 * hidden * batch
    gates = layers * 2 * 16 * hidden * batch
    ends = 2 * 4 * inputs * batch
    return weights * weight_bytes + biases + head + state + gates + ends


def tick_flops(layers: int, inputs: int, hidden: int, batch: int) -> int:
    """Multiplications and additions of one tick's products."""
    cells = sum(2 * 4 * hidden * (width + hidden) for width in _widths(layers, inputs, hidden))
    return batch * (cells + 2 * hidden * inputs)


def _widths(layers: int, inputs: int, hidden: int) -> list[int]:
    return [inputs, *[hidden] * (layers - 1)]


def seconds_each(
    call: Callable[[], object], *, finish: Callable[[], object], least: float = SECONDS
) -> float:
    """Mean seconds of a call, over at least `least` seconds of calls in a row."""
    call()  # the first may load kernels
    calls = 1
    while True:
        finish()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        finish()
        took = time.perf_counter() - start
        if took >= least:
            return took / calls
        calls = max(calls + 1, int(1.2 * calls * least / max(took, 1e-6)))


def make_runner(layers: int, inputs: int, hidden: int, most: int, precision: str) -> CudaRunner:
    """A series model of random weights; every session of the largest batch has a row."""
    signals = tuple(Signal(f"x{k}") for k in range(inputs))
    spec = ModelSpec(Architecture("series", inputs, hidden, layers, inputs), signals, signals)
    torch.manual_seed(0)
    runner = CudaRunner(
        Network(spec), Arena(layers, most, hidden, torch.device("cuda")), most, precision, chunk_rows=0
    )
    runner.warm(most)
    return runner


def single_steps(runner: CudaRunner, batch: int) -> Batch:
    rows = np.random.default_rng(0).permutation(runner.arena.padding)[:batch].tolist()
    x = np.random.default_rng(1).standard_normal((batch, 1, runner.arch.input_size)).astype(np.float32)
    return Batch(rows, rows, list(x))


def ours(runner: CudaRunner, batch: int) -> tuple[float, float, float]:
    """Seconds of a tick: alone; with the next submitted before it is collected; its graph alone."""
    work, device = single_steps(runner, batch), torch.cuda.synchronize
    alone = seconds_each(lambda: runner.run(work), finish=device)

    ticket = runner.submit(work)

    def turn() -> None:
        nonlocal ticket
        later = runner.submit(work)
        runner.collect(ticket)
        ticket = later

    in_turn = seconds_each(turn, finish=device)
    runner.collect(ticket)
    size = next(n for n in runner.sizes if n >= batch)
    graph = seconds_each(runner._ticks[size], finish=device)
    return alone, in_turn, graph


@torch.inference_mode()
def cudnn(layers: int, inputs: int, hidden: int, batch: int, dtype: torch.dtype) -> float:
    """Seconds of nn.LSTM and a linear head, numpy in and numpy out, the state kept in place for it."""
    lstm = nn.LSTM(inputs, hidden, layers, device="cuda", dtype=dtype)
    head = nn.Linear(hidden, inputs, device="cuda", dtype=dtype)
    state = tuple(torch.zeros(layers, batch, hidden, device="cuda", dtype=dtype) for _ in range(2))
    x = np.zeros((1, batch, inputs), np.float32)

    def step() -> object:
        nonlocal state
        top, state = lstm(torch.from_numpy(x).to("cuda", dtype), state)
        return head(top[0]).float().cpu().numpy()

    return seconds_each(step, finish=torch.cuda.synchronize)


def device_limits(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a large copy, read and written, and FLOP a second of a large product, measured."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = seconds_each(lambda: target.copy_(source), finish=torch.cuda.synchronize)
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    multiply = seconds_each(lambda: a @ a, finish=torch.cuda.synchronize)
    return 2 * source.numel() / copy, 2 * 8192**3 / multiply


def table(layers: int, inputs: int, precision: str, hidden: list[int], batches: list[int]) -> Iterator[str]:
    """One line for each hidden size and batch."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    bandwidth, flops = device_limits(dtype)
    yield f"\n{precision}, {layers} layers, {inputs} inputs and outputs"
    yield f"measured here: {bandwidth / 1e9:,.0f} GB/s, {flops / 1e12:,.1f} TFLOP/s"
    yield HEAD
    for H in hidden:
        runner = make_runner(layers, inputs, H, max(batches), precision)
        for B in batches:
            alone, in_turn, graph = ours(runner, B)
            moved = tick_bytes(layers, inputs, H, B, dtype.itemsize) / bandwidth
            roof = max(moved, tick_flops(layers, inputs, H, B) / flops)
            times = [1e6 * t for t in (alone, in_turn, graph, cudnn(layers, inputs, H, B, dtype), roof)]
            yield COLUMNS.format(H, B, f"{B / alone:,.0f}", *(f"{t:,.1f}" for t in times))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu", description=__doc__)
    parser.add_argument("--layers", type=int, default=2, help="LSTM layers (default: 2)")
    parser.add_argument("--inputs", type=int, default=8, help="inputs, and outputs (default: 8)")
    parser.add_argument("--hidden", type=int, nargs="+", default=list(HIDDEN), help="units of a layer")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES), help="sessions a tick")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"loadtests.gpu needs a CUDA device; torch {torch.__version__} sees none here")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    torch.backends.cudnn.allow_tf32 = False  # nn.LSTM in float32, as ours
    print("Microseconds of a tick but for steps/s: sessions stepped a second, one tick after the other.")
    for precision in args.precision:
        for line in table(args.layers, args.inputs, precision, args.hidden, args.batch):
            print(line, flush=True)


if __name__ == "__main__":
    main()
