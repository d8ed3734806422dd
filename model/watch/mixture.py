"""The head's numbers as a distribution of the next change: a mixture of logistics, and a wide one behind
them.

Bishop, "Mixture density networks", 1994; logistics in place of Gaussians, as their tails and distribution
function are cheap. The wide one, of small weight, bounds the surprise at what cannot be foretold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.watch.rules import SAYS

#: Parts of the mixture; of each the head says the logit of its weight, its place, the logarithm of its width
PARTS = SAYS // 3
LEAST, MOST = -4.0, 2.0  # of the logarithm of a width
WIDE, WIDE_WEIGHT = 3.0, 1e-3

Rows = NDArray[np.float64]
#: weight, place and width of each part
Parts = list[tuple[float, float, float]]


def log_density(y: Tensor, at: Tensor) -> Tensor:
    """Logarithm of the density of y [..., SAYS] at each of at [...]; for training."""
    logits, place, width = y.chunk(3, -1)
    wide = math.log(WIDE_WEIGHT) + _log_logistic(at / WIDE) - math.log(WIDE)
    width = width.clamp(LEAST, MOST)
    each = logits.log_softmax(-1) + _log_logistic((at[..., None] - place) / width.exp()) - width
    return torch.logaddexp(each.logsumexp(-1) + math.log1p(-WIDE_WEIGHT), wide)


def _log_logistic(z: Tensor) -> Tensor:
    return -z - 2 * torch.nn.functional.softplus(-z)


def parts(head: Sequence[float]) -> Parts:
    """The distribution that the head's numbers [SAYS] say."""
    highest = max(head[:PARTS])
    weights = [math.exp(logit - highest) for logit in head[:PARTS]]
    share = (1 - WIDE_WEIGHT) / sum(weights)
    found = [
        (share * weights[k], head[PARTS + k], math.exp(min(max(head[2 * PARTS + k], LEAST), MOST)))
        for k in range(PARTS)
    ]
    return [*found, (WIDE_WEIGHT, 0.0, WIDE)]


def tails(of: Parts, at: float) -> tuple[float, float]:
    """What a distribution gives to values below and above."""
    below = above = 0.0
    for weight, place, width in of:
        z = (at - place) / width
        small = math.exp(-abs(z))
        high, low = weight / (1 + small), weight * small / (1 + small)
        below, above = (below + high, above + low) if z >= 0 else (below + low, above + high)
    return below, above


#: Every quantile that is asked for lies within; halved so often, the interval is narrower than 1e-6
WITHIN, HALVINGS = 40.0, 27


def quantile(of: Parts, share: float) -> float:
    """The value that a share of a distribution lies below, to 1e-6; by halving the interval."""
    low, high = -WITHIN, WITHIN
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if tails(of, middle)[0] < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def quantiles(heads: Rows, shares: Sequence[float]) -> Rows:
    """The same of many at once: heads [T, SAYS] to [T, shares]. For one it would take six times as long."""
    logits, place, width = (part[:, None] for part in np.split(heads, 3, -1))  # [T, 1, PARTS] each
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    weight *= (1 - WIDE_WEIGHT) / weight.sum(-1, keepdims=True)
    width = np.exp(np.clip(width, LEAST, MOST))
    low = np.full((len(heads), len(shares)), -WITHIN)
    high = -low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = (weight * _sigmoid((middle[..., None] - place) / width)).sum(-1)
        under = below + WIDE_WEIGHT * _sigmoid(middle / WIDE) < shares
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return np.asarray((low + high) / 2)


def _sigmoid(z: Rows) -> Rows:
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1 + small))
