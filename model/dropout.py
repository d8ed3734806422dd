"""Dropout of a recurrent network: what is dropped, and how long a draw holds.

Units that are drawn anew at each step are dropped between layers alone (Zaremba et al. 2014): on the way from
step to step that would wear the memory away. A mask that is drawn once and holds for every step of a window
("variational", Gal & Ghahramani 2016) is one thinner network throughout. From step to step the weights are
dropped, once a window ("weight drop", Merity et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Dropout:
    """Shares that are dropped while training; what is kept is scaled up by 1 / (1 - share).

    units: of the h between layers and before the head. locked: one draw of it for all steps of a window, of
    its own for each sequence. weights: of each layer's weight_hh, one draw a window. symbols: of a text's
    vocabulary, zeroed wherever they stand in a window, of its own for each sequence.
    """

    units: float = 0.0
    locked: bool = False
    weights: float = 0.0
    symbols: float = 0.0

    @property
    def between_layers_alone(self) -> bool:
        """Whether a kernel of the whole stack can do it, which draws at each step."""
        return not (self.locked or self.weights)

    def drop_units(self, h: Tensor) -> Tensor:
        """h [T, B, H] of every step and sequence, some of it zeroed."""
        if self.units == 0:
            return h
        if not self.locked:
            return nn.functional.dropout(h, self.units)
        return h * nn.functional.dropout(h.new_ones(h.shape[1:]), self.units)

    def drop_weights(self, weight: Tensor) -> Tensor:
        """weight_hh [4H, H], some of it zeroed."""
        if self.weights == 0:
            return weight
        # A uniform number for each is drawn four times as fast on a CPU as what nn.functional.dropout draws.
        return weight.masked_fill(torch.rand_like(weight) < self.weights, 0) / (1 - self.weights)

    def drop_symbols(self, x: Tensor, tokens: Tensor, size: int) -> Tensor:
        """The embedded x [T, B, I] of tokens [T, B] below `size`, some symbols' rows zeroed."""
        if self.symbols == 0:
            return x
        kept = nn.functional.dropout(x.new_ones(size, tokens.shape[1]), self.symbols)
        return x * kept.gather(0, tokens)[..., None]


NONE = Dropout()
