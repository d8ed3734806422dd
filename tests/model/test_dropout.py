"""What is dropped, for how long, and that nothing is where it was not asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.dropout import NONE, Dropout
from tests.model.making import make_network, make_prepared, make_spec


def make_units(steps: int = 6, sequences: int = 5, units: int = 400) -> Tensor:
    return torch.ones(steps, sequences, units)


def test_units_are_drawn_at_each_step_unless_they_are_locked() -> None:
    dropped = Dropout(units=0.5).drop_units(make_units())
    assert not torch.equal(dropped[0], dropped[1])
    locked = Dropout(units=0.5, locked=True).drop_units(make_units())
    assert torch.equal(locked, locked[:1].expand_as(locked))
    assert not torch.equal(locked[:, 0], locked[:, 1])


@pytest.mark.parametrize("locked", [False, True])
def test_what_is_kept_is_scaled_up_to_the_same_mean(locked: bool) -> None:
    torch.manual_seed(0)
    dropped = Dropout(units=0.25, locked=locked).drop_units(make_units(units=4000))
    assert torch.unique(dropped).tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_weights_are_dropped_as_a_share() -> None:
    torch.manual_seed(0)
    dropped = Dropout(weights=0.3).drop_weights(torch.ones(400, 100))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.max().item() == pytest.approx(1 / 0.7)


def test_a_symbol_is_gone_wherever_it_stands_in_a_sequence() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (50, 20))
    dropped = Dropout(symbols=0.4).drop_symbols(torch.ones(50, 20, 3), tokens, 9)
    gone = dropped[..., 0] == 0
    for b in range(20):
        symbols = {int(token) for token in tokens[gone[:, b], b]}
        assert all(bool(gone[t, b]) == (int(tokens[t, b]) in symbols) for t in range(50))
    assert 0.2 < gone.float().mean().item() < 0.6


def test_nothing_is_dropped_by_default() -> None:
    units, weight = make_units(), torch.randn(8, 2)
    assert NONE.drop_units(units) is units
    assert NONE.drop_weights(weight) is weight
    assert NONE.drop_symbols(units, torch.zeros(6, 5, dtype=torch.long), 3) is units


EACH = [Dropout(units=0.5), Dropout(units=0.5, locked=True), Dropout(weights=0.5), Dropout(symbols=0.5)]


@pytest.mark.parametrize("dropout", EACH)
def test_a_network_drops_only_while_it_is_trained(dropout: Dropout) -> None:
    network = make_network(make_spec("text", hidden=16))
    x = make_prepared(network.spec, 9, 4)
    plain, _ = network(x)
    torch.testing.assert_close(network(x, None, dropout)[0], plain)
    network.train()
    assert not torch.equal(network(x, None, dropout)[0], network(x, None, dropout)[0])


@pytest.mark.parametrize("dropout", [Dropout(locked=True), Dropout(weights=1e-9)])
def test_layer_by_layer_is_the_whole_stack(dropout: Dropout) -> None:
    """A dropout that drops nothing takes the way of one that does, and arrives at the same place."""
    network = make_network(make_spec(hidden=16, layers=3)).train()
    x = make_prepared(network.spec, 9, 4)
    plain, state = network(x)
    y, after = network(x, state, dropout)
    expected, expected_after = network(x, state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after, expected_after)
    assert plain.shape == y.shape


def test_series_have_no_symbols_to_drop() -> None:
    network = make_network(make_spec()).train()
    x = make_prepared(network.spec, 9, 4)
    assert torch.equal(network(x, None, Dropout(symbols=0.9))[0], network(x)[0])
