"""The CPU runner's memory: nothing in it matters that a call did not write, and no session sees another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.config import ModelSpec
from service.engine import cpu_runner
from service.engine.cpu_runner import CpuRunner, Task
from service.engine.jobs import Prepared
from service.engine.native.packing import aligned
from service.engine.runner import Batch, Outcome
from tests.engine.following import KINDS, MAX_BATCH, WIDE, make_runner
from tests.engine.making import make_inputs, make_network, make_spec
from tests.engine.native.making import PATHS

MODELS = {"series": make_spec(hidden=20), "text": make_spec("text", hidden=37, layers=3)}
STEPS, RAGGED = [1] * 5, [40, 31, 25, 3, 1]


@pytest.fixture(params=list(PATHS))
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    chosen: ModelSpec = request.param
    return chosen


def inputs_of(runner: CpuRunner, lengths: Sequence[int], seed: int = 0) -> list[Prepared]:
    return [make_inputs(runner.network.spec, t, seed=100 * seed + b) for b, t in enumerate(lengths)]


def fresh(runner: CpuRunner, inputs: list[Prepared], **how: Any) -> Outcome:
    """New sequences in rows 0, 1, ..."""
    return runner.run(Batch([runner.arena.padding] * len(inputs), list(range(len(inputs))), inputs, **how))


def states_of(runner: CpuRunner) -> NDArray[np.float32]:
    """Of every row, the padding too. A copy."""
    return runner.arena.states.numpy().copy()


def assert_same(a: Outcome, b: Outcome) -> None:
    for one, other in zip(a.outputs, b.outputs, strict=True):
        np.testing.assert_array_equal(one, other)
    for position, head in a.heads.items():
        np.testing.assert_array_equal(head, b.heads[position])


def take_from(memory: Callable[..., Any], runner: CpuRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what a chunk's outputs are written to, which is made for each."""
    made = runner._task

    def task(*arguments: Any) -> Task:
        task = made(*arguments)
        tops = None if task.tops is None else memory(task.tops.shape)
        return replace(task, out=memory(task.out.shape), tops=tops)

    monkeypatch.setattr(runner, "_task", task)


class Garbage:
    """Memory that a runner asks for, full of NaNs before every call."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []

    def __call__(self, shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
        array = aligned(shape, dtype)
        self._arrays.append(array)
        array.view(np.uint8)[...] = 0xFF  # in float32 and in bf16 a NaN
        return array

    def spread(self) -> None:
        for array in self._arrays:
            array.view(np.uint8)[...] = 0xFF


def test_what_lies_in_memory_does_not_matter(
    spec: ModelSpec, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is multiplied by zeros, and zero times NaN is NaN. Small blocks: there is a second one."""
    monkeypatch.setattr(cpu_runner, "BLOCK", 16)
    clean = make_runner(spec, path)
    garbage = Garbage()
    monkeypatch.setattr(cpu_runner, "aligned", garbage)
    dirty = make_runner(spec, path)
    take_from(garbage, dirty, monkeypatch)
    source = [clean.arena.padding] * 5
    for seed, lengths in enumerate((STEPS, RAGGED, [1], [3], STEPS, [2, 1], [1, 1], RAGGED)):
        inputs = inputs_of(clean, lengths, seed)
        batch = Batch(source[: len(inputs)], list(range(len(inputs))), inputs, heads=[0])
        garbage.spread()
        assert_same(dirty.run(batch), clean.run(batch))
        garbage.spread()
        tops, expected = dirty.tops(batch), clean.tops(batch)
        for b, x in enumerate(inputs):
            np.testing.assert_array_equal(tops[: len(x), b], expected[: len(x), b])
        np.testing.assert_array_equal(states_of(dirty), states_of(clean))
        source = [0, 1, 2, 3, 4]
    assert np.isfinite(states_of(clean)).all()


