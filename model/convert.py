"""A torch.nn.LSTM and its head become a bundle's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import Architecture
from model.errors import ConversionError

OPTIONAL = ("lstm.bias", "head.bias")  # torch's modules can be made without: then it is zero


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
    used as a sum, and a missing bias is zero. Raises ConversionError for what has no equivalent here, and for
    shapes that don't fit.
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
    for ours, theirs in _sources(arch, lstm, head, embedding).items():
        shape = arch.shapes()[ours]
        found = [_checked(state_dict, name, shape) for name in theirs if name in state_dict]
        if not found and not ours.startswith(OPTIONAL):
            raise ConversionError(f"the state dict has no {theirs[0]}; it has {sorted(state_dict)[:8]}")
        weights[ours] = torch.stack(found).sum(0) if found else torch.zeros(shape)
    return weights


def _sources(arch: Architecture, lstm: str, head: str, embedding: str) -> dict[str, tuple[str, ...]]:
    """For each of our tensors the names of theirs that add up to it."""
    prefixes = {"lstm": lstm, "head": head, "embedding": embedding}
    sources: dict[str, tuple[str, ...]] = {}
    for name in arch.shapes():
        part, _, rest = name.partition(".")
        if rest.startswith("bias_l"):
            sources[name] = tuple(
                f"{lstm}.{b}_l{rest.removeprefix('bias_l')}" for b in ("bias_ih", "bias_hh")
            )
        else:
            sources[name] = (f"{prefixes[part]}.{rest}",)
    return sources


def _checked(state_dict: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Their tensor, copied, in float32."""
    tensor = state_dict[name].detach()
    if tuple(tensor.shape) != shape:
        raise ConversionError(f"{name} is {list(tensor.shape)}, must be {list(shape)}")
    if not torch.isfinite(tensor).all():
        raise ConversionError(f"{name} holds a number that is not finite")
    return tensor.float().cpu()
