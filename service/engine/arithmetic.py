"""The arithmetic of a step on CUDA: weights in the precision asked for, everything else float32.

A CPU computes the same functions here with other operators, so that tests need no GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: What a product reads its matrix and its rows in. int8 is unpacked once, at load: it halves nothing on the
#: device beside bf16, and shows what eight bits cost in accuracy.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}

#: Rows of a product are whole 16 bytes in bfloat16: tensor cores read nothing else at full rate.
ALIGNMENT = 8

Layer = tuple[Tensor, Tensor, Tensor]  # weight_ih [4H, I], weight_hh [4H, H], bias [4H]

# One kernel for the gates of all rows; torch's own LSTM without cuDNN runs on it.
_FUSED = getattr(torch.ops.aten, "_thnn_fused_lstm_cell", None)


def kept(weight: Tensor, precision: str) -> Tensor:
    """A matrix [4H, I] as the precision keeps it, in float32 again.

    int8: each row, a column of the product, is whole multiples of a 127th of its largest magnitude.
    """
    weight = weight.detach().float()
    if precision == "int8":
        scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        weight = (weight / scale).round() * scale
    return weight.to(DTYPES[precision]).float()


def packed(layers: list[Layer], dtype: torch.dtype, *, tokens: bool) -> list[Tensor]:
    """A matrix a layer for rows [h | x]: [H + I, 4H], where layer 0's I is rounded up to `ALIGNMENT`.

    tokens: layer 0 has a table for x, and its matrix is [H, 4H].
    """
    matrices = []
    for k, (w_ih, w_hh, _) in enumerate(layers):
        rows = [w_hh.t()]
        if k or not tokens:
            rows.append(w_ih.t())
        if not k and not tokens:
            rows.append(w_ih.new_zeros(-w_ih.shape[1] % ALIGNMENT, w_ih.shape[0]))
        matrices.append(torch.cat(rows).to(dtype).contiguous())
    return matrices


def token_table(embedding: Tensor, layer: Layer) -> Tensor:
    """What layer 0 adds to its gates for each token, the bias in it: [vocabulary, 4H] float32."""
    w_ih, _, bias = layer
    return torch.addmm(bias, embedding.detach(), w_ih.t())


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [N, K] times weight [K, M], summed and returned in float32; both float32 or both bfloat16."""
    if weight.dtype == torch.float32:
        return torch.mm(rows, weight)
    if rows.is_cuda:
        # not addmm: it wants a bias as coarse as the rows
        return torch.mm(rows, weight, out_dtype=torch.float32)
    return torch.mm(rows.float(), weight.float())  # exact inputs, float32 sums: the same function


def cell(gates: Tensor, addend: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h' and c' [B, H] from gates + addend [B, 4H], gate order i, f, g, o, and c [B, H]; all float32.

    addend: the bias, expanded, or what another product gave. Neither input is changed.
    """
    if gates.is_cuda and _FUSED is not None:
        h, c, _ = _FUSED(gates, addend, c)
        return h, c
    return plain_cell(gates, addend, c)


def plain_cell(gates: Tensor, addend: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """`cell`, written out."""
    i, f, g, o = (gates + addend).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c
