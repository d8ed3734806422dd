"""What the numbers say about single units: how long one remembers, and which ones are worth a look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.explain.activations import Observation

#: Time constants beyond this are shown as this: no run is long enough to tell them apart.
LONGEST = 1e9
#: Layers, and units in all, that the pictures have room for.
LAYERS_SHOWN, UNITS_SHOWN = 4, 16
#: Least |r| of a unit that is said to follow something.
FOLLOWS = 0.4


@dataclass(frozen=True)
class Unit:
    """A unit of a layer, both counted from 0, and the reason why it was chosen."""

    layer: int
    index: int
    reason: str

    @property
    def place(self) -> tuple[int, int]:
        """Where it is in a tensor [L, H]."""
        return self.layer, self.index

    @property
    def name(self) -> str:
        """As it is shown: layers count from 1, units from 0 as in the tensors."""
        return f"L{self.layer + 1} u{self.index}"


def time_constants(log_forget: Tensor) -> Tensor:
    """tau = -1 / mean(ln f), in steps, for the mean of ln f over time [...].

    The forget gates alone multiply c by the product of f over k steps, which is exp(-k / tau); the half-life
    is tau ln 2. For a constant gate it is -1 / ln f (Tallec & Ollivier 2018, section 2, to first order
    1 / (1 - f)).
    """
    return (-1 / log_forget.double().clamp(max=-1 / LONGEST)).clamp(max=LONGEST)


def bias_time_constants(bias: Tensor) -> Tensor:
    """Those of the forget gates with no input and h = 0, from a layer's bias [4H]: [H], in steps."""
    return time_constants(torch.nn.functional.logsigmoid(bias.double().chunk(4)[1]))


def shown_layers(layers: int) -> list[int]:
    """At most LAYERS_SHOWN of them: the first, the last and some between, evenly."""
    n = min(layers, LAYERS_SHOWN)
    return [round(k * (layers - 1) / max(1, n - 1)) for k in range(n)]


def choose(observation: Observation) -> list[Unit]:
    """Units for the pictures, layer by layer, the slowest first.

    Of each layer shown: the slowest, by the time constant, among the half whose tanh(c) moves most (a
    cell that is never written, or has run away, is slow as well, and says nothing); then those whose h
    varies most.
    """
    tau = time_constants(observation.log_forget)
    layers = shown_layers(len(tau))
    each = max(1, UNITS_SHOWN // (2 * len(layers)))
    units: list[Unit] = []
    for layer in layers:
        moving = observation.cell_std[layer] >= observation.cell_std[layer].median()
        ranked = torch.where(moving, tau[layer], 0.0).argsort(descending=True, stable=True).tolist()
        reasons = dict.fromkeys(ranked[:each], "slow")
        varying = observation.output_std[layer].argsort(descending=True, stable=True).tolist()
        for index in varying:
            if len(reasons) == 2 * each:
                break
            reasons.setdefault(index, "varies")
        by_speed = sorted(reasons, key=lambda index: (-tau[layer, index].item(), index))
        units += [Unit(layer, index, reasons[index]) for index in by_speed]
    return units


@dataclass(frozen=True)
class Follower:
    """The unit whose tanh(c) is closest to a feature of the input, by Pearson's r."""

    feature: str
    unit: Unit
    r: float


def followers(observation: Observation, features: tuple[str, ...]) -> list[Follower]:
    """For each feature the unit of all layers that follows it best, by at least FOLLOWS; each unit once, the
    closest first."""
    found = []
    for n, feature in enumerate(features):
        r = observation.correlation[n]
        at = int(r.abs().argmax())
        layer, index = divmod(at, r.shape[1])
        found.append(Follower(feature, Unit(layer, index, feature), r.flatten()[at].item()))
    found.sort(key=lambda follower: -abs(follower.r))
    unique: dict[tuple[int, int], Follower] = {}
    for follower in found:
        unique.setdefault((follower.unit.layer, follower.unit.index), follower)
    return [f for f in unique.values() if abs(f.r) >= FOLLOWS]


def quantiles(values: Tensor, at: tuple[float, ...] = (0.1, 0.5, 0.9)) -> list[float]:
    """Quantiles of all the values."""
    return torch.quantile(values.double().flatten(), torch.tensor(at, dtype=torch.float64)).tolist()
