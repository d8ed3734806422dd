"""Whether the bundle computes what the file's own network computes: both run on the same random input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.config import Architecture, ModelSpec, Signal
from model.convert.foreign import Array, Foreign, Probe
from model.lstm import State
from model.network import Network

#: Largest difference that is float32's, as a share of the largest output (at least of 1): thousands of terms
#: in another order, over some thirty steps
TOLERANCE = 1e-4


def difference(
    foreign: Foreign, weights: Mapping[str, Tensor], mean: Array, std: Array
) -> tuple[float, float]:
    """The largest difference between the outputs, and the magnitude of the largest of them.

    weights: by the names of `Architecture.shapes`, as they will be stored. mean, std [I]: of what the foreign
    network is fed with, which the bundle takes normalised.
    """
    network = _network(foreign, weights)
    return min(
        (_compare(foreign, network, p, mean, std) for p in foreign.probe(mean, std)), key=lambda d: d[0]
    )


def _network(foreign: Foreign, weights: Mapping[str, Tensor]) -> Network:
    """Ours, with what comes before the head's activation told as numbers if the foreign one has no
    embedding."""
    text = foreign.embedding is not None
    K, H = weights["head.weight"].shape
    I = weights["lstm.weight_ih_l0"].shape[1]  # noqa: E741
    layers = sum(name.startswith("lstm.bias") for name in weights)
    if text:
        spec = ModelSpec(Architecture("text", I, H, layers, K), vocabulary="".join(map(chr, range(K))))
    else:
        inputs, outputs = (tuple(Signal(str(k)) for k in range(n)) for n in (I, K))
        spec = ModelSpec(Architecture("series", I, H, layers, K), inputs, outputs)
    network = Network(spec)
    network.load_state_dict({k: v for k, v in weights.items() if text or k != "embedding.weight"})
    return network.eval()


@torch.no_grad()
def _compare(
    foreign: Foreign, network: Network, probe: Probe, mean: Array, std: Array
) -> tuple[float, float]:
    if foreign.embedding is not None:
        x = torch.from_numpy(probe.x).long()
    else:
        x = torch.from_numpy((probe.x - mean) / std).float()
    y = network(x, _state(network, probe, x.shape[1]))[0][:, :, 0].double()  # [T, B, K]
    theirs = torch.from_numpy(probe.y)
    if foreign.squash == "softmax":
        y = y.softmax(-1)
    elif foreign.squash == "log_softmax" or foreign.embedding is not None:
        y = y.log_softmax(-1)  # of log-probabilities: the same again
    if foreign.embedding is not None and not foreign.squash:
        theirs = (
            theirs.reshape(*theirs.shape[:-1], y.shape[-1]).log_softmax(-1) if _fits(theirs, y) else theirs
        )
    arrangements = [a for a in (y, y.transpose(0, 1), y[-1]) if a.numel() == theirs.numel()]
    if not arrangements:
        return float("inf"), 1.0
    flat = theirs.reshape(-1)
    worst = min(float((a.reshape(-1) - flat).abs().nan_to_num(np.inf).max()) for a in arrangements)
    return worst, float(flat.abs().max())


def _state(network: Network, probe: Probe, batch: int) -> State | None:
    """h and c [L, B, H] that the probe begins with."""
    if not probe.state:
        return None
    h, c = network.lstm.zero_state(batch)
    for k, (h_k, c_k) in enumerate(probe.state):
        h[k, :, : len(h_k)], c[k, :, : len(c_k)] = torch.from_numpy(h_k), torch.from_numpy(c_k)
    return h, c


def _fits(theirs: Tensor, y: Tensor) -> bool:
    return theirs.dim() > 0 and theirs.shape[-1] == y.shape[-1]
