"""Long data with the state carried: what is asked for comes once, after exactly the rows before it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.reference import Reference
from model.streaming import (
    CHUNK,
    frequency_figures,
    origins,
    series_figures,
    stream,
    targets,
    text_figures,
)
from tests.model.making import make_network, make_prepared, make_spec


def test_one_stream_is_the_reference_stepped_from_the_first_row() -> None:
    """Across two boundaries of chunks."""
    network = make_network(make_spec(hidden=8))
    x = make_prepared(network.spec, 2 * CHUNK + 40)
    rows = range(CHUNK - 3, 2 * CHUNK + 30)
    pieces = list(stream(network, x, rows))
    reference = Reference(network.spec, {k: v.numpy() for k, v in network.state_dict().items()})
    expected = np.array([reference.step(row) for row in x.numpy()])[rows.start : rows.stop]
    y = torch.cat([piece.y[piece.valid] for piece in pieces])
    assert torch.cat([piece.rows[piece.valid] for piece in pieces]).tolist() == list(rows)
    np.testing.assert_allclose(y.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("streams", [1, 2, 3, 7])
@pytest.mark.parametrize("warm", [0, 5, 1000, None])
def test_every_row_comes_once_whatever_the_pieces(streams: int, warm: int | None) -> None:
    network = make_network(make_spec("text"))
    x = make_prepared(network.spec, 60)
    rows = range(11, 59)
    seen = torch.cat(
        [piece.rows[piece.valid] for piece in stream(network, x, rows, streams=streams, warm=warm)]
    )
    assert sorted(seen.tolist()) == list(rows)


def test_pieces_with_a_long_memory_agree_with_one_stream() -> None:
    network = make_network(make_spec("text"))
    x = make_prepared(network.spec, 300)
    one = text_figures(network, x, range(100, 300))
    many = text_figures(network, x, range(100, 300), streams=4, warm=90)
    cold = text_figures(network, x, range(100, 300), streams=100, warm=0)
    assert many["nats_per_character"] == pytest.approx(one["nats_per_character"], rel=1e-5)
    assert cold["nats_per_character"] != pytest.approx(one["nats_per_character"], rel=1e-5)


def test_windows_lie_inside_the_part_and_begin_with_its_first_row() -> None:
    rows = origins(range(11520, 14400), 24)
    assert (rows[0] + 1, rows[-1] + 24, len(rows)) == (11520, 14399, 2880 - 24 + 1)
    assert list(origins(range(4), 2)) == [0, 1]


def test_targets_are_the_rows_ahead() -> None:
    outputs = torch.arange(10.0)[:, None] * torch.tensor([1.0, 10.0])
    assert targets(outputs, torch.tensor([[3], [5]]), 2)[:, 0].tolist() == [
        [[4, 40], [5, 50]],
        [[6, 60], [7, 70]],
    ]


def test_series_figures_are_those_of_a_plain_loop() -> None:
    spec = make_spec(leads=3)
    network = make_network(spec)
    x = make_prepared(spec, 50)
    part, season = range(20, 50), 2
    table, units = series_figures(network, x, x, part, season)
    reference = Reference(spec, {k: v.numpy() for k, v in network.state_dict().items()})
    values = x.numpy().astype(np.float64)
    predicted = np.array([reference.step(row) for row in values])
    errors: dict[str, list[np.ndarray]] = {"model": [], "persistence": [], "seasonal": []}
    for t in range(19, 49):
        truth = np.full((3, 2), np.nan)  # what lies behind the part must not be counted
        truth[: 49 - t] = values[t + 1 : t + 4]
        errors["model"].append(predicted[t] - truth)
        errors["persistence"].append(values[t] - truth)
        # leads 1 and 2 from one period of two rows before, lead 3 from two periods before
        errors["seasonal"].append(np.array([values[t - 1], values[t], values[t - 1]]) - truth)
    for name, rows in errors.items():
        error = np.array(rows)
        assert table[name]["mse_1"] == pytest.approx(np.mean(error[:, 0] ** 2), rel=1e-5)
        assert table[name]["mae_1"] == pytest.approx(np.mean(np.abs(error[:, 0])), rel=1e-5)
        assert table[name]["mse_3"] == pytest.approx(np.mean(error[:28] ** 2), rel=1e-5)
        assert table[name]["mae_3"] == pytest.approx(np.mean(np.abs(error[:28])), rel=1e-5)
    in_units = np.abs(np.array(errors["model"])) * [1.0, 2.0]  # deviations of s0 and s1
    assert units["s1"]["mae_3"] == pytest.approx(in_units[:28, :, 1].mean(), rel=1e-5)
    assert units["s0"]["mae_1"] == pytest.approx(in_units[:, 0, 0].mean(), rel=1e-5)


def test_a_perfect_forecast_has_no_error() -> None:
    """A series that does not move, and a residual head of zeros."""
    network = make_network(make_spec(residual=True))
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    x = torch.ones(30, 2)
    table, units = series_figures(network, x, x, range(10, 30), season=3)
    assert all(value == 0 for figures in table.values() for value in figures.values())
    assert all(value == 0 for figures in units.values() for value in figures.values())


def test_there_is_no_seasonal_forecast_without_a_whole_season_before() -> None:
    network = make_network(make_spec())
    x = make_prepared(network.spec, 40)
    assert "seasonal" not in series_figures(network, x, x, range(5, 40), season=10)[0]
    assert "seasonal" not in series_figures(network, x, x, range(20, 40))[0]
    assert "seasonal" in series_figures(network, x, x, range(10, 40), season=10)[0]


def test_a_model_that_knows_nothing_scores_the_uniform_distribution() -> None:
    network = make_network(make_spec("text"))
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    figures = text_figures(network, make_prepared(network.spec, 50), range(10, 50))
    assert figures["nats_per_character"] == pytest.approx(math.log(4))
    assert figures["bits_per_character"] == pytest.approx(2.0)


def test_frequencies_are_those_of_the_training_part() -> None:
    tokens = torch.tensor([0] * 6 + [1] * 2 + [0, 1])
    figures = frequency_figures(tokens, range(8), range(8, 10), 2)
    assert figures["nats_per_character"] == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)
    assert figures["accuracy"] == 0.5
