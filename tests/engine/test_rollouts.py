"""Rollouts: forecasts and text that go on from a model's own predictions, against the reference looped."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.config import Architecture, ModelSpec, Signal
from model.network import Scaler
from service.engine.jobs import StateHandle
from service.engine.rollouts import Forecast, Generation
from tests.engine.making import (
    VOCABULARY,
    Oracle,
    assert_outputs,
    assert_state,
    make_engine,
    make_inputs,
    make_job,
    make_spec,
    run,
)

LOOPED = 1e-4  # normalised, after up to 40 steps on the model's own predictions


def forecast(spec: ModelSpec, horizon: int, *, steps: int = 7, quantum: int = 4) -> None:
    """Asserts that a forecast after some steps is the reference's, and that the session is at those steps."""
    engine = make_engine(spec, quantum=quantum)
    state, oracle, rollout = StateHandle(), Oracle(engine.runner.network), Forecast(spec, horizon)
    job = make_job(engine, steps, state, rollout=rollout)
    run(engine, job)
    assert_outputs(engine, job, oracle.run(job.inputs))
    assert_state(engine, state, oracle)
    assert rollout.result.shape == (horizon, len(spec.outputs))
    mean, std = (np.array([getattr(s, name) for s in spec.outputs]) for name in ("mean", "std"))
    np.testing.assert_allclose((rollout.result - mean) / std, oracle.forecast(horizon), atol=LOOPED, rtol=0)


