"""The state pool: h and c of every resident session, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Arena:
    """h and c, [layers, slots + 1, hidden] float32 each. The last row is padding: always zero, it is also
    what every new sequence is read from.

    Both are views of `states` [slots + 1, 2, layers, hidden]: what belongs to one session lies together, so
    that moving it is one copy, and a processor that reads layer 0 has begun to fetch layer 1.
    """

    def __init__(self, layers: int, slots: int, hidden: int, device: torch.device) -> None:
        self.device = device
        self.states = torch.zeros(slots + 1, 2, layers, hidden, device=device)
        self.h, self.c = (self.states[:, n].transpose(0, 1) for n in range(2))
        self.padding = slots

    @property
    def bytes(self) -> int:
        return self.states.numel() * self.states.element_size()

    def gather(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copies of h and c [layers, B, hidden] of the given rows."""
        index = torch.tensor(rows, device=self.device)
        return self.h.index_select(1, index), self.c.index_select(1, index)

    def scatter(self, rows: Sequence[int], h: Tensor, c: Tensor) -> None:
        """Writes h and c [layers, B, hidden] to the given rows, each named once."""
        index = torch.tensor(rows, device=self.device)
        self.h.index_copy_(1, index, h)
        self.c.index_copy_(1, index, c)

    def fetch(self, rows: Sequence[int], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The rows' states on the host, [B, 2, layers, hidden], in memory of their own or in `out`."""
        if self.device.type == "cpu":
            # into `out` by clipping alone is without a second copy; rows are the slot table's, and in range
            return np.take(
                self.states.numpy(), np.array(rows), 0, out=out, mode="clip" if out is not None else "raise"
            )
        moved = self.states.index_select(0, torch.tensor(rows, device=self.device))
        if out is None:
            return np.asarray(moved.cpu().numpy())
        torch.from_numpy(out).copy_(moved)
        return out

    def load(self, row: int, state: NDArray[np.float32]) -> None:
        """Writes a state [2, layers, hidden] from the host to a row."""
        self.states[row] = torch.from_numpy(state).to(self.device)

    def load_batch(self, rows: Sequence[int], states: NDArray[np.float32]) -> None:
        """Writes states [B, 2, layers, hidden] from the host to rows, each named once."""
        index = torch.tensor(rows, device=self.device)
        self.states.index_copy_(0, index, torch.from_numpy(states).to(self.device))
