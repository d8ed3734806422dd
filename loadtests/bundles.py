"""Makes a bundle of given sizes with seeded random weights, for load tests."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from model.bundle import Bundle, save
from model.config import Architecture, ModelSpec, Signal


def random_bundle(
    directory: Path,
    layers: int = 2,
    hidden: int = 256,
    inputs: int = 8,
    name: str = "",
    seed: int = 0,
    version: str = "0",
) -> Bundle:
    """Writes a series model to `directory`, whose outputs are its inputs one step later."""
    arch = Architecture(
        task="series", input_size=inputs, hidden_size=hidden, num_layers=layers, output_size=inputs
    )
    signals = tuple(Signal(f"x{i}") for i in range(inputs))
    generator = torch.Generator().manual_seed(seed)
    scale = hidden**-0.5  # as torch initialises an LSTM: the state neither dies nor saturates
    weights = {
        tensor: (torch.rand(shape, generator=generator) * 2 - 1) * scale
        for tensor, shape in arch.shapes().items()
    }
    bundle = Bundle(
        name=name or f"random-{layers}x{hidden}",
        version=version,
        spec=ModelSpec(architecture=arch, inputs=signals, outputs=signals),
        weights=weights,
        description="Random weights, for load tests.",
    )
    return save(bundle, directory)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bundles", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=2, help="LSTM layers (default: 2)")
    parser.add_argument("--hidden", type=int, default=256, help="units of a layer (default: 256)")
    parser.add_argument("--inputs", type=int, default=8, help="inputs, and outputs (default: 8)")
    parser.add_argument("--name", default="", help="name of the model (default: from the sizes)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    args = parser.parse_args()
    bundle = random_bundle(args.directory, args.layers, args.hidden, args.inputs, args.name, args.seed)
    print(f"{args.directory}: {bundle.name}, {bundle.spec.architecture.parameters:,} weights")


if __name__ == "__main__":
    main()
