"""Small models and data for these tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.bundle import Bundle
from model.calendar import UNIT, Calendar
from model.config import Architecture, ModelSpec, Signal
from model.network import Network

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def make_spec(
    task: str = "series",
    *,
    inputs: int = 2,
    hidden: int = 5,
    layers: int = 2,
    leads: int = 3,
    residual: bool = False,
    rank: int = 0,
    quantiles: tuple[float, ...] = (),
    calendar: tuple[str, ...] = (),
) -> ModelSpec:
    """calendar: of a time behind these inputs, in hours."""
    if task == "text":
        return ModelSpec(Architecture("text", inputs, hidden, layers, 4), vocabulary="abc\n")
    signals = tuple(Signal(f"s{k}", "V", mean=10.0 * k, std=1.0 + k) for k in range(inputs))
    spread = 2 if quantiles else 0
    reads = inputs + 2 * len(calendar)
    arch = Architecture("series", reads, hidden, layers, inputs, leads, residual, rank, quantiles, spread)
    if not calendar:
        return ModelSpec(arch, signals, signals)
    timed = (*signals, Signal("time", UNIT, 1.5e9, 1e6))
    return ModelSpec(arch, timed, signals, calendar=Calendar(calendar, 3600.0))


def make_network(spec: ModelSpec, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(spec).eval()


def make_weights(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in make_network(spec, seed).state_dict().items()}


def make_bundle(spec: ModelSpec | None = None, seed: int = 0, name: str = "tiny") -> Bundle:
    spec = spec or make_spec()
    return Bundle(name, "1", spec, make_weights(spec, seed), description="for a test")


def make_prepared(spec: ModelSpec, *shape: int, seed: int = 1) -> Tensor:
    """Prepared steps [*shape, I] or [*shape]."""
    generator = torch.Generator().manual_seed(seed)
    arch = spec.architecture
    if arch.task == "text":
        return torch.randint(0, arch.output_size, shape, generator=generator)
    return torch.randn(*shape, arch.input_size, generator=generator)
