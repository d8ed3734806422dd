"""What is recorded inside the LSTM is what the LSTM computes, and its statistics are the plain ones."""

from __future__ import annotations

import math

import pytest
import torch

from model.explain.activations import CHUNK, observe, record
from model.lstm import StackedLSTM, cell


def make_lstm(inputs: int = 3, hidden: int = 5, layers: int = 2, seed: int = 0) -> StackedLSTM:
    torch.manual_seed(seed)
    return StackedLSTM(inputs, hidden, layers)


def make_steps(steps: int, inputs: int = 3, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(steps, inputs, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_record_is_what_the_cell_computes_written_out() -> None:
    lstm, x = make_lstm(), make_steps(9)
    values, log_forget, (h, c) = record(lstm, x, lstm.zero_state(1))
    state = lstm.zero_state(1)
    for t in range(9):
        step = x[t : t + 1]
        for k in range(2):
            after_h, after_c, gates = cell(step, state[0][k], state[1][k], *lstm.layer(k))
            torch.testing.assert_close(values[:4, k, t], gates[:, 0])
            torch.testing.assert_close(log_forget[k, t], gates[1, 0].log())
            torch.testing.assert_close(values[4, k, t], after_c[0])
            torch.testing.assert_close(values[5, k, t], after_h[0])
            step = after_h
        state = lstm.step(x[t : t + 1], state)[1]
    torch.testing.assert_close((h, c), state)


@torch.no_grad()
def test_a_forget_gate_at_1_keeps_its_digits() -> None:
    lstm = make_lstm(1, 1, 1)
    lstm.layer(0)[2][1] = 40.0
    _, log_forget, _ = record(lstm, torch.zeros(1, 1), lstm.zero_state(1))
    assert log_forget.item() == pytest.approx(-math.exp(-40), rel=0.5)


def test_the_statistics_are_those_of_the_whole_run_after_its_warm_up() -> None:
    lstm, warm, T = make_lstm(), 7, CHUNK + 40
    x = make_steps(T)
    features = torch.stack((x[:, 0], torch.arange(T).float(), torch.ones(T)), 1)
    seen = observe(lstm, x, warm, range(warm, T), (3, 100), features)
    i, f, _, o, c, h = seen.kept.double()
    assert seen.steps == T - warm == seen.kept.shape[2]
    torch.testing.assert_close(seen.log_forget, f.log().mean(1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.closed, torch.stack([(g < 0.1).double().mean(1) for g in (i, f, o)]))
    torch.testing.assert_close(seen.opened, torch.stack([(g > 0.9).double().mean(1) for g in (i, f, o)]))
    torch.testing.assert_close(seen.largest, c.abs().amax(1))
    torch.testing.assert_close(seen.cell_std, c.tanh().std(1, correction=0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.output_std, h.std(1, correction=0), atol=1e-6, rtol=1e-5)
    plain = torch.corrcoef(torch.stack((features[warm:, 0].double(), c[1, :, 2].tanh())))[0, 1]
    torch.testing.assert_close(seen.correlation[0, 1, 2], plain, atol=1e-5, rtol=1e-5)
    assert (seen.correlation[2] == 0).all()  # a feature that does not vary is followed by nothing


@torch.no_grad()
def test_states_are_those_before_their_rows() -> None:
    lstm, x = make_lstm(), make_steps(CHUNK + 40)
    rows = (3, 100, CHUNK + 1)
    seen = observe(lstm, x, 7, range(50, 60), rows, torch.ones(len(x), 1))
    assert seen.kept.shape == (6, 2, 10, 5)
    for row, state in zip(rows, seen.states, strict=True):
        torch.testing.assert_close(state, lstm(x[:row, None])[1], atol=1e-5, rtol=1e-4)
