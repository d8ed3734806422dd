"""The CPU runner: on every path through the native kernels it is the float64 reference.

The reference has the weights that the precision keeps. fp32, and weights of bf16 and int8 on vectors, are
within 4e-6 of it; where the rows are rounded to bf16 too (tiles, and products of pairs), within 0.03, and
next to an oracle that rounds them as well half of all numbers are within 1e-6 (`following`).
"""

from __future__ import annotations

import numpy as np
import pytest

from model.config import ModelSpec
from service.engine import cpu_runner
from tests.engine.following import FLOAT32, KINDS, WIDE, Followed, follow, make_oracle, make_runner
from tests.engine.making import make_network, make_spec
from tests.engine.native.making import PATHS

SERIES, TEXT = make_spec(hidden=20), make_spec("text", hidden=37, layers=3)
#: On every path
MODELS = {"series": SERIES, "residual": make_spec(hidden=20, residual=True), "text": TEXT}
MODELS["quantiles"] = make_spec(hidden=20, leads=9, rank=3, quantiles=(0.1, 0.9))
#: On one path of each kind: wider inputs than h, more layers, several panels of outputs, the least there is
OTHERS = {
    "one layer": make_spec(inputs=19, hidden=5, layers=1),
    "four layers": make_spec(inputs=1, hidden=33, layers=4),
    "wide": WIDE,
    "text, one unit": make_spec("text", hidden=1, layers=1),
}
LENGTHS = [33, 20, 20, 7, 1, 1]


@pytest.fixture(params=list(PATHS))
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    chosen: ModelSpec = request.param
    return chosen


def schedule(followed: Followed, seed: int, ticks: int = 25) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(ticks):
        followed.tick(rng)
    followed.assert_near()


@pytest.mark.parametrize("seed", [1, 2])
def test_any_schedule_is_the_reference(spec: ModelSpec, path: str, seed: int) -> None:
    """Steps and ragged chunks of sessions that stay in their rows, change them, fork and begin."""
    schedule(follow(spec, path), seed)


@pytest.mark.parametrize("path", KINDS, indirect=True)
@pytest.mark.parametrize("spec", OTHERS.values(), ids=list(OTHERS), indirect=True)
def test_any_shape_is_the_reference(spec: ModelSpec, path: str) -> None:
    followed = follow(spec, path)
    schedule(followed, 3)
    followed.tops([followed.runner.arena.padding] * 3, [0, 1, 2], [9, 4, 1])


@pytest.mark.parametrize("spec", [SERIES, TEXT], ids=["series", "text"], indirect=True)
def test_chunks_of_several_blocks_are_the_reference(
    spec: ModelSpec, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one step, of some and of one session's many; the state goes on from one to the next."""
    monkeypatch.setattr(cpu_runner, "BLOCK", 4)
    followed = follow(spec, path)
    new = [followed.runner.arena.padding] * 6
    followed.run(new, [0, 1, 2, 3, 4, 5], LENGTHS, heads=[0, 2, 5])
    followed.run([3, 2, 1], [1, 2, 6], [30, 29, 28])
    followed.tops([1, 6], [6, 1], [21, 2])
    schedule(followed, 4, ticks=8)


def test_large_batches_are_the_reference(path: str) -> None:
    """More rows than go through a panel together, and more steps of them than a block has."""
    followed = follow(SERIES, path, slots=80, max_batch=70)
    rows = np.random.default_rng(5).permutation(80).tolist()
    lengths = sorted(np.random.default_rng(6).integers(1, 25, 70).tolist(), reverse=True)
    followed.run([followed.runner.arena.padding] * 70, rows[:70], lengths, heads=[0, 69])
    followed.run(rows[:70], rows[10:], [1] * 70)
    followed.run(rows[10:], rows[10:], [1] * 70, heads=[3])
    followed.run(rows[10:43], rows[:33], lengths[:33])
    followed.assert_near()


def test_a_long_run_does_not_drift(path: str) -> None:
    """2,000 steps, a chunk and then one by one: the state forgets its errors."""
    followed = follow(SERIES, path)
    followed.run([followed.runner.arena.padding], [0], [1000])
    for _ in range(1000):
        followed.run([0], [0], [1])
    errors = np.array(followed.errors)
    assert errors[-500:].max() < max(3 * errors[:502].max(), FLOAT32)
    followed.assert_near()


def test_rows_in_place_and_rows_that_change_places(spec: ModelSpec, path: str) -> None:
    """A row may be read by one session and written by another in the same call."""
    followed = follow(spec, path)
    followed.run([followed.runner.arena.padding] * 4, [0, 1, 2, 3], [6, 5, 4, 3])
    for lengths in ([1, 1, 1, 1], [5, 3, 3, 2]):
        followed.run([0, 1, 2, 3], [0, 1, 2, 3], lengths)  # in place
        followed.run([0, 1, 2, 3], [1, 0, 3, 2], lengths)  # in pairs
        followed.run([3, 0, 1, 2], [2, 3, 0, 1], lengths, heads=[0, 3])  # around
        followed.run([1, 1, 1, 1], [0, 1, 2, 3], lengths)  # four of one
    followed.assert_near()


def test_tops_are_the_top_layers_h(spec: ModelSpec, path: str) -> None:
    followed = follow(spec, path)
    new = [followed.runner.arena.padding] * 4
    followed.tops(new, [0, 1, 2, 3], [33, 20, 7, 1])
    followed.tops([1, 0], [0, 1], [1, 1])
    followed.run([0, 1], [0, 1], [4, 1])
    followed.assert_near()


def test_gates_that_are_asked_for_are_of_the_same_model(spec: ModelSpec, path: str) -> None:
    """The weights are those that the precision keeps. The rows are not rounded: this is the plain runner."""
    oracle = make_oracle(make_network(spec), PATHS[path][1])
    followed = Followed(make_runner(spec, path), oracle, FLOAT32)
    padding = followed.runner.arena.padding
    for source, length in ((padding, 12), (0, 1), (0, 5)):
        outcome = followed.run([source], [0], [length], heads=[0], traced=True)
        assert outcome.trace is not None
        h = outcome.trace[-1, :, 5]
        np.testing.assert_allclose(h, followed.oracles[0].reference.h, atol=FLOAT32)


@pytest.mark.parametrize("seed", [7, 8])
def test_rounded_rows_stay_near_the_reference_that_rounds_none(spec: ModelSpec, path: str, seed: int) -> None:
    """What bf16 costs: 0.01 at most in what was measured, of outputs whose standard deviation is one."""
    oracle = make_oracle(make_network(spec), PATHS[path][1])
    followed = Followed(make_runner(spec, path), oracle, 0.03)
    rng = np.random.default_rng(seed)
    for _ in range(15):
        followed.tick(rng)
    assert PATHS[path][1].half == (max(followed.errors) > 1e-4)
