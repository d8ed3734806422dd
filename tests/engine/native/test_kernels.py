"""What is compiled for a network, and when it is not compiled again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import ModelSpec
from service.engine.cpu_runner import CpuRunner, _join
from service.engine.native.kernels import Shapes, kernels
from service.engine.native.product import Kind
from service.engine.runner import Batch, Outcome
from tests.engine.following import make_runner
from tests.engine.making import make_inputs, make_spec
from tests.engine.native.making import PATHS

SHAPES = Shapes(3, 20, 2, 3)


def test_the_same_kernels_are_not_compiled_twice() -> None:
    target, kind = next(iter(PATHS.values()))
    made = kernels(SHAPES, kind, target)
    assert kernels(Shapes(3, 20, 2, 3), Kind(kind.precision, kind.unit), target) is made


def test_runners_of_one_shape_share_their_kernels() -> None:
    """A residual head and another scale are none of the kernels' business."""
    path = next(iter(PATHS))
    one, other = (make_runner(make_spec(hidden=20, residual=r), path) for r in (False, True))
    assert one._step_alone is other._step_alone
    assert one._chunk_alone is other._chunk_alone


@pytest.mark.parametrize("other", [Shapes(3, 20, 1, 3), Shapes(0, 20, 2, 3)], ids=["fewer layers", "tokens"])
def test_another_shape_has_kernels_of_its_own(other: Shapes) -> None:
    target, kind = next(iter(PATHS.values()))
    assert kernels(other, kind, target) is not kernels(SHAPES, kind, target)


def test_another_kind_or_processor_has_kernels_of_its_own() -> None:
    every = {kernels(SHAPES, kind, target).library for target, kind in PATHS.values()}
    assert len(every) == len(PATHS)


def test_a_layers_terms_are_what_its_product_takes() -> None:
    """Tokens are rows of a table, no terms."""
    series, text = Shapes(3, 20, 2, 3), Shapes(0, 20, 2, 9)
    assert [series.widths(n) for n in (0, 1)] == [(3, 20), (20, 20)]
    assert [text.widths(n) for n in (0, 1)] == [(20,), (20, 20)]


def whole_step(spec: ModelSpec, path: str) -> tuple[CpuRunner, Batch, Outcome]:
    """A runner after a step of six new sessions, which lie in falling order."""
    runner = make_runner(spec, path)
    inputs = [make_inputs(spec, 1, seed=b) for b in range(6)]
    batch = Batch([runner.arena.padding] * 6, [5, 4, 3, 2, 1, 0], inputs)
    return runner, batch, runner.run(batch)


def step_alone(runner: CpuRunner, **counts: int) -> None:
    """The step again, as the member of a team takes its part of it."""
    frame = runner._hands[0].alone
    for name, number in counts.items():
        frame.count(name, number)
    runner._step_alone(frame.address)


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("spec", [make_spec(hidden=37, layers=1), make_spec("text", hidden=37, layers=1)])
def test_a_members_units_are_computed_and_no_others(path: str, spec: ModelSpec) -> None:
    """Blocks first ... last of every session, to the bit what the whole step writes."""
    runner, _, _ = whole_step(spec, path)
    lanes = PATHS[path][0].lanes
    states = runner.arena.states.clone()  # [slots + 1, 2, layers, H]
    blocks = -(-37 // lanes)
    for first, last in ((0, 1), (1, 1), (1, blocks), (blocks - 1, blocks)):
        runner.arena.states[:-1] = np.nan
        step_alone(runner, first=first, last=last)
        units = slice(first * lanes, last * lanes)
        expected = torch.full_like(states, torch.nan)
        expected[-1] = 0
        expected[:6, ..., units] = states[:6, ..., units]
        np.testing.assert_array_equal(runner.arena.states, expected)


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("task", ["series", "text"])
def test_a_members_outputs_are_of_its_rows_alone(path: str, task: str) -> None:
    """begin ... end; of no units: the states stand."""
    spec = make_spec(hidden=20) if task == "series" else make_spec("text", hidden=37, layers=3)
    runner, batch, whole = whole_step(spec, path)
    states = runner.arena.states.clone()
    runner._out[:] = np.nan
    for begin, end in ((2, 4), (4, 4), (4, 5)):
        step_alone(runner, begin=begin, end=end, first=0, last=0)
    np.testing.assert_array_equal(runner.arena.states, states)
    assert np.isnan(runner._out[[0, 1, 5]]).all()
    runner._out[[0, 1, 5]] = 0
    found = runner._finished(runner._out[:6], _join(batch.inputs))
    for b in (2, 3, 4):
        np.testing.assert_array_equal(found[b], whole.outputs[b][0])
