"""The oracle: the same maths as everywhere else, in plain float64 numpy, a step at a time.

Slow, short and obviously right; every other path is asserted against it at a stated tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.config import LEAST_WIDTH, ModelSpec

Array = NDArray[np.float64]


def sigmoid(a: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * a)))  # this form can't overflow


class Reference:
    """One sequence through one model: h, c [L, H] float64, starting from zeros.

    `weights`: by the names of `Architecture.shapes`.
    """

    def __init__(self, spec: ModelSpec, weights: Mapping[str, ArrayLike]) -> None:
        self.spec = spec
        self.w = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in weights.items()}
        arch = spec.architecture
        self.h = np.zeros((arch.num_layers, arch.hidden_size))
        self.c = np.zeros((arch.num_layers, arch.hidden_size))

    def step(self, prepared: ArrayLike) -> Array:
        """One step: a row of normalised inputs [I], or a token. Returns [leads, outputs]."""
        arch, w = self.spec.architecture, self.w
        prepared = np.asarray(prepared)
        x: Array = (
            w["embedding.weight"][int(prepared)] if arch.task == "text" else prepared.astype(np.float64)
        )
        for k in range(arch.num_layers):
            a = w[f"lstm.weight_ih_l{k}"] @ x + w[f"lstm.weight_hh_l{k}"] @ self.h[k] + w[f"lstm.bias_l{k}"]
            i, f, g, o = np.split(a, 4)
            self.c[k] = sigmoid(f) * self.c[k] + sigmoid(i) * np.tanh(g)
            x = self.h[k] = sigmoid(o) * np.tanh(self.c[k])
        y = self._head("head", x)
        if arch.task == "text":
            y = y - y.max()
            return np.asarray(y - np.log(np.exp(y).sum()))
        if arch.residual:
            y = y + prepared[list(self.spec.output_columns or ())]
        return y

    def quantiles(self, y: Array) -> Array:
        """Those of the newest step, whose prediction y [leads, outputs] was: [levels, leads, outputs]."""
        width = np.maximum(self._head("spread", self.h[-1]), LEAST_WIDTH)
        return np.asarray(y + self.w["spread.offsets"] * width)

    def _head(self, name: str, x: Array) -> Array:
        """[leads, outputs] from the top layer's h."""
        w = self.w
        y: Array = (w[f"{name}.weight"] @ x + w[f"{name}.bias"]).reshape(
            -1, self.spec.architecture.output_size
        )
        return w[f"{name}.basis"] @ y if f"{name}.basis" in w else y

    def run(self, prepared: ArrayLike) -> Array:
        """A sequence of steps [T, I] or [T]: the next step's prediction after each, [T, outputs]."""
        steps = [self.step(row)[0] for row in np.asarray(prepared)]
        return np.array(steps).reshape(len(steps), self.spec.architecture.output_size)
