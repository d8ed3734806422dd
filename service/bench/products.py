"""The bare matrix products of a step: each layer's [B, I + H] times [I + H, 4H], and nothing around them.

Of each precision every way that torch has is measured, and the fastest is the limit of what a step built on
torch's products could reach. The inputs are in that precision already.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from model.lstm import StackedLSTM
from service.bench.rounds import Contestant

Product = Callable[[], object]


def products(lstm: StackedLSTM, batch: int, precision: str, device: torch.device) -> list[Contestant]:
    """Every way of this precision that runs here, named "precision way"."""
    ways = {"fp32": _fp32, "bf16": _bf16, "int8": _int8}[precision]
    layers: dict[str, list[Product]] = {}
    for k in range(lstm.num_layers):
        w_ih, w_hh, bias = (tensor.detach().to(device) for tensor in lstm.layer(k))
        weight = torch.cat((w_ih, w_hh), 1)  # [4H, I + H]
        x = torch.randn(batch, weight.shape[1], generator=torch.Generator().manual_seed(k)).to(device)
        for name, product in ways(x, weight, bias).items():
            layers.setdefault(name, []).append(product)
    found = [Contestant(f"{precision} {name}", _all(calls), inference=True) for name, calls in layers.items()]
    return [c for c in found if _runs(c)]


def _all(calls: list[Product]) -> Product:
    def run() -> None:
        for call in calls:
            call()

    return run


def _runs(c: Contestant) -> bool:
    """Whether this processor, and these sizes, have it."""
    try:
        with torch.inference_mode():
            c.call()
    except RuntimeError:
        return False
    return True


def _fp32(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Product]:
    across = weight.t().contiguous()
    gates = torch.empty(len(x), len(weight), device=x.device)
    return {"addmm": lambda: torch.addmm(bias, x, across, out=gates)} | _packed(x, weight, bias)


def _bf16(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Product]:
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    return {"linear": lambda: F.linear(x, weight, bias)} | _packed(x, weight, bias)


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _packed(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Product]:
    """oneDNN, its weights packed beforehand for this batch."""
    if x.device.type != "cpu" or not _onednn():
        return {}
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.contiguous(), len(x))
    return {"oneDNN": lambda: ops._linear_pointwise(x, packed, bias, "none", [], "")}


def _int8(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Product]:
    scale = weight.abs().amax(1) / 127  # of each gate's row
    whole = (weight / scale[:, None]).round().to(torch.int8)
    x_scale = x.abs().max().item() / 127
    signed = (x / x_scale).round().to(torch.int8)
    across = whole.t()
    ways: dict[str, Product] = {"int_mm": lambda: torch._int_mm(signed, across)}
    if x.device.type == "cpu" and _onednn():
        ops = torch.ops.onednn
        packed = ops.qlinear_prepack(whole, list(x.shape))
        zero = torch.zeros(len(weight), dtype=torch.int32)
        middle = (signed.int() + 128).to(torch.uint8)
        ways["oneDNN"] = lambda: ops.qlinear_pointwise(
            middle, x_scale, 128, packed, scale, zero, bias, 1.0, 0, torch.float32, "none", [], ""
        )
    return ways