@pytest.mark.parametrize("horizon", [1, 3, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_within_its_leads_a_forecast_is_the_head(horizon: int, residual: bool) -> None:
    forecast(make_spec(residual=residual), horizon)


@pytest.mark.parametrize("horizon", [5, 8, 9, 40])
@pytest.mark.parametrize("residual", [False, True])
def test_beyond_its_leads_a_forecast_is_the_reference_looped(horizon: int, residual: bool) -> None:
    forecast(make_spec(residual=residual), horizon)


@pytest.mark.parametrize("quantum", [1, 3, 32])
def test_the_quantum_does_not_change_a_forecast(quantum: int) -> None:
    """Leads that are fed back in pieces, and steps that end within a tick, at its end and alone."""
    forecast(make_spec(leads=5), 17, quantum=quantum)


def test_a_head_with_one_lead_loops_step_by_step() -> None:
    forecast(make_spec(leads=1), 12)


@pytest.mark.parametrize(("horizon", "rows"), [(2, 2), (6, 6), (9, 6)])
def test_quantiles_go_as_far_as_the_leads(horizon: int, rows: int) -> None:
    spec = make_spec(leads=6, rank=2, quantiles=(0.1, 0.5, 0.9))
    engine = make_engine(spec)
    oracle, rollout = Oracle(engine.runner.network), Forecast(spec, horizon)
    job = make_job(engine, 5, StateHandle(), rollout=rollout)
    run(engine, job)
    oracle.run(job.inputs)
    assert rollout.quantiles is not None
    assert list(rollout.quantiles) == ["0.1", "0.5", "0.9"]
    mean, std = (np.array([getattr(s, name) for s in spec.outputs]) for name in ("mean", "std"))
    for found, expected in zip(rollout.quantiles.values(), oracle.quantiles, strict=True):
        np.testing.assert_allclose((found - mean) / std, expected[:rows], atol=1e-5, rtol=0)


def test_a_model_without_quantiles_tells_none() -> None:
    engine, rollout = make_engine(), Forecast(make_spec(), 3)
    run(engine, make_job(engine, 2, StateHandle(), rollout=rollout))
    assert rollout.quantiles is None


def test_a_loop_that_runs_away_stays_finite() -> None:
    gain = 1e30  # the outputs' unit against the inputs': each turn of the loop multiplies by it
    signals = {std: tuple(Signal(name, std=std) for name in "ab") for std in (1.0, gain)}
    spec = ModelSpec(Architecture("series", 2, 4, 1, 2, residual=True), signals[1.0], signals[gain])
    engine = make_engine(spec)
    rollout = Forecast(spec, 50)
    run(engine, make_job(engine, 3, StateHandle(), rollout=rollout))
    assert np.abs(rollout.result).max() > gain
    assert rollout.result.shape == (50, 2)
    assert np.isfinite(rollout.result).all()


@pytest.mark.parametrize("residual", [False, True])
def test_what_is_fed_back_has_the_times_after_the_last(residual: bool) -> None:
    spec = make_spec(inputs=2, leads=3, residual=residual, calendar=("week", "day"))
    last, horizon = 1_480_000_123.5, 20
    engine, scaler = make_engine(spec), Scaler(spec)
    oracle, rollout = Oracle(engine.runner.network), Forecast(spec, horizon, last)
    job = make_job(engine, 5, StateHandle(), rollout=rollout)
    run(engine, job)
    oracle.run(job.inputs)
    rows = list(oracle.head * scaler.output_std + scaler.output_mean)
    for k in range(18):  # outputs are s1, s0
        values = [(rows[k][1] - 0.0) / 1.0, (rows[k][0] - 10.0) / 2.0]
        seconds = last + 3600 * (k + 1)
        angles = [2 * math.pi * seconds / period for period in (7 * 86_400, 86_400)]
        waves = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
        oracle.run([np.array([*values, *waves])])
        if k % 3 == 2:  # a head's worth at a time
            rows += list(oracle.head * scaler.output_std + scaler.output_mean)
    error = (rollout.result - np.array(rows)[:horizon]) / scaler.output_std
    assert np.abs(error).max() < LOOPED


def test_a_calendar_wants_to_know_the_time_if_predictions_are_fed_back() -> None:
    spec = make_spec(leads=3, calendar=("day",))
    Forecast(spec, 3)
    with pytest.raises(ValueError, match="needs the time"):
        Forecast(spec, 4)


def test_a_forecast_within_the_leads_needs_no_closed_loop() -> None:
    """A model whose output is not its input can still look as far as its head."""
    whole = make_spec(leads=3)
    spec = ModelSpec(whole.architecture, whole.inputs, tuple(
        type(s)(f"y{k}", s.unit, s.mean, s.std) for k, s in enumerate(whole.outputs)
    ))  # fmt: skip
    assert not spec.closes_loop
    forecast(spec, 3)


def test_text_at_temperature_0_is_the_references_likeliest() -> None:
    spec = make_spec("text")
    engine = make_engine(spec)
    state, oracle, rollout = StateHandle(), Oracle(engine.runner.network), Generation(30, 0.0, 0, None)
    job = make_job(engine, 9, state, rollout=rollout)
    run(engine, job)
    oracle.run(job.inputs)
    assert rollout.tokens == oracle.likeliest(30)
    assert len(set(rollout.tokens)) > 1, "one character for ever would prove nothing"
    assert_state(engine, state, oracle)


def generate(temperature: float, top_k: int, seed: int | None, length: int = 40) -> list[int]:
    engine = make_engine(make_spec("text"))
    rollout = Generation(length, temperature, top_k, seed)
    run(engine, make_job(engine, 5, rollout=rollout))
    return rollout.tokens


def test_the_same_seed_gives_the_same_text() -> None:
    assert generate(1.0, 0, seed=7) == generate(1.0, 0, seed=7)
    assert generate(1.0, 0, seed=7) != generate(1.0, 0, seed=8)
    assert generate(1.0, 0, seed=None) != generate(1.0, 0, seed=None)


def test_a_seeded_text_does_not_depend_on_who_runs_beside_it() -> None:
    engine = make_engine(make_spec("text"), quantum=2)
    rollout = Generation(40, 1.0, 3, 7)
    others = [make_job(engine, t, seed=t, rollout=Generation(9, 1.0, 0, t)) for t in (2, 11, 30)]
    run(engine, others[0], make_job(engine, 5, rollout=rollout), *others[1:])
    assert rollout.tokens == generate(1.0, 3, seed=7)


def test_top_1_is_the_likeliest_whatever_the_temperature() -> None:
    assert generate(50.0, 1, seed=3) == generate(0.0, 0, seed=None)


@pytest.mark.parametrize("top_k", [2, 3])
def test_top_k_draws_among_the_k_likeliest_and_all_of_them(top_k: int) -> None:
    spec = make_spec("text")
    engine = make_engine(spec)
    rollout = Generation(200, 20.0, top_k, seed=5)  # so hot that each of the k has an even chance
    job = make_job(engine, 5, rollout=rollout)
    run(engine, job)
    oracle, ranks = Oracle(engine.runner.network), set()
    oracle.run(job.inputs)
    for token in rollout.tokens:
        ranks.add(int((oracle.head[0] > oracle.head[0][token]).sum()))
        oracle.run(np.array([token]))
    assert ranks == set(range(top_k))


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    """20,000 draws from one head: each share within five standard deviations of its probability."""
    log_p = np.log(np.array([[0.5, 0.25, 0.125, 0.0625, 0.0625]], np.float32))
    for temperature in (0.5, 1.0, 2.0):
        rollout = Generation(20_000, temperature, 0, seed=11)
        while rollout.feed(log_p) is not None:
            pass
        weights = np.exp(log_p[0].astype(np.float64) / temperature)
        p = weights / weights.sum()
        shares = np.bincount(rollout.tokens, minlength=5) / 20_000
        assert (np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()


def test_a_rollout_stops_at_its_length() -> None:
    for length in (1, 2, 5):
        tokens = generate(1.0, 0, seed=1, length=length)
        assert len(tokens) == length
        assert all(0 <= token < len(VOCABULARY) for token in tokens)


def test_a_forecast_of_a_sequence_without_a_state_is_the_same() -> None:
    spec = make_spec()
    engine = make_engine(spec)
    rollouts = [Forecast(spec, 11), Forecast(spec, 11)]
    inputs = make_inputs(spec, 6)
    jobs = [
        make_job(engine, 6, state, rollout=r)
        for state, r in zip((None, StateHandle()), rollouts, strict=True)
    ]
    assert all((job.inputs == inputs).all() for job in jobs)
    run(engine, *jobs)
    np.testing.assert_allclose(rollouts[0].result, rollouts[1].result, atol=1e-5)
