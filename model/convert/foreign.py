"""A network of another framework, as every reader tells it, and how it becomes this one.

What a reader finds is a chain: perhaps an embedding, then LSTM layers with affine maps (dense layers,
normalisations, projections) before, between and behind them. An LSTM reads and gives its features linearly,
so each affine map folds exactly into the weights beside it, and what is left is layers and a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import ConversionError

Array = NDArray[np.float64]
Squash = Literal["", "softmax", "log_softmax"]


@dataclass(frozen=True)
class Layer:
    """One LSTM layer, float64, rows of the weights in gate order i, f, g, o.

    weight_ih [4H, I], weight_hh [4H, P], bias [4H]. projection [P, H]: what the layer gives, and reads again,
    is projection @ h (Sak et al. 2014; torch's `proj_size`); None: h itself, P = H. sources: the tensors of
    the file, by `weight_ih`, `weight_hh`, `bias`, `projection`.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    projection: Tensor | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def hidden_size(self) -> int:
        return len(self.bias) // 4


@dataclass(frozen=True)
class Affine:
    """y = weight x + bias, float64: weight [O, I], bias [O]. source, bias_source: the tensors of the file."""

    weight: Tensor
    bias: Tensor
    source: str
    bias_source: str = "none: zeros"

    def after(self, first: Affine) -> Affine:
        """The map that does `first` and then this."""
        source = f"{self.source} x {first.source}"
        return Affine(
            self.weight @ first.weight,
            self.weight @ first.bias + self.bias,
            source,
            f"{source} and the biases between",
        )

    @property
    def is_scaling(self) -> bool:
        """Whether it only shifts each feature and scales it by something above zero."""
        square = self.weight.shape[0] == self.weight.shape[1]
        scale = self.weight.diagonal()
        return square and torch.equal(self.weight, torch.diag(scale)) and bool((scale > 0).all())


@dataclass(frozen=True)
class Probe:
    """The foreign network at work: what it was given, and what it gave.

    x: features [T, B, I], in what the network itself is fed with, or tokens [T, B]. y: outputs, [T, B, K] or,
    of the last step alone, [B, K], possibly with K in several axes or time and batch exchanged. state: h and
    c [H] of each layer that every sequence begins with; empty: zeros.
    """

    x: Array
    y: Array
    state: tuple[tuple[Array, Array], ...] = ()


#: For a mean [I] and std [I] of what the network is fed with, runs of it on random input
Probing = Callable[[Array, Array], Sequence[Probe]]


@dataclass(frozen=True)
class Foreign:
    """What a reader found in a file. kind: how it is told to the user, with the means it is checked by.

    stages: in the order they run. embedding [V, I]. squash: what is done to the head's outputs at the end.
    leads: steps ahead that the head's rows stand for, lead by lead.
    """

    kind: str
    checked_by: str
    stages: tuple[Layer | Affine, ...]
    probe: Probing
    embedding: Tensor | None = None
    embedding_source: str = ""
    squash: Squash = ""
    leads: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folded:
    """Layers and a head, all layers of one size. weights: by the names of `Architecture.shapes`, float64,
    without the embedding's. origins: for each, where it comes from. input_mean, input_std [I]: a scaling
    that came first; it is not in the weights, so that inputs of any size keep their digits."""

    input_size: int
    hidden_size: int
    num_layers: int
    head_rows: int
    weights: dict[str, Tensor]
    origins: dict[str, str]
    input_mean: Array
    input_std: Array
    notes: tuple[str, ...] = ()


def fold(stages: Sequence[Layer | Affine], scaled_inputs: bool = True) -> Folded:
    """Everything that is linear goes into the layers and the head; smaller layers are filled up to the
    largest.

    With h_p = P h, the next step's W_hh h_p is (W_hh P) h, and what reads h_p next has weights W P: a
    projected layer is a plain one whose state is the h before the projection. A unit whose weights and bias
    are all zero has g = 0, so c and h stay zero for ever: it changes nothing. scaled_inputs: a scaling that
    comes first is given back as the inputs' mean and deviation.
    """
    layers: list[Layer] = []
    pending: Affine | None = None
    mean, std = None, None
    for stage in stages:
        if isinstance(stage, Affine):
            if pending is not None:
                _check_join(pending.source, len(pending.bias), stage.source, stage.weight.shape[1])
            pending = stage if pending is None else stage.after(pending)
            continue
        if not layers and pending is not None and scaled_inputs and pending.is_scaling:
            std = 1 / pending.weight.diagonal()
            mean, pending = -pending.bias * std, None
        layers.append(_folded(stage, pending, layers[-1] if layers else None))
        pending = None
        if stage.projection is not None:
            none = torch.zeros(len(stage.projection), dtype=torch.float64)
            pending = Affine(stage.projection, none, stage.sources["projection"])
    if not layers:
        raise ConversionError("there is no LSTM layer in it")
    I = layers[0].weight_ih.shape[1]  # noqa: E741
    H = max(layer.hidden_size for layer in layers)
    notes = tuple(
        f"layer {k} of {layer.hidden_size} units is filled up to {H} with units that stay zero"
        for k, layer in enumerate(layers)
        if layer.hidden_size < H
    )
    head = pending or _identity(layers[-1])
    _check_join("the last layer", layers[-1].hidden_size, head.source, head.weight.shape[1])
    weights, origins = _named(layers, head, H)
    zeros, ones = torch.zeros(I, dtype=torch.float64), torch.ones(I, dtype=torch.float64)
    return Folded(
        I, H, len(layers), len(head.bias), weights, origins,
        (zeros if mean is None else mean).numpy(), (ones if std is None else std).numpy(), notes,
    )  # fmt: skip


def _identity(last: Layer) -> Affine:
    H = last.hidden_size
    source = "none in the file: the outputs are the last layer's h"
    return Affine(torch.eye(H, dtype=torch.float64), torch.zeros(H, dtype=torch.float64), source)


def _folded(layer: Layer, before: Affine | None, last: Layer | None) -> Layer:
    """The layer with what comes before it, and its projection, in its own weights."""
    weight_ih, weight_hh, bias = layer.weight_ih, layer.weight_hh, layer.bias
    sources = dict(layer.sources)
    own = sources["weight_ih"]
    if before is not None:
        _check_join(before.source, len(before.bias), own, weight_ih.shape[1])
        bias = bias + weight_ih @ before.bias
        weight_ih = weight_ih @ before.weight
        sources["weight_ih"] = f"{own} x {before.source}"
    if last is not None:
        _check_join("the layer before", last.hidden_size, sources["weight_ih"], weight_ih.shape[1])
    if layer.projection is not None:
        weight_hh = weight_hh @ layer.projection
        sources["weight_hh"] = f"{sources['weight_hh']} x {sources['projection']}"
    return Layer(weight_ih, weight_hh, bias, layer.projection, sources)


def _check_join(first: str, gives: int, second: str, takes: int) -> None:
    if gives != takes:
        raise ConversionError(f"{second} takes {takes} features, {first} gives {gives}: they can't be joined")


def _named(layers: Sequence[Layer], head: Affine, H: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights by our names, and their origins."""
    weights: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for k, layer in enumerate(layers):
        fan_in = H if k else layer.weight_ih.shape[1]
        weights[f"lstm.weight_ih_l{k}"] = _filled(layer.weight_ih, layer.hidden_size, H, fan_in)
        weights[f"lstm.weight_hh_l{k}"] = _filled(layer.weight_hh, layer.hidden_size, H, H)
        weights[f"lstm.bias_l{k}"] = _filled(layer.bias[:, None], layer.hidden_size, H, 1)[:, 0]
        for part in ("weight_ih", "weight_hh", "bias"):
            origins[f"lstm.{part}_l{k}"] = layer.sources.get(part, "")
    rows = torch.zeros(len(head.bias), H, dtype=torch.float64)
    rows[:, : head.weight.shape[1]] = head.weight
    weights |= {"head.weight": rows, "head.bias": head.bias}
    origins |= {"head.weight": head.source, "head.bias": head.bias_source}
    return weights, origins


def _filled(weight: Tensor, H_own: int, H: int, fan_in: int) -> Tensor:
    """[4 H_own, I] as [4 H, fan_in], each gate's rows and the columns filled up with zeros."""
    full = torch.zeros(4, H, fan_in, dtype=torch.float64)
    full[:, :H_own, : weight.shape[1]] = weight.reshape(4, H_own, -1)
    return full.reshape(4 * H, fan_in)


def take(tensor: Tensor, name: str) -> Tensor:
    """A tensor of the file, copied, in float64. Raises ConversionError if it is not of finite numbers."""
    if not tensor.dtype.is_floating_point or tensor.layout != torch.strided or tensor.is_meta:
        raise ConversionError(
            f"{name} is {tensor.dtype}, must be floating point: quantised weights are not read"
        )
    tensor = tensor.detach().to("cpu", torch.float64, copy=True)
    if not torch.isfinite(tensor).all():
        raise ConversionError(f"{name} holds a number that is not finite")
    return tensor


def told(name: str, tensor: Tensor | Array) -> str:
    """A tensor's name and shape, for the user."""
    return f"{name} {list(tensor.shape)}"