class Fenced:
    """Memory that a runner asks for, and a fence behind each part of it."""

    def __init__(self) -> None:
        self._fences: list[NDArray[np.uint8]] = []

    def __call__(self, shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = aligned((size + 65536,), np.uint8)
        memory[size:] = 0xA5
        self._fences.append(memory[size:])
        part: NDArray[Any] = memory[:size].view(dtype).reshape(shape)
        return part

    def assert_stand(self) -> None:
        for fence in self._fences:
            assert (fence == 0xA5).all()


@pytest.mark.parametrize("path", KINDS, indirect=True)
def test_nothing_is_written_behind_the_memory_that_was_asked_for(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a full batch, and blocks as large as one."""
    fenced = Fenced()
    monkeypatch.setattr(cpu_runner, "BLOCK", 1)
    monkeypatch.setattr(cpu_runner, "aligned", fenced)
    runner = make_runner(WIDE, path, slots=80, max_batch=70)
    take_from(fenced, runner, monkeypatch)
    for lengths in ([1] * 70, [3] * 70, [4] * 17 + [2] * 48):
        fresh(runner, inputs_of(runner, lengths), heads=[0])
        fenced.assert_stand()


@pytest.mark.parametrize("lengths", [STEPS, RAGGED], ids=["steps", "chunk"])
def test_neighbours_do_not_matter_to_the_bit(spec: ModelSpec, path: str, lengths: list[int]) -> None:
    """Whatever their number and the place among them. A step by itself and a step of a chunk are two sums of
    the same terms, and differ in the last place."""
    runner = make_runner(spec, path)
    inputs = inputs_of(runner, lengths)
    crowd = fresh(runner, inputs)
    states = states_of(runner)
    chosen = [b for b, t in enumerate(lengths) if (t > 1) == (lengths[0] > 1)]
    for b in chosen:
        alone = fresh(runner, [inputs[b]])
        np.testing.assert_array_equal(alone.outputs[0], crowd.outputs[b])
        np.testing.assert_array_equal(states_of(runner)[0], states[b])
    for number in range(2, len(chosen)):
        some = fresh(runner, inputs[:number])
        for one, other in zip(some.outputs, crowd.outputs, strict=False):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("block", [1, 16])
def test_a_chunk_cut_anywhere_is_the_same_to_the_bit(
    spec: ModelSpec, path: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into blocks by the runner, or into chunks by whoever calls it."""
    whole = make_runner(spec, path)
    inputs = inputs_of(whole, [25, 24, 9])
    expected = fresh(whole, inputs)
    monkeypatch.setattr(cpu_runner, "BLOCK", block)
    cut = make_runner(spec, path)
    assert_same(fresh(cut, inputs), expected)
    np.testing.assert_array_equal(states_of(cut), states_of(whole))
    first = fresh(cut, [x[:5] for x in inputs])
    second = cut.run(Batch([0, 1, 2], [0, 1, 2], [x[5:] for x in inputs]))
    for b, outputs in enumerate(expected.outputs):
        np.testing.assert_array_equal(np.concatenate((first.outputs[b], second.outputs[b])), outputs)
    np.testing.assert_array_equal(states_of(cut), states_of(whole))


def test_outputs_stay_when_the_next_call_comes(spec: ModelSpec) -> None:
    runner = make_runner(spec, next(iter(PATHS)))
    for lengths in (STEPS, RAGGED):
        outcome = fresh(runner, inputs_of(runner, lengths))
        before = [y.copy() for y in outcome.outputs]
        fresh(runner, inputs_of(runner, lengths, seed=1))
        for old, new in zip(before, outcome.outputs, strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("token", [-1, 9, 10**12])
@pytest.mark.parametrize("lengths", [STEPS, RAGGED], ids=["steps", "chunk"])
def test_a_token_that_is_none_changes_nothing(token: int, lengths: list[int]) -> None:
    runner = make_runner(MODELS["text"], next(iter(PATHS)))
    inputs = inputs_of(runner, lengths)
    expected = fresh(runner, inputs)
    before = states_of(runner)
    for b in (0, 4):
        bad = [x.copy() for x in inputs]
        bad[b][-1] = token
        for call in (runner.run, runner.tops):
            with pytest.raises(IndexError, match="vocabulary of 9"):
                call(Batch([4, 3, 2, 1, 0], [5, 6, 7, 0, 1], bad))
        np.testing.assert_array_equal(states_of(runner), before)
    assert_same(fresh(runner, inputs), expected)


@pytest.mark.parametrize("length", [1, 2])
def test_a_batch_that_is_too_large_changes_nothing(spec: ModelSpec, length: int) -> None:
    runner = make_runner(spec, next(iter(PATHS)))
    fresh(runner, inputs_of(runner, STEPS))
    before = states_of(runner)
    with pytest.raises(ValueError, match=r"broadcast|more than"):
        fresh(runner, inputs_of(runner, [length] * (MAX_BATCH + 1)))
    np.testing.assert_array_equal(states_of(runner), before)


def test_warming_up_leaves_the_arena_as_it_was(spec: ModelSpec, path: str) -> None:
    runner = make_runner(spec, path)
    fresh(runner, inputs_of(runner, RAGGED))
    before = states_of(runner)
    runner.warm(MAX_BATCH)
    np.testing.assert_array_equal(states_of(runner), before)


@pytest.mark.parametrize("path", list(PATHS)[-2:], indirect=True)
def test_runners_in_several_threads_do_not_meet(path: str) -> None:
    """Each has its own memory; the processor's tiles are set up by every call, in its own thread."""
    spec = MODELS["series"]
    inputs = inputs_of(make_runner(spec, path), RAGGED)
    expected = fresh(make_runner(spec, path), inputs)
    found: list[Outcome] = []

    def work(runner: CpuRunner) -> None:
        found.extend(fresh(runner, inputs) for _ in range(20))

    runners = [make_runner(spec, path) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(runner,)) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    for outcome in found:
        assert_same(outcome, expected)


def test_the_network_that_is_given_is_left_as_it_is(spec: ModelSpec, path: str) -> None:
    """Another runner of another precision may be made of it."""
    target, kind = PATHS[path]
    network = make_network(spec)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    runner = CpuRunner(network, make_runner(spec, path).arena, MAX_BATCH, kind.precision, target=target)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    same = torch.equal(runner.network.state_dict()["lstm.weight_hh_l0"], before["lstm.weight_hh_l0"])
    assert same == (kind.precision == "fp32")
