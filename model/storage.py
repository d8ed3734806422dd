"""How weights lie in a weights file: as floating point numbers, or as whole numbers and a scale for each row.

int8: a matrix [N, K] is whole numbers from -127 to 127 and, under its name with `.scale` behind it, float32
[N]; weight = number * scale, the scale a 127th of the row's largest magnitude. Scales are kept to 16 binary
digits, so each product is exact in float32: every machine reads the same weights, and rounding them again
changes nothing. What is no matrix, as the biases, stays float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: What `dtype` of a manifest's weights may be
DTYPES = (*FLOATS, "int8")
SCALE = ".scale"
_LARGEST, _DIGITS = 127, 2.0**16


class Unreadable(ValueError):
    """A stored tensor is not what it must be; the message names it."""


def encode(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors as a weights file holds them. dtype: one of DTYPES."""
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().to("cpu", torch.float32).contiguous()
        if dtype != "int8":
            stored[name] = tensor.to(FLOATS[dtype])
        elif tensor.ndim != 2:
            stored[name] = tensor
        else:
            stored[name], stored[name + SCALE] = _whole_numbers(tensor)
    return stored


def decode(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32. Raises Unreadable for a tensor of another type, or without its scale."""
    scales = {name + SCALE for name, tensor in stored.items() if tensor.dtype == torch.int8}
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name in scales:
            continue
        if tensor.dtype == torch.int8:
            tensor = tensor.float() * _scale(name, tensor, stored)[:, None]
        elif tensor.dtype not in FLOATS.values():
            raise Unreadable(f"{name} is {tensor.dtype}, must be one of {list(DTYPES)}")
        weights[name] = tensor.float()
    return weights


def rounded(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The weights as a reader of the file will have them, float32."""
    return decode(encode(weights, dtype))


def _whole_numbers(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Of float32 [N, K]: int8 [N, K] and the scale of each row, float32 [N]."""
    digits, exponent = torch.frexp(matrix.abs().amax(1) / _LARGEST)
    scale = torch.ldexp((digits * _DIGITS).ceil() / _DIGITS, exponent)
    # A row of zeros has no scale, and one so small that it has no exact one is as good as zeros.
    scale = torch.where(scale < torch.finfo(torch.float32).tiny * _DIGITS, torch.ones(()), scale)
    return (matrix / scale[:, None]).round().to(torch.int8), scale


def _scale(name: str, tensor: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    scale = stored.get(name + SCALE)
    if scale is None:
        raise Unreadable(f"tensor {name + SCALE} is missing: {name} is int8")
    if tensor.ndim != 2:
        raise Unreadable(f"{name} is int8 and {list(tensor.shape)}: only matrices are")
    if scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
        raise Unreadable(
            f"{name + SCALE} is {scale.dtype} {list(scale.shape)}, must be torch.float32 {[tensor.shape[0]]}"
        )
    return scale
