"""Foreign files brought in as a user does, and what the bundle then gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model import bundle as bundles
from model.bundle import Bundle
from model.commands import main
from model.network import Scaler
from model.reference import Reference

Array = NDArray[np.float64]
NAMED = ["--name", "brought", "--out", "brought"]


def bring(file: Path | str, *flags: str) -> int:
    """`cellstate import`, into the directory that is the present one."""
    return main(["import", str(file), *NAMED, *flags])


def brought() -> Bundle:
    return bundles.load(Path("brought"))


def outputs(bundle: Bundle, inputs: NDArray[np.generic]) -> Array:
    """What a session gives for raw inputs [B, T, I] or tokens [B, T]: [B, T, leads, outputs], in float64."""
    scaler = Scaler(bundle.spec)
    found = []
    for sequence in inputs:
        reference = Reference(bundle.spec, bundle.weights)
        if bundle.spec.architecture.task == "text":
            found.append([reference.step(token) for token in sequence])
            continue
        rows = scaler.normalise(np.asarray(sequence, dtype=np.float64))
        found.append([scaler.denormalise(reference.step(row)) for row in rows])
    return np.array(found)


def make_net(layers: int = 2, bias: bool = True, **options: bool | int) -> nn.ModuleDict:
    torch.manual_seed(0)
    gives = int(options.get("proj_size", 0)) or 8
    lstm = nn.LSTM(3, 8, layers, bias=bias, batch_first=True, **options)
    return nn.ModuleDict({"rnn": lstm, "out": nn.Linear(gives, 4)})


@torch.no_grad()
def run(net: nn.ModuleDict, x: Tensor) -> Array:
    """[B, T, K] of x [B, T, I] or tokens [B, T]."""
    h = net["embed"](x) if "embed" in net else x
    y: Tensor = net["out"](net["rnn"](h)[0])
    return y.double().numpy()
