"""One step of B sessions: our runner, torch.nn.LSTM, ONNX Runtime, and the bare products as the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.network import Network
from service.bench import onnx_lstm
from service.bench.options import Options
from service.bench.products import products
from service.bench.rounds import Contestant, Timing, interleave, quiet
from service.bench.subject import (
    Ours,
    OurTick,
    Stateful,
    TorchStep,
    check,
    expected,
    make_network,
    torch_lstm,
)

Row = dict[str, Any]
ONNX = {"onnx fp32": "fp32", "onnx int8": "int8"}


@dataclass(frozen=True, slots=True)
class Model:
    """A network in every form that is measured. theirs: ONNX Runtime's sessions, empty if it can't be had."""

    network: Network
    ours: dict[str, Ours]
    torch: nn.LSTM
    onnx: dict[str, Any]


def measure(options: Options, progress: Callable[[str], None]) -> Iterator[Row]:
    """A row for each size, batch and precision."""
    device = torch.device(options.device)
    for hidden in options.hidden:
        progress(f"H={hidden}: making the contestants")
        with quiet(options.threads):
            model = _model(hidden, options, device)
            for batch in options.batch:
                progress(f"step, H={hidden}, B={batch}")
                yield from _cell(model, batch, options, device)


def _model(hidden: int, options: Options, device: torch.device) -> Model:
    network = make_network(hidden, options.layers, options.inputs)
    most = max(options.batch)
    ours = {p: Ours(network, most, p, options.threads, device) for p in options.precision}
    onnx = {}
    if onnx_lstm.installed() and device.type == "cpu":
        graph = onnx_lstm.graph(network.lstm)
        onnx = {name: onnx_lstm.session(graph, options.threads, int8=p == "int8") for name, p in ONNX.items()}
    return Model(network, ours, torch_lstm(network.lstm, device), onnx)


def _cell(model: Model, batch: int, options: Options, device: torch.device) -> Iterator[Row]:
    x = np.random.default_rng(batch).standard_normal((batch, options.inputs), np.float32)
    stateful = _stateful(model, x, device)
    wanted = expected(model.network.lstm, x)
    off = {name: check(name, who, wanted, precision) for name, (who, precision) in stateful.items()}
    contestants = [
        Contestant(name, who.step, inference=name == "nn.LSTM") for name, (who, _) in stateful.items()
    ]
    for precision, ours in model.ours.items():
        again = getattr(ours.runner, "again", None)
        if again is not None:
            contestants.append(Contestant(f"kernel {precision}", again))
    limits = {p: products(model.network.lstm, batch, p, device) for p in options.precision}
    contestants += [c for found in limits.values() for c in found]
    timings = interleave(contestants, options.seconds, device, threads=options.threads)
    for precision in options.precision:
        yield _row(model, batch, precision, timings, off) | {"threads": options.threads}


def _stateful(model: Model, x: NDArray[np.float32], device: torch.device) -> dict[str, tuple[Stateful, str]]:
    """Every contestant that carries a state, with its precision."""
    arch = model.network.spec.architecture
    found: dict[str, tuple[Stateful, str]] = {
        f"ours {precision}": (OurTick(ours, x), precision) for precision, ours in model.ours.items()
    }
    found["nn.LSTM"] = (TorchStep(model.torch, x, device), "fp32")
    for name, session in model.onnx.items():
        for bound in (False, True):
            who = onnx_lstm.Stepped(session, x, arch.num_layers, arch.hidden_size, bound=bound)
            found[f"{name} {'bound' if bound else 'run'}"] = (who, ONNX[name])
    return found


def _row(model: Model, batch: int, precision: str, timings: dict[str, Timing], off: dict[str, float]) -> Row:
    """Of ONNX Runtime's two ways to be called, and of the products' several, the faster one counts."""
    arch = model.network.spec.architecture
    ours = timings[f"ours {precision}"].us
    onnx, onnx_int8 = (_fastest(timings, name)[1] for name in ONNX)
    limit, gemm = _fastest(timings, f"{precision} ")
    kernel = timings.get(f"kernel {precision}")
    rival = onnx_int8 if precision == "int8" else onnx
    return {
        "hidden": arch.hidden_size,
        "layers": arch.num_layers,
        "inputs": arch.input_size,
        "batch": batch,
        "precision": precision,
        "ours_us": ours,
        "kernel_us": kernel.us if kernel else None,
        "session_steps_per_s": 1e6 * batch / ours,
        "nn_lstm_us": timings["nn.LSTM"].us,
        "onnx_us": onnx,
        "onnx_int8_us": onnx_int8,
        "gemm_us": gemm,
        "gemm": limit,
        "ours_to_onnx": ours / rival if rival else None,
        "kernel_to_onnx": kernel.us / rival if kernel and rival else None,
        "kernel_to_gemm": kernel.us / gemm if kernel and gemm else None,
        "ours_to_gemm": ours / gemm if gemm else None,
        "off": off,
        "timings": {
            name: {"us": t.us, "best_us": t.best_us, "rounds": t.rounds} for name, t in timings.items()
        },
    }


def _fastest(timings: dict[str, Timing], prefix: str) -> tuple[str | None, float | None]:
    found = [(t.us, name) for name, t in timings.items() if name.startswith(prefix)]
    us, name = min(found, default=(None, None))
    return name, us
