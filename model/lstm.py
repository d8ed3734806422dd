"""The long short-term memory, stacked.

One timestep of one layer (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), for
x [B, I] and the state before it, h and c [B, H]:

    i, f, g, o = split(x W_ih' + h W_hh' + b)        gate order i, f, g, o, as in torch.nn.LSTM
    c' = sigmoid(f) * c + sigmoid(i) * tanh(g)       the cell: what is kept, plus what is let in
    h' = sigmoid(o) * tanh(c')                       what is let out

Because c' is c times a gate plus something, the gradient through time is the product of the forget gates and
not of weight matrices: with f near 1 it neither vanishes nor explodes. Hence the forget gate's bias starts at
1 (Gers et al. 2000; Jozefowicz et al. 2015).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model import window
from model.dropout import NONE, Dropout

State = tuple[Tensor, Tensor]

# On CUDA torch says so at each call of its kernels with weights that are separate tensors, as ours are: they
# are copied together first, a few MB for a whole window of a sequence.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")


def cell(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One timestep of one layer, written out.

    x [B, I]; h, c [B, H]; weight_ih [4H, I], weight_hh [4H, H], bias [4H], rows in gate order i, f, g, o.
    Returns h' [B, H], c' [B, H] and the gates after their squashing [4, B, H].
    """
    i, f, g, o = (x @ weight_ih.T + h @ weight_hh.T + bias).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    h = o * c.tanh()
    return h, c, torch.stack((i, f, g, o))


class StackedLSTM(nn.Module):
    """L layers; layer l+1 reads the h of layer l.

    Parameters: weight_ih_l{k} [4H, I or H], weight_hh_l{k} [4H, H], bias_l{k} [4H].
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, forget_bias: float = 1.0, chrono: int = 0
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        for layer in range(num_layers):
            fan_in = hidden_size if layer else input_size
            self.register_parameter(f"weight_ih_l{layer}", nn.Parameter(torch.empty(4 * hidden_size, fan_in)))
            self.register_parameter(
                f"weight_hh_l{layer}", nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
            )
            self.register_parameter(f"bias_l{layer}", nn.Parameter(torch.empty(4 * hidden_size)))
        self.reset_parameters(forget_bias, chrono)

    def reset_parameters(self, forget_bias: float = 1.0, chrono: int = 0) -> None:
        """Uniform within 1/sqrt(H), as torch.nn.LSTM; the forget gates' bias is `forget_bias`.

        chrono: the longest time, in steps, over which something is to be kept; 0: not known. With it the
        forget gates' biases are log(U[1, chrono - 1]) and the input gates' their negatives, so that the units
        forget after times spread over that range (Tallec & Ollivier 2018).
        """
        bound = 1 / math.sqrt(self.hidden_size)
        H = self.hidden_size
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound)
            for layer in range(self.num_layers):
                bias = self.layer(layer)[2]
                bias[H : 2 * H] = forget_bias
                if chrono:
                    bias[H : 2 * H].uniform_(1, max(1, chrono - 1)).log_()
                    bias[:H] = -bias[H : 2 * H]

    def layer(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """weight_ih, weight_hh and bias of layer k."""
        return (
            self.get_parameter(f"weight_ih_l{k}"),
            self.get_parameter(f"weight_hh_l{k}"),
            self.get_parameter(f"bias_l{k}"),
        )

    def zero_state(self, batch: int) -> State:
        """h and c of a sequence that has not begun: zeros [L, B, H] each."""
        weight = self.get_parameter("weight_hh_l0")
        zeros = weight.new_zeros(self.num_layers, batch, self.hidden_size)
        return zeros, zeros.clone()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One timestep through all layers, written out. x [B, I]; state h, c [L, B, H].

        Returns the top layer's h [B, H] and the state after the step.
        """
        hs, cs = [], []
        for k in range(self.num_layers):
            x, c, _ = cell(x, state[0][k], state[1][k], *self.layer(k))
            hs.append(x)
            cs.append(c)
        return x, (torch.stack(hs), torch.stack(cs))

    def forward(self, x: Tensor, state: State | None = None, dropout: Dropout = NONE) -> tuple[Tensor, State]:
        """A whole sequence, by torch's fused kernels: the same maths as `step`, for training.

        x [T, B, I]; state h, c [L, B, H], zeros if None; dropout, while training, of the h between layers and
        of weight_hh. Returns the top layer's h at every step [T, B, H] and the state after the last.
        """
        if state is None:
            state = self.zero_state(x.shape[1])
        if self.training and (_bfloat16_on_cpu(x) or not dropout.between_layers_alone):
            return self._layer_by_layer(x, state, dropout)
        layers = [self.layer(k) for k in range(self.num_layers)]
        return _fused(x, state, layers, dropout.units, self.training)

    def _layer_by_layer(self, x: Tensor, state: State, dropout: Dropout) -> tuple[Tensor, State]:
        hs, cs = [], []
        for k in range(self.num_layers):
            if k:
                x = dropout.drop_units(x)
            weight_ih, weight_hh, bias = self.layer(k)
            weights = weight_ih, dropout.drop_weights(weight_hh), bias
            before = state[0][k : k + 1], state[1][k : k + 1]
            if _bfloat16_on_cpu(x):
                x, (h, c) = window.run(x, before, *weights)
            else:
                x, (h, c) = _fused(x, before, [weights], 0.0, training=True)
            hs.append(h)
            cs.append(c)
        return x, (torch.cat(hs), torch.cat(cs))


def _fused(
    x: Tensor, state: State, layers: Sequence[tuple[Tensor, Tensor, Tensor]], dropout: float, training: bool
) -> tuple[Tensor, State]:
    """Layers in one call of torch's kernel; dropout drawn at each step between them."""
    flat: list[Tensor] = []
    for weight_ih, weight_hh, bias in layers:
        flat += [weight_ih, weight_hh, bias, torch.zeros_like(bias)]
    top, h, c = torch.lstm(x, state, flat, True, len(layers), dropout, training, False, False)
    return top, (h, c)


def _bfloat16_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
