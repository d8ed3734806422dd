"""A torch.nn.LSTM and its head become a bundle's weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from model.config import Architecture
from model.errors import ConversionError


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
    used as a sum. Raises ConversionError for what has no equivalent here, and for shapes that don't fit.
    """
    own = {k: v for k, v in state_dict.items() if k.startswith(f"{lstm}.")}
    if not own:
        raise ConversionError(f"the state dict has no {lstm}.*; it has {sorted(state_dict)[:8]}")
    for key in own:
        if key.endswith("_reverse"):
            raise ConversionError(f"{key}: a bidirectional LSTM reads the future; it can't be stepped")
        if "weight_hr" in key:
            raise ConversionError(f"{key}: projections (proj_size) are not supported")
    layers = sum(1 for k in own if k.startswith(f"{lstm}.weight_ih_l"))
    if layers != arch.num_layers:
        raise ConversionError(f"{lstm} has {layers} layers, the architecture says {arch.num_layers}")
    weights: dict[str, Tensor] = {}
    for k in range(layers):
        weights[f"lstm.weight_ih_l{k}"] = own[f"{lstm}.weight_ih_l{k}"]
        weights[f"lstm.weight_hh_l{k}"] = own[f"{lstm}.weight_hh_l{k}"]
        biases = [own[n] for n in (f"{lstm}.bias_ih_l{k}", f"{lstm}.bias_hh_l{k}") if n in own]
        zero = weights[f"lstm.weight_hh_l{k}"].new_zeros(4 * arch.hidden_size)
        weights[f"lstm.bias_l{k}"] = sum(biases, zero)
    names = {"head.weight": f"{head}.weight", "head.bias": f"{head}.bias"}
    if arch.task == "text":
        names["embedding.weight"] = f"{embedding}.weight"
    for ours, theirs in names.items():
        if theirs not in state_dict:
            raise ConversionError(f"the state dict has no {theirs}")
        weights[ours] = state_dict[theirs]
    for name, shape in arch.shapes().items():
        if tuple(weights[name].shape) != shape:
            raise ConversionError(f"{name} is {list(weights[name].shape)}, must be {list(shape)}")
    return {name: weights[name].detach().float().clone() for name in arch.shapes()}
