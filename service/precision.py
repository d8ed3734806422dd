"""What a precision costs: a bundle's quality figures, computed as the engine would serve it.

`cellstate evaluate --precision` puts them beside those of the float32 network, which are the manifest's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model import bundle as bundles
from model.config import ModelSpec
from model.evaluate import compare, figures, measure, needed, subject
from model.network import Network
from model.tasks.measuring import SIDE_BY_SIDE, measure_task, trial_of
from model.train.jobs import pick_device
from model.watch import board as benchmark
from service.engine.arena import Arena
from service.engine.runner import Batch
from service.engine.runners import PRECISIONS, make_runner

if TYPE_CHECKING:
    from model.bundle import Bundle

DIFFERENT = 1  # exit code


class Served:
    """A network stepped by the engine's runner: a `Predictor`. The head is float32, as the runner's own is.

    streams: most sequences side by side. There is one state, in the arena: one evaluation at a time.
    """

    def __init__(self, network: Network, precision: str, device: torch.device, streams: int = 1) -> None:
        arch = network.spec.architecture
        self.arena = Arena(arch.num_layers, streams, arch.hidden_size, device)
        self.runner = make_runner(
            network,
            self.arena,
            max_batch=streams,
            precision=precision,
            threads=torch.get_num_threads(),
        )

    @property
    def spec(self) -> ModelSpec:
        return self.runner.network.spec

    @property
    def device(self) -> torch.device:
        return self.arena.device

    @torch.no_grad()
    def __call__(self, x: Tensor, state: list[int] | None, /) -> tuple[Tensor, list[int]]:
        """Prepared steps x [T, S, I] or [T, S]. Returns predictions [T, S, leads, outputs] and the arena's
        rows [S], whose state this call has moved."""
        tops, rows = self._tops(x, state)
        return self._predictions(tops, x), rows

    @torch.no_grad()
    def with_quantiles(self, x: Tensor, state: list[int] | None, /) -> tuple[Tensor, Tensor, list[int]]:
        """The same, and the quantiles [T, S, levels, leads, outputs]."""
        tops, rows = self._tops(x, state)
        y = self._predictions(tops, x)
        quantiles = self.runner.network.quantiles(tops.flatten(0, 1), y.flatten(0, 1))
        return y, quantiles.reshape(*x.shape[:2], *quantiles.shape[1:]), rows

    def _tops(self, x: Tensor, state: list[int] | None) -> tuple[Tensor, list[int]]:
        rows = list(range(x.shape[1]))
        chunks = [np.ascontiguousarray(chunk) for chunk in x.cpu().numpy().swapaxes(0, 1)]
        source = [self.arena.padding] * len(rows) if state is None else state
        return self.runner.tops(Batch(source, rows, chunks)), rows

    def _predictions(self, tops: Tensor, x: Tensor) -> Tensor:
        y = self.runner.network.predict(tops.flatten(0, 1), x.flatten(0, 1))
        return y.reshape(*x.shape[:2], *y.shape[1:])


def evaluate(
    bundle: Bundle, path: Path | None, precisions: list[str], device: torch.device, streams: int = 1
) -> dict[str, dict[str, Any]]:
    """The quality of a bundle on a data file, by what computed it: "network", the float32 network itself,
    then each precision as the engine serves it."""
    trial = trial_of(bundle)
    watches = bundle.spec.rules is not None
    on = None if trial or watches else subject(bundle, needed(path))
    told = {}
    for name in ["network", *precisions]:
        _progress(f"measuring {name}")
        network = bundle.network()
        side_by_side = SIDE_BY_SIDE if trial else streams
        given = network.to(device) if name == "network" else Served(network, name, device, side_by_side)
        called = "float32" if name == "network" else name
        if trial:
            told[name], _ = measure_task(trial, given, called)
        elif on is None:
            told[name] = benchmark.evaluate(bundle, needed(path), given)
        else:
            told[name] = measure(bundle.spec, given, on.data, on.parts, on.season, streams, called)
    _progress("")
    return told


def command(args: argparse.Namespace) -> int:
    """`cellstate evaluate --precision`: prints the figures side by side. Exit code 1 if `--tolerance` is
    given and a figure differs from the float32 network's by more."""
    precisions = list(PRECISIONS) if args.precision == "all" else [args.precision]
    bundle = bundles.load(args.bundle)
    told = evaluate(bundle, args.data, precisions, pick_device(args.device), args.streams)
    network = {name: value for name, value in figures(told["network"]) if _depends(name)}
    on = args.data.name if args.data else f"its task, {told['network']['sequences']} sequences"
    print(f"{bundle.name} {bundle.version} on the {told['network'].get('part', 'whole')} part of {on}")
    print("network: the float32 network itself; the others: as the engine serves it, and the difference")
    heads = "".join(f"{name:>12}{'':>10}" for name in precisions)
    print(f"\n{'':34}{'network':>12}{heads.rstrip()}")
    for name, value in network.items():
        line = f"{name:34}{value:12.5f}"
        for precision in precisions:
            served = dict(figures(told[precision]))[name]
            share = (served - value) / abs(value) if value else float("nan")
            line += f"{served:12.5f}{share:+10.3%}"
        print(line)
    if args.tolerance is None:
        return 0
    beyond = 0
    for precision in precisions:
        for d in compare(told["network"], told[precision], args.tolerance):
            beyond += 1
            print(f"{d.name}: {precision} {d.measured}, the network {d.manifest}", file=sys.stderr)
    return DIFFERENT if beyond else 0


def _depends(figure: str) -> bool:
    """Whether a figure is the model's, and not a naive forecast's."""
    return not figure.startswith(("persistence.", "seasonal.", "frequencies."))


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
