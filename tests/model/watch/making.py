"""A small watch model, and series for it."""

from __future__ import annotations

import numpy as np
import torch

from model.bundle import Bundle
from model.network import Network
from model.watch.learn import spec_of
from model.watch.rules import Rules


def make_watch_bundle(hidden: int = 8, seed: int = 0, rules: Rules | None = None) -> Bundle:
    """Random weights: what it expects is nonsense, but of every step the same nonsense."""
    spec = spec_of(hidden, 2, rules or Rules(warm=10))
    torch.manual_seed(seed)
    weights = {name: tensor.clone() for name, tensor in Network(spec.network).state_dict().items()}
    return Bundle("watch", "1", spec, weights, description="for a test", digest="f" * 64)


def make_series(rows: int, seed: int = 1) -> list[float]:
    """A wave with noise, far from 0, and a level that changes for good in the middle."""
    rng = np.random.default_rng(seed)
    wave = 1e6 + 300 * np.sin(np.arange(rows) / 7) + 30 * rng.standard_normal(rows)
    wave[rows // 2 :] += 5000
    values: list[float] = wave.tolist()
    return values
