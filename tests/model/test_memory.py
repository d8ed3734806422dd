"""Units that remember from the start are what they are said to be, and stay bounded."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from model.lstm import StackedLSTM
from model.memory import MEAN_SCALE, MEANS, UNREST, WAVE_SCALE, Bank, bank, harmonics, remember

SEASON = 24


def make_memory(inputs: int = 2, season: int = SEASON, spare: int = 3) -> tuple[StackedLSTM, Bank]:
    torch.manual_seed(0)
    lstm = StackedLSTM(inputs, bank(inputs, season).units + spare, 1)
    return lstm, remember(lstm, season)


def states(lstm: StackedLSTM, x: Tensor) -> Tensor:
    """h after each row of x [N, I]: [N, H], float64."""
    with torch.no_grad():
        h: Tensor = lstm.double()(x.double()[:, None])[0]
    return h[:, 0]


def test_means_are_running_means() -> None:
    lstm, made = make_memory()
    x = torch.randn(400, 2) * 0.3
    h = states(lstm, x)
    for signal in range(2):
        for n, span in enumerate(MEANS):
            keep, mean = (math.exp(-1 / (span * SEASON)) if span else 0.0), 0.0
            for value in x[:, signal].tolist():
                mean = keep * mean + (1 - keep) * value
            assert h[-1, made.of(signal)][n] / MEAN_SCALE == pytest.approx(mean, rel=5e-3, abs=1e-4)


def test_waves_turn_with_the_season_and_fade_with_their_span() -> None:
    lstm, made = make_memory(inputs=1)
    x = torch.zeros(60, 1)
    x[0] = 1.0
    h = states(lstm, x)[:, made.of(0)][:, len(MEANS) :]
    for n, (span, k) in enumerate(harmonics(SEASON)):
        first = complex(*h[1, 2 * n : 2 * n + 2].tolist())  # the pulse comes a step late
        assert abs(first) > WAVE_SCALE * (1 - math.exp(-1 / span))
        for t in (1, 6, 59):
            expected = first * cmath.exp(complex(-1 / span, 2 * math.pi * k / SEASON) * (t - 1))
            found = complex(*h[t, 2 * n : 2 * n + 2].tolist())
            assert abs(found - expected) < 0.02 * abs(expected) + 1e-9, (span, k, t)


def test_unrest_is_how_far_a_signal_goes_from_its_level_to_either_side() -> None:
    lstm, made = make_memory(inputs=1)
    hours = torch.arange(1200.0)
    calm = states(lstm, (0.2 * torch.sin(hours / 4))[:, None])[-1, made.unrest_of(0)]
    wild = states(lstm, (2.0 * torch.sin(hours / 4))[:, None])[-1, made.unrest_of(0)]
    assert len(wild) == 2 * len(UNREST)
    assert (wild > 5 * calm.clamp(min=0)).all()
    shifted = states(lstm, (2.0 * torch.sin(hours / 4) + 1)[:, None])[-1, made.unrest_of(0)]
    torch.testing.assert_close(shifted, wild, rtol=0.15, atol=1e-3)


def test_signals_do_not_see_each_other_and_spare_units_are_left_alone() -> None:
    lstm, made = make_memory()
    other, _ = make_memory(spare=3)
    fresh = StackedLSTM(2, lstm.hidden_size, 1)
    torch.manual_seed(0)
    fresh.reset_parameters()
    for gate in range(4):
        rows = slice(gate * lstm.hidden_size + made.units, (gate + 1) * lstm.hidden_size)
        assert torch.equal(lstm.layer(0)[0][rows], fresh.layer(0)[0][rows])
    x = torch.randn(50, 2)
    moved = x + torch.tensor([0.0, 1.0])
    units = made.of(0)
    torch.testing.assert_close(states(lstm, x)[:, units], states(other, moved)[:, units])


def test_its_linear_weights_are_exact_in_bfloat16_and_as_multiples_of_a_127th_of_the_largest() -> None:
    lstm, made = make_memory()
    units = torch.cat([torch.arange(lstm.hidden_size)[made.of(signal)] for signal in range(2)])
    together = torch.cat(lstm.layer(0)[:2], 1)
    rows = together[(units + lstm.hidden_size * torch.arange(4)[:, None]).flatten()]
    assert torch.equal(rows, rows.bfloat16().float())
    scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-9) / 127
    torch.testing.assert_close((rows / scale).round() * scale, rows, rtol=1e-6, atol=0)


def test_a_shorter_season_has_fewer_waves_and_none_has_none() -> None:
    assert {k for _, k in harmonics(24)} == {1, 2, 3, 4, 5}
    assert {k for _, k in harmonics(7)} == {1}
    assert harmonics(0) == []
    lstm, made = make_memory(season=0)
    assert made.linear == len(MEANS)
    assert states(lstm, torch.randn(5000, 2)).abs().max() < 1


@pytest.mark.parametrize(("hidden", "layers"), [(79, 1), (80, 2)])
def test_an_lstm_without_room_is_refused(hidden: int, layers: int) -> None:
    with pytest.raises(ValueError, match="one layer of at least 80 units"):
        remember(StackedLSTM(2, hidden, layers), SEASON)


def test_a_bank_may_be_of_the_first_inputs_alone() -> None:
    made = bank(2, SEASON)
    lstm = StackedLSTM(5, made.units + 3, 1)
    assert remember(lstm, SEASON, signals=2) == made
    w_ih = lstm.layer(0)[0].view(4, made.units + 3, 5)
    assert not w_ih[:, : made.units, 2:].any()
    assert w_ih[:, made.units :, 2:].all()
