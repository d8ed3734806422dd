"""The top layer's h after every step: what quality is measured by."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from model.config import ModelSpec
from service.engine.arena import Arena
from service.engine.runner import Batch, Runner
from service.engine.runners import PRECISIONS, make_runner
from tests.engine.making import DEVICES, TOLERANCE, Oracle, make_inputs, make_network, make_spec

LENGTHS = [33, 20, 7, 1]
SPECS = {"series": make_spec(), "residual": make_spec(residual=True), "text": make_spec("text")}


def runner_of(spec: ModelSpec, precision: str, device: torch.device) -> Runner:
    arch = spec.architecture
    arena = Arena(arch.num_layers, 8, arch.hidden_size, device)
    return make_runner(copy.deepcopy(make_network(spec)), arena, max_batch=8, precision=precision)


def fresh(runner: Runner, lengths: list[int]) -> Batch:
    inputs = [make_inputs(runner.network.spec, t, seed=t) for t in lengths]
    return Batch([runner.arena.padding] * len(lengths), list(range(len(lengths))), list(inputs))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_tops_are_the_references_at_every_step_and_move_the_state(
    spec: ModelSpec, device: torch.device
) -> None:
    runner = runner_of(spec, "fp32", device)
    batch = fresh(runner, LENGTHS)
    tops = runner.tops(batch)
    assert tops.shape == (33, 4, 16)
    assert tops.dtype == torch.float32
    for b, x in enumerate(batch.inputs):
        oracle = Oracle(runner.network)
        for t, step in enumerate(x):
            oracle.run([step])
            np.testing.assert_allclose(tops[t, b].cpu(), oracle.reference.h[-1], atol=TOLERANCE)
        np.testing.assert_allclose(runner.arena.fetch([b])[0], oracle.state, atol=TOLERANCE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lengths", [LENGTHS, [1, 1, 1], [20]], ids=str)
def test_tops_are_computed_as_run_computes(precision: str, lengths: list[int]) -> None:
    """A runner with a `run` of its own and not a `tops` would be measured as what it is not."""
    spec = make_spec(hidden=64)
    states = []
    for how in ("run", "tops", "float32"):
        runner = runner_of(spec, "fp32" if how == "float32" else precision, DEVICES[0])
        (runner.tops if how == "tops" else runner.run)(fresh(runner, lengths))
        states.append(runner.arena.fetch(range(len(lengths))))
    served, by_tops, exact = states
    # mean differences: a rounding that falls the other way moves one value far and few of them
    rounding = np.abs(served - exact).mean()
    assert np.abs(served - by_tops).mean() <= 0.2 * rounding + 1e-6


@pytest.mark.parametrize("lengths", [[5], [1]], ids=str)
def test_tops_stay_when_the_next_step_comes(lengths: list[int]) -> None:
    runner = runner_of(make_spec(), "fp32", DEVICES[0])
    tops = runner.tops(fresh(runner, lengths))
    before = tops.clone()
    runner.run(Batch([0], [0], [make_inputs(runner.network.spec, 1, seed=9)]))
    assert torch.equal(tops, before)
