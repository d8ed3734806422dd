"""A network's weights as the kernels take them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.network import Network
from service.engine.arena import Arena
from service.engine.native.kernels import Shapes
from service.engine.native.packing import (
    Array,
    Packed,
    dense_units,
    dense_width,
    gate_units,
    keep,
    pack,
    panels_of,
    tiles,
)
from service.engine.native.product import Kind, Unit


def shapes_of(network: Network) -> Shapes:
    arch = network.spec.architecture
    inputs = 0 if network.embedding is not None else arch.input_size
    return Shapes(inputs, arch.hidden_size, arch.num_layers, arch.output_size)


@dataclass(frozen=True, slots=True)
class PackedNetwork:
    """layers: for each its start values, weights, scales, h and c, as addresses (`kernels.OF_LAYER`).
    head_start, head_weights: of the head's first lead; it writes `width` numbers a row."""

    layers: NDArray[np.int64]
    head_start: Array
    head_weights: Array
    width: int
    bytes: int  # of the layers' weights
    kept: list[object]  # what the addresses point to


def pack_network(network: Network, arena: Arena, kind: Kind, lanes: int) -> PackedNetwork:
    arch = network.spec.architecture
    units = gate_units(arch.hidden_size, lanes)
    addresses: list[int] = []
    kept: list[object] = []
    h, c = arena.h.numpy(), arena.c.numpy()
    for n in range(arch.num_layers):
        w_ih, w_hh, bias = (t.detach().float().numpy() for t in network.lstm.layer(n))
        if n == 0 and network.embedding is not None:
            start = (network.embedding.weight.detach().numpy() @ w_ih.T + bias).T  # [4H, vocabulary]
            packed = pack([w_hh], units, kind.precision)
        else:
            start, packed = bias[:, None], pack([w_ih, w_hh], units, kind.precision)
        if kind.unit is Unit.TILE:
            packed = tiles(packed)
        # [rows, panels, gates, lanes]
        start = np.ascontiguousarray(panels_of(start, units).transpose(3, 0, 1, 2))
        kept += [packed, start]
        addresses += [a.ctypes.data for a in (start, packed.panels, packed.scales, h[n], c[n])]
    outputs = arch.output_size
    head_units = dense_units(outputs, lanes)
    weight, bias = (t.detach().float().numpy() for t in network.head.first_lead())
    panels, columns = dense_width(outputs, lanes)
    return PackedNetwork(
        np.array(addresses, np.int64),
        np.ascontiguousarray(panels_of(bias[:, None], head_units)[..., 0]),
        pack([weight], head_units, "fp32").panels,
        panels * columns * lanes,
        sum(item.bytes for item in kept if isinstance(item, Packed)),
        kept,
    )


def rounded(network: Network, precision: str) -> Network:
    """The network with weights as the precision keeps them: what is not computed by the kernels (gates that
    are asked for) must be the same model."""
    if precision == "fp32":
        return network
    network = copy.deepcopy(network)
    for n in range(network.spec.architecture.num_layers):
        w_ih, w_hh, _ = network.lstm.layer(n)
        together = [w_hh] if n == 0 and network.embedding is not None else [w_ih, w_hh]
        parts, _ = keep([w.detach().numpy() for w in together], precision)
        with torch.no_grad():
            for w, part in zip(together, parts, strict=True):
                w.copy_(torch.from_numpy(part))
    return network
