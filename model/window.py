"""One layer over a window of steps in bfloat16, for training on a CPU.

The same maths as `lstm.cell`. Products are bfloat16 with sums in float32, the cell state is float32.
On the way back the gradients of the weights and of the input are three products over the whole window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]
sigmoid_backward = torch.ops.aten.sigmoid_backward
tanh_backward = torch.ops.aten.tanh_backward


class Window(torch.autograd.Function):
    """x [T, B, I], h [B, H], weight_ih [4H, I], weight_hh [4H, H], bias [4H] of a type; c [B, H] of its own.

    Returns h of every step [T, B, H] of the first type and the last c [B, H]. What is squashed and summed up
    from step to step is of c's type.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        T, B, _ = x.shape
        H = h.shape[1]
        gates = torch.addmm(bias, x.reshape(T * B, -1), weight_ih.T).view(T, B, 4 * H)
        hs, cs = x.new_empty(T + 1, B, H), c.new_empty(T + 1, B, H)
        hs[0], cs[0] = h, c
        back = weight_hh.T
        for t in range(T):
            a = gates[t].addmm_(hs[t], back)
            a[:, : 2 * H].sigmoid_()
            a[:, 2 * H : 3 * H].tanh_()
            a[:, 3 * H :].sigmoid_()
            i, f, g, o = a.to(c.dtype).chunk(4, 1)
            torch.mul(cs[t], f, out=cs[t + 1]).addcmul_(i, g)
            hs[t + 1] = cs[t + 1].tanh().mul_(o)
        ctx.save_for_backward(x, weight_ih, weight_hh, gates, hs, cs)
        return hs[1:], cs[T]

    @staticmethod
    def backward(ctx: Any, dhs: Tensor, dc: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, gates, hs, cs = ctx.saved_tensors
        T, B, _ = x.shape
        H = weight_hh.shape[1]
        da = cs.new_empty(B, 4 * H)  # of a step's gates before their squashing
        di, df, dg, do = da.chunk(4, 1)
        das = torch.empty_like(gates)
        dc, dh = dc.clone(), cs.new_zeros(B, H)
        for t in reversed(range(T)):
            i, f, g, o = gates[t].to(cs.dtype).chunk(4, 1)
            squashed = cs[t + 1].tanh()
            dh += dhs[t]
            sigmoid_backward(dh * squashed, o, grad_input=do)
            dc += tanh_backward(dh * o, squashed)
            sigmoid_backward(dc * g, i, grad_input=di)
            sigmoid_backward(dc * cs[t], f, grad_input=df)
            tanh_backward(dc * i, g, grad_input=dg)
            dc *= f
            das[t] = da
            dh = (das[t] @ weight_hh).to(cs.dtype)
        das, before = das.view(T * B, 4 * H), hs[:T].reshape(T * B, H)
        dx = (das @ weight_ih).view_as(x)
        dw_ih, dw_hh = das.T @ x.reshape(T * B, -1), das.T @ before
        return dx, dh.to(x.dtype), dc, dw_ih, dw_hh, das.sum(0, dtype=cs.dtype).to(x.dtype)


def run(x: Tensor, state: State, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> tuple[Tensor, State]:
    """One layer over x [T, B, I] after its state h, c [1, B, H], of any float types.

    Returns h of every step [T, B, H] in bfloat16, and the state after the last: h bfloat16, c float32.
    """
    h, c = state
    low = (tensor.bfloat16() for tensor in (weight_ih, weight_hh, bias))
    hs, last = Window.apply(x.bfloat16(), h[0].bfloat16(), c[0].float(), *low)  # type: ignore[no-untyped-call]
    return hs, (hs[-1:], last[None])
