"""What is fitted in closed form: the head on a memory, and quantiles that keep their word."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import Architecture, ModelSpec, Signal
from model.memory import Bank, bank, remember
from model.network import Network
from model.streaming import series_figures
from model.train.quantiles import calibrate, grid
from model.train.regression import fit_head, tops

SEASON, LEADS = 8, 16
LEVELS = (0.1, 0.5, 0.9)


def make_network(rank: int = 6, quantiles: tuple[float, ...] = LEVELS) -> tuple[Network, Bank]:
    torch.manual_seed(0)
    units = bank(2, SEASON).units
    signals = (Signal("a"), Signal("b"))
    spread = 2 if quantiles else 0
    arch = Architecture("series", 2, units + 4, 1, 2, LEADS, False, rank, quantiles, spread)
    network = Network(ModelSpec(arch, signals, signals)).eval()
    made = remember(network.lstm, SEASON)
    network.held_units = made.units
    return network, made


def make_series(rows: int = 3000) -> Tensor:
    """Two seasonal signals, the second with a level that drifts and noise that swells."""
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(float(rows))
    wave, noise = torch.sin(2 * math.pi * t / SEASON), torch.randn(rows, 2, generator=generator)
    swell = 0.05 + 0.3 * (t % 900 > 450)
    return torch.stack((wave + 0.05 * noise[:, 0], 0.5 * wave + t / rows + swell * noise[:, 1]), 1)


def fitted() -> tuple[Network, Bank, Tensor]:
    network, made = make_network()
    x = make_series()
    fit_head(network, made, x, x, (0, 1), range(300, 1500 - LEADS), 1e-3)
    return network, made, x


def test_the_fitted_head_beats_both_naive_forecasts() -> None:
    network, _, x = fitted()
    table, _ = series_figures(network, x, x, range(2200, 3000), SEASON)
    for figure in ("mse_1", f"mse_{LEADS}"):
        assert table["model"][figure] < 0.8 * table["persistence"][figure]
        assert table["model"][figure] < 0.8 * table["seasonal"][figure]


def test_a_series_at_another_level_is_forecast_there() -> None:
    network, _, x = fitted()
    with torch.no_grad():
        here, there = (network.head(tops(network, x + level)[-1:]) for level in (0.0, 0.5))
    torch.testing.assert_close(there, here + 0.5, atol=0.05, rtol=0)


def test_quantiles_cover_what_comes_as_often_as_they_say() -> None:
    network, made, x = fitted()
    calibrate(network, made, x, x, (0, 1), range(1500), range(1500, 2250))
    table, _ = series_figures(network, x, x, range(2250, 3000), SEASON)
    for level in LEVELS:
        assert table[f"quantile_{level:g}"][f"coverage_{LEADS}"] == pytest.approx(level, abs=0.06)
    assert table["interval"][f"coverage_{LEADS}"] == pytest.approx(0.8, abs=0.1)


def test_quantiles_rise_with_their_levels_and_are_wider_in_unrest() -> None:
    network, made, x = fitted()
    calibrate(network, made, x, x, (0, 1), range(1500), range(1500, 2250))
    with torch.no_grad():
        top = tops(network, x)
        y = network.head(top)
        quantiles = network.quantiles(top, y)
    assert (quantiles.diff(dim=1) >= 0).all()
    torch.testing.assert_close(quantiles[:, 1], y)  # the median is the prediction: errors fall to either side
    width = quantiles[:, 2] - quantiles[:, 0]
    assert width[2690:2700, :, 1].mean() > width[2240:2250, :, 1].mean()


def test_without_a_memory_widths_are_constant() -> None:
    torch.manual_seed(0)
    signals = (Signal("a"), Signal("b"))
    arch = Architecture("series", 2, 5, 1, 2, 3, quantiles=(0.2, 0.8), spread=1)
    network, x = Network(ModelSpec(arch, signals, signals)).eval(), make_series(600)
    calibrate(network, None, x, x, (0, None), range(300), range(300, 450))
    with torch.no_grad():
        top = tops(network, x)
        y = network.predict(top, x)
        above = network.quantiles(top, y) - y[:, None]
    assert (above[:, 0] < 0).all()
    torch.testing.assert_close(above[0], above[-1], atol=1e-5, rtol=1e-5)


def test_a_grid_of_leads_has_the_first_and_the_last() -> None:
    assert grid(1, 1.2) == [0]
    assert grid(720, 1.2)[:4] == [0, 1, 2, 3]
    assert grid(720, 1.2)[-1] == 719
    assert len(grid(720, 1.2)) < 40
