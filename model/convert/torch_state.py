"""A torch.nn.LSTM and its head become a bundle's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import Architecture
from model.convert.foreign import Affine, Layer, fold, take, told
from model.errors import ConversionError

#: weight_hh of a torch.nn.LSTM (.._l0) or LSTMCell, of a GRU or RNN, under any name
RECURRENT = re.compile(r"(?:(?P<module>.*)\.)?weight_hh(?P<layer>_l\d+)?(?:_reverse)?")


def from_torch(
    state_dict: Mapping[str, Tensor],
    arch: Architecture,
    *,
    lstm: str = "lstm",
    head: str = "head",
    embedding: str = "embedding",
) -> dict[str, Tensor]:
    """Weights by the names of `Architecture.shapes`, from the state dict of a module that holds a
    torch.nn.LSTM under the name `lstm`, a torch.nn.Linear under `head` and, for text, a
    torch.nn.Embedding under `embedding`. torch's two biases a layer are added up: they are only ever
    used as a sum, and a missing bias is zero. Projections (`proj_size`) are folded into the weights that read
    them (see `foreign.fold`): the outputs stay the same, h is the one before the projection. Raises
    ConversionError for what has no equivalent here, and for shapes that don't fit.
    """
    layers = read_lstm(state_dict, lstm)
    if len(layers) != arch.num_layers:
        raise ConversionError(f"{lstm} has {len(layers)} layers, the architecture says {arch.num_layers}")
    for k, layer in enumerate(layers):
        rows, columns = layer.weight_ih.shape
        expected = [4 * arch.hidden_size, columns if k else arch.input_size]
        if [rows, columns] != expected:
            raise ConversionError(f"{lstm}.weight_ih_l{k} is {[rows, columns]}, must be {expected}")
    linear = read_linear(state_dict, head)
    gives = len(layers[-1].bias) // 4 if layers[-1].projection is None else len(layers[-1].projection)
    wanted = [arch.leads * arch.output_size, gives]
    if list(linear.weight.shape) != wanted:
        raise ConversionError(f"{head}.weight is {list(linear.weight.shape)}, must be {wanted}")
    weights = dict(fold([*layers, linear], scaled_inputs=False).weights)
    if arch.task == "text":
        weights["embedding.weight"] = read_embedding(state_dict, embedding)
    for name, shape in arch.shapes().items():
        if tuple(weights[name].shape) != shape:
            raise ConversionError(f"{name} is {list(weights[name].shape)}, must be {list(shape)}")
    return {name: weights[name].float() for name in arch.shapes()}


def read_lstm(state_dict: Mapping[str, Tensor], module: str) -> list[Layer]:
    """The layers of the torch.nn.LSTM or LSTMCell under this name. Raises ConversionError."""
    prefix = f"{module}." if module else ""
    own = [k for k in state_dict if k.startswith(prefix) and "." not in k[len(prefix) :]]
    if not own:
        raise ConversionError(f"the state dict has no {module}.*; it has {sorted(state_dict)[:8]}")
    for key in own:
        if key.endswith("_reverse"):
            raise ConversionError(
                f"{key}: a bidirectional LSTM reads the future, so it can't be stepped; train it with "
                "bidirectional=False"
            )
    if f"{prefix}weight_ih" in state_dict:
        return [_layer(state_dict, prefix, "")]
    count = sum(1 for k in own if k.startswith(f"{prefix}weight_ih_l"))
    if not count:
        raise ConversionError(
            f"{module} has no weight_ih_l0: it is no torch.nn.LSTM; it has {sorted(own)[:8]}"
        )
    return [_layer(state_dict, prefix, f"_l{k}") for k in range(count)]


def read_linear(state_dict: Mapping[str, Tensor], module: str) -> Affine:
    """The torch.nn.Linear under this name; without a bias it is zero. Raises ConversionError."""
    weight = _tensor(state_dict, f"{module}.weight", 2)
    source = told(f"{module}.weight", weight)
    if f"{module}.bias" not in state_dict:
        return Affine(weight, torch.zeros(len(weight), dtype=torch.float64), source)
    bias = _tensor(state_dict, f"{module}.bias", 1)
    if len(bias) != len(weight):
        raise ConversionError(f"{module}.bias is {list(bias.shape)}, must be {[len(weight)]}")
    return Affine(weight, bias, source, told(f"{module}.bias", bias))


def read_embedding(state_dict: Mapping[str, Tensor], module: str) -> Tensor:
    """The weights of the torch.nn.Embedding under this name. Raises ConversionError."""
    return _tensor(state_dict, f"{module}.weight", 2)


def _layer(state_dict: Mapping[str, Tensor], prefix: str, suffix: str) -> Layer:
    def name(part: str) -> str:
        return f"{prefix}{part}{suffix}"

    weight_ih = _tensor(state_dict, name("weight_ih"), 2)
    weight_hh = _tensor(state_dict, name("weight_hh"), 2)
    projection = _tensor(state_dict, name("weight_hr"), 2) if name("weight_hr") in state_dict else None
    given = weight_hh.shape[1]
    H = given if projection is None else projection.shape[1]
    rows = len(weight_ih)
    for gates, cell in ((3, "a GRU"), (1, "a plain RNN")):
        if projection is None and rows == gates * H:
            raise ConversionError(
                f"{name('weight_ih')} is {list(weight_ih.shape)}, {gates} row(s) a unit where an LSTM has 4: "
                f"{cell} has no equivalent here; train a torch.nn.LSTM"
            )
    _check(name("weight_ih"), weight_ih, [4 * H, weight_ih.shape[1]])
    _check(name("weight_hh"), weight_hh, [4 * H, given])
    if projection is not None:
        _check(name("weight_hr"), projection, [given, H])
    biases = [name(part) for part in ("bias_ih", "bias_hh") if name(part) in state_dict]
    bias = torch.zeros(4 * H, dtype=torch.float64)
    for key in biases:
        tensor = _tensor(state_dict, key, 1)
        _check(key, tensor, [4 * H])
        bias = bias + tensor
    sources = {
        "weight_ih": told(name("weight_ih"), weight_ih),
        "weight_hh": told(name("weight_hh"), weight_hh),
        "bias": " + ".join([*biases]) + f" {[4 * H]}" if biases else "none: zeros",
        "projection": "" if projection is None else told(name("weight_hr"), projection),
    }
    return Layer(weight_ih, weight_hh, bias, projection, sources)


def _tensor(state_dict: Mapping[str, Tensor], name: str, axes: int) -> Tensor:
    if name not in state_dict:
        raise ConversionError(f"the state dict has no {name}; it has {sorted(state_dict)[:8]}")
    tensor = take(state_dict[name], name)
    if tensor.dim() != axes or not tensor.numel():
        raise ConversionError(f"{name} is {list(tensor.shape)}, must have {axes} axes, none of them empty")
    return tensor


def _check(name: str, tensor: Tensor, shape: list[int]) -> None:
    if list(tensor.shape) != shape:
        raise ConversionError(f"{name} is {list(tensor.shape)}, must be {shape}")
