"""The runner: every path through it is the float64 reference, within TOLERANCE."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import ModelSpec
from service.engine.arena import Arena
from service.engine.cpu_runner import CpuRunner
from service.engine.jobs import Prepared
from service.engine.runner import Batch, Outcome, Runner
from tests.engine.making import DEVICES, TOLERANCE, Oracle, make_inputs, make_network, make_spec

SLOTS = 8
MODELS = {
    "series": make_spec(),
    "one layer": make_spec(layers=1),
    "four layers": make_spec(layers=4),
    "one lead": make_spec(leads=1),
    "residual": make_spec(residual=True),
    "quantiles": make_spec(leads=6, rank=2, quantiles=(0.1, 0.5, 0.9), residual=True),
    "text": make_spec("text"),
}


def make_runner(spec: ModelSpec, kind: str = "plain", device: torch.device = DEVICES[0]) -> Runner:
    arch = spec.architecture
    arena = Arena(arch.num_layers, SLOTS, arch.hidden_size, device)
    network = make_network(spec)
    return CpuRunner(network, arena, SLOTS) if kind == "cpu" else Runner(network, arena)


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    chosen: ModelSpec = request.param
    return chosen


@pytest.fixture(params=[("cpu", DEVICES[0]), *(("plain", d) for d in DEVICES)], ids=str)
def runner(spec: ModelSpec, request: pytest.FixtureRequest) -> Runner:
    return make_runner(spec, *request.param)


def fresh(runner: Runner, *inputs: Prepared, **how: object) -> Outcome:
    """A batch of new sequences in rows 0, 1, ..."""
    targets = list(range(len(inputs)))
    return runner.run(Batch([runner.arena.padding] * len(inputs), targets, list(inputs), **how))  # type: ignore[arg-type]


def as_user(spec: ModelSpec, expected: np.ndarray) -> np.ndarray:
    if spec.architecture.task == "text":
        return expected
    return np.asarray(expected * [s.std for s in spec.outputs] + [s.mean for s in spec.outputs])


def assert_is(runner: Runner, b: int, outcome: Outcome, oracle: Oracle, inputs: Prepared) -> None:
    """Position b, in row b, is the oracle after these inputs."""
    spec = oracle.spec
    scale = 1.0 if spec.architecture.task == "text" else max(s.std for s in spec.outputs)
    expected = as_user(spec, oracle.run(inputs))
    assert outcome.outputs[b].shape == expected.shape
    np.testing.assert_allclose(outcome.outputs[b], expected, atol=TOLERANCE * scale, rtol=0)
    if b in outcome.heads:
        np.testing.assert_allclose(outcome.heads[b], oracle.head, atol=TOLERANCE, rtol=0)
        assert (b in outcome.quantiles) == bool(spec.architecture.quantiles)
        if b in outcome.quantiles:
            np.testing.assert_allclose(outcome.quantiles[b], oracle.quantiles, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(runner.arena.fetch([b])[0], oracle.state, atol=TOLERANCE, rtol=0)


def test_single_steps_are_the_reference(runner: Runner) -> None:
    """The path of the hot loop: one step of each session, tick after tick."""
    oracles = [Oracle(runner.network) for _ in range(3)]
    source = [runner.arena.padding] * 3
    for tick in range(40):
        inputs = [make_inputs(runner.network.spec, 1, seed=10 * tick + b) for b in range(3)]
        outcome = runner.run(Batch(source, [0, 1, 2], inputs, heads=[2]))
        for b, oracle in enumerate(oracles):
            assert_is(runner, b, outcome, oracle, inputs[b])
        source = [0, 1, 2]


def test_ragged_chunks_are_the_reference(runner: Runner) -> None:
    lengths = [33, 20, 20, 7, 1, 1]
    inputs = [make_inputs(runner.network.spec, t, seed=t + b) for b, t in enumerate(lengths)]
    outcome = fresh(runner, *inputs, heads=[0, 2, 5])
    assert sorted(outcome.heads) == [0, 2, 5]
    for b, x in enumerate(inputs):
        assert_is(runner, b, outcome, Oracle(runner.network), x)


def test_a_ragged_batch_goes_on_where_it_was(runner: Runner) -> None:
    oracles = [Oracle(runner.network) for _ in range(3)]
    source = [runner.arena.padding] * 3
    for lengths in ([9, 4, 1], [5, 5, 2], [1, 1, 1], [12, 1, 1]):
        inputs = [make_inputs(runner.network.spec, t, seed=t * 7 + b) for b, t in enumerate(lengths)]
        outcome = runner.run(Batch(source, [0, 1, 2], inputs))
        for b, oracle in enumerate(oracles):
            assert_is(runner, b, outcome, oracle, inputs[b])
        source = [0, 1, 2]


def test_a_traced_chunk_is_the_reference_and_shows_its_gates(runner: Runner) -> None:
    x = make_inputs(runner.network.spec, 12)
    outcome = fresh(runner, x, traced=True, heads=[0])
    oracle = Oracle(runner.network)
    assert_is(runner, 0, outcome, oracle, x)
    arch = runner.network.spec.architecture
    assert outcome.trace is not None
    assert outcome.trace.shape == (12, arch.num_layers, 6, arch.hidden_size)
    again = Oracle(runner.network)
    for t, row in enumerate(x):
        before = again.reference.c.copy()
        again.run([row])
        i, f, g, o, c, h = outcome.trace[t].astype(np.float64).transpose(1, 0, 2)
        np.testing.assert_allclose(c, again.reference.c, atol=TOLERANCE)
        np.testing.assert_allclose(h, again.reference.h, atol=TOLERANCE)
        np.testing.assert_allclose(f * before + i * g, again.reference.c, atol=TOLERANCE)
        np.testing.assert_allclose(o * np.tanh(again.reference.c), again.reference.h, atol=TOLERANCE)
        assert ((i > 0) & (i < 1) & (f > 0) & (f < 1) & (o > 0) & (o < 1)).all()


def test_a_traced_chunk_goes_on_where_it_was(runner: Runner) -> None:
    oracle = Oracle(runner.network)
    for source, seed in ((runner.arena.padding, 1), (0, 2), (0, 3)):
        x = make_inputs(runner.network.spec, 3, seed)
        assert_is(runner, 0, runner.run(Batch([source], [0], [x], traced=True)), oracle, x)


def test_neighbours_do_not_matter(runner: Runner) -> None:
    """Alone and in company, the same to a few units in the last place of float32."""
    x = make_inputs(runner.network.spec, 25)
    others = [make_inputs(runner.network.spec, t, seed=90 + t) for t in (40, 31, 3, 1)]
    alone = fresh(runner, x)
    h_alone = runner.arena.fetch([0])[0]
    crowd = fresh(runner, others[0], others[1], x, others[2], others[3])
    np.testing.assert_allclose(crowd.outputs[2], alone.outputs[0], atol=2e-5, rtol=0)
    np.testing.assert_allclose(runner.arena.fetch([2])[0], h_alone, atol=2e-6, rtol=0)


def test_rows_that_are_not_targets_are_untouched(runner: Runner) -> None:
    fresh(runner, *(make_inputs(runner.network.spec, 3, seed=b) for b in range(4)))
    before = runner.arena.fetch([0, 1, 2, 3])
    runner.run(Batch([1, 0], [5, 6], [make_inputs(runner.network.spec, t) for t in (6, 2)], heads=[0, 1]))
    runner.run(Batch([2], [7], [make_inputs(runner.network.spec, 2)], traced=True))
    for old, new in zip(before, runner.arena.fetch([0, 1, 2, 3]), strict=True):
        np.testing.assert_array_equal(new, old)
    assert not runner.arena.fetch([runner.arena.padding])[0].any()


def test_warming_up_leaves_the_arena_as_it_was(runner: Runner) -> None:
    fresh(runner, make_inputs(runner.network.spec, 3))
    before = runner.arena.fetch(list(range(SLOTS + 1)))
    runner.warm(SLOTS)
    for old, new in zip(before, runner.arena.fetch(list(range(SLOTS + 1))), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_run_that_raises_leaves_every_row_as_it_was() -> None:
    runner = make_runner(make_spec("text"))
    fresh(runner, make_inputs(runner.network.spec, 3))
    before = runner.arena.fetch(list(range(SLOTS + 1)))
    unknown = np.array([0, 1, 999], np.int64)
    with pytest.raises(IndexError):
        runner.run(Batch([0, 0], [1, 2], [unknown, unknown[:1]]))
    for old, new in zip(before, runner.arena.fetch(list(range(SLOTS + 1))), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_forecast_begins_with_the_output(runner: Runner) -> None:
    spec = runner.network.spec
    for inputs in (make_inputs(spec, 1), make_inputs(spec, 5)):
        for traced in (False, True):
            outcome = fresh(runner, inputs, heads=[0], traced=traced)
            newest = as_user(spec, outcome.heads[0][0].astype(np.float64))
            np.testing.assert_array_equal(outcome.outputs[0][-1], newest)
