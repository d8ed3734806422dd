"""The state pool: h and c of every resident session, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Arena:
    """h and c, [layers, slots + 1, hidden] float32 each. The last row is padding: always zero, it is also
    what every new sequence is read from."""

    def __init__(self, layers: int, slots: int, hidden: int, device: torch.device) -> None:
        self.device = device
        self.h = torch.zeros(layers, slots + 1, hidden, device=device)
        self.c = torch.zeros(layers, slots + 1, hidden, device=device)
        self.padding = slots

    @property
    def bytes(self) -> int:
        return 2 * self.h.numel() * self.h.element_size()

    def gather(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copies of h and c [layers, B, hidden] of the given rows."""
        index = torch.tensor(rows, device=self.device)
        return self.h.index_select(1, index), self.c.index_select(1, index)

    def scatter(self, rows: Sequence[int], h: Tensor, c: Tensor) -> None:
        """Writes h and c [layers, B, hidden] to the given rows, each named once."""
        index = torch.tensor(rows, device=self.device)
        self.h.index_copy_(1, index, h)
        self.c.index_copy_(1, index, c)

    def fetch(self, rows: Sequence[int]) -> list[NDArray[np.float32]]:
        """The rows' states on the host, [2, layers, hidden] each, with memory of their own."""
        h, c = self.gather(rows)
        both = torch.stack((h, c)).permute(2, 0, 1, 3).cpu().numpy()
        return [state.copy() for state in both]

    def load(self, row: int, state: NDArray[np.float32]) -> None:
        """Writes a state [2, layers, hidden] from the host to a row."""
        tensor = torch.from_numpy(state).to(self.device)
        self.h[:, row] = tensor[0]
        self.c[:, row] = tensor[1]
