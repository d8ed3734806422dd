"""The CUDA runner is the float64 reference: on a CPU all of it but CUDA itself, on a GPU the whole.

`eager` calls the graphs' bodies, `recorded` repeats their operators as a graph would, `cuda` is the real
thing and runs where there is a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import ModelSpec
from model.network import Network
from service.engine.arena import Arena
from service.engine.cuda_runner import CudaRunner
from service.engine.graphs import batch_sizes
from service.engine.runner import Batch, Outcome
from service.engine.runners import make_runner
from tests.engine.making import CPU, TOLERANCE, Oracle, make_inputs, make_network, make_spec
from tests.engine.recording import RecordingGraphs

SLOTS, MAX_BATCH = 24, 12
MODELS = {
    "series": make_spec(),
    "one layer": make_spec(layers=1),
    "four layers": make_spec(layers=4),
    "inputs wider than h": make_spec(inputs=21, hidden=5),
    "residual": make_spec(residual=True),
    "low rank": make_spec(leads=6, rank=2, quantiles=(0.1, 0.9)),
    "text": make_spec("text"),
    "text, one layer": make_spec("text", layers=1),
}
#: Against the float64 reference with the weights that each precision keeps. bfloat16 rounds x and h at 4e-3
#: before each product, and the weights here are made large; measured on a CPU: at most 0.013.
TOLERANCES = {"fp32": TOLERANCE, "bf16": 0.03, "int8": 0.03}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
KINDS = ["eager", "recorded", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    chosen: ModelSpec = request.param
    return chosen


def make(
    spec: ModelSpec, kind: str, precision: str = "fp32", *, max_batch: int = MAX_BATCH, chunk_rows: int = 200
) -> CudaRunner:
    arch = spec.architecture
    device = torch.device("cuda") if kind == "cuda" else CPU
    arena = Arena(arch.num_layers, SLOTS, arch.hidden_size, device)
    runner = CudaRunner(make_network(spec), arena, max_batch, precision, chunk_rows)
    if kind == "recorded":
        runner._graphs = RecordingGraphs()
    if kind != "eager":
        runner.warm(max_batch)
    return runner


def make_oracle(runner: CudaRunner) -> Oracle:
    """The reference, with the weights that the runner keeps."""
    twin = Network(runner.network.spec)
    twin.load_state_dict(runner.network.state_dict())
    with torch.no_grad():
        for k, (w_ih, w_hh, _) in enumerate(runner._layers()):
            twin.lstm.layer(k)[0].copy_(w_ih)
            twin.lstm.layer(k)[1].copy_(w_hh)
    return Oracle(twin)


def rows_of(runner: CudaRunner) -> np.ndarray:
    return runner.arena.fetch(range(SLOTS + 1))


class Sessions:
    """Some sessions, the rows that hold them, and an oracle beside each."""

    def __init__(self, runner: CudaRunner, count: int, seed: int = 0) -> None:
        self.runner, self.rng = runner, np.random.default_rng(seed)
        self.tolerance = TOLERANCES[runner.precision]
        self.oracles = [make_oracle(runner) for _ in range(count)]
        self.rows = [runner.arena.padding] * count

    def batch(self, lengths: dict[int, int], *, heads: bool = False, traced: bool = False) -> Batch:
        """One tick: sessions by number, the steps of each. Every second goes on in its own row."""
        spec, chosen = self.runner.network.spec, sorted(lengths, key=lambda s: -lengths[s])
        free = sorted(set(range(SLOTS)) - set(self.rows))
        self.rng.shuffle(free)
        batch = Batch([self.rows[s] for s in chosen], [], [], traced=traced)
        for b, s in enumerate(chosen):
            in_place = s % 2 and self.rows[s] != self.runner.arena.padding
            batch.target.append(self.rows[s] if in_place else free.pop())
            batch.inputs.append(make_inputs(spec, lengths[s], seed=int(self.rng.integers(1 << 30))))
            if heads and self.rng.random() < 0.5:
                batch.heads.append(b)
            self.rows[s] = batch.target[-1]
        self.chosen = chosen
        return batch

    def check(self, batch: Batch, outcome: Outcome, chosen: list[int]) -> None:
        spec = self.runner.network.spec
        text = spec.architecture.task == "text"
        std, mean = (np.array([getattr(s, name) for s in spec.outputs]) for name in ("std", "mean"))
        for b, s in enumerate(chosen):
            expected = self.oracles[s].run(batch.inputs[b])
            got = outcome.outputs[b] if text else (outcome.outputs[b] - mean) / std
            assert got.shape == expected.shape
            assert outcome.outputs[b].dtype == (np.float32 if text else np.float64)
            np.testing.assert_allclose(got, expected, atol=self.tolerance, rtol=0)
            if b in batch.heads:
                np.testing.assert_allclose(
                    outcome.heads[b], self.oracles[s].head, atol=self.tolerance, rtol=0
                )
        for row, oracle in zip(self.rows, self.oracles, strict=True):
            if row != self.runner.arena.padding:
                state = self.runner.arena.fetch([row])[0]
                np.testing.assert_allclose(state, oracle.state, atol=self.tolerance, rtol=0)
        assert not self.runner.arena.fetch([self.runner.arena.padding])[0].any()

    def tick(self, lengths: dict[int, int], *, heads: bool = False, traced: bool = False) -> None:
        batch = self.batch(lengths, heads=heads, traced=traced)
        self.check(batch, self.runner.run(batch), self.chosen)

    def some(self, most: int, longest: int) -> dict[int, int]:
        count = int(self.rng.integers(1, most + 1))
        chosen = self.rng.choice(len(self.oracles), count, replace=False)
        return {int(s): int(self.rng.integers(1, longest + 1)) for s in chosen}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_any_schedule_is_the_reference(spec: ModelSpec, kind: str, precision: str) -> None:
    """Single steps of all batch sizes, ragged chunks, heads and gates, new rows and the same rows."""
    sessions = Sessions(make(spec, kind, precision), MAX_BATCH)
    for tick in range(24):
        longest = (1, 1, 9)[tick % 3]
        traced = tick % 8 == 7
        sessions.tick(sessions.some(1 if traced else MAX_BATCH, longest), heads=tick % 5 == 4, traced=traced)


def test_single_steps_stay_the_reference(spec: ModelSpec, kind: str) -> None:
    sessions = Sessions(make(spec, kind), MAX_BATCH)
    for _ in range(60):
        sessions.tick(sessions.some(MAX_BATCH, 1))


@pytest.mark.parametrize("lengths", [[33, 20, 20, 7, 1, 1], [40], [5] * 12, [17, 1]], ids=str)
def test_ragged_chunks_are_the_reference(spec: ModelSpec, kind: str, lengths: list[int]) -> None:
    sessions = Sessions(make(spec, kind), len(lengths))
    for _ in range(2):
        sessions.tick(dict(enumerate(lengths)))


@pytest.mark.parametrize("B", range(1, MAX_BATCH + 1))
def test_the_padding_of_a_batch_touches_no_other_row(B: int, kind: str) -> None:
    runner = make(make_spec(), kind)
    sessions = Sessions(runner, SLOTS // 2)
    sessions.tick(dict.fromkeys(range(SLOTS // 2), 2))
    for longest in (1, 4):
        before = rows_of(runner)
        batch = sessions.batch({s: 1 + s % longest for s in range(B)})
        runner.run(batch)
        others = [row for row in range(SLOTS + 1) if row not in batch.target]
        np.testing.assert_array_equal(rows_of(runner)[others], before[others])


def test_rows_can_change_places(kind: str) -> None:
    """A target may be another position's source: all rows are read before one is written."""
    runner = make(make_spec(), kind)
    sessions = Sessions(runner, 2)
    sessions.tick({0: 1, 1: 1})
    for lengths in ([1, 1], [3, 2]):
        inputs = [make_inputs(runner.network.spec, t, seed=t) for t in lengths]
        batch = Batch(list(sessions.rows), sessions.rows[::-1], inputs)
        sessions.rows.reverse()
        sessions.check(batch, runner.run(batch), [0, 1])


def test_two_ticks_can_be_under_way(spec: ModelSpec, kind: str) -> None:
    """The second goes on where the first will have ended; they are collected in any order."""
    sessions = Sessions(make(spec, kind), MAX_BATCH)
    for lengths in (dict.fromkeys(range(7), 1), {s: 1 + s for s in range(5)}):
        first = sessions.batch(lengths)
        chosen = sessions.chosen
        ticket = sessions.runner.submit(first)
        second = sessions.batch({s: 2 if s == 11 else 1 for s in range(7, 12)})
        later = sessions.runner.submit(second)
        with pytest.raises(RuntimeError, match="2 ticks are under way"):
            sessions.runner.submit(Batch([SLOTS], [SLOTS - 1], first.inputs[-1:]))
        outcome = sessions.runner.collect(later)
        for b, s in enumerate(sessions.chosen):
            assert outcome.outputs[b].shape[0] == len(second.inputs[b])
            sessions.oracles[s].run(second.inputs[b])
        sessions.check(first, sessions.runner.collect(ticket), chosen)
        with pytest.raises(RuntimeError, match="collected before"):
            sessions.runner.collect(ticket)


def test_outcomes_outlive_the_ticks_after_them(spec: ModelSpec, kind: str) -> None:
    runner = make(spec, kind)
    x = [make_inputs(spec, 1, seed=s) for s in range(6)]
    kept = runner.run(Batch([SLOTS], [0], x[:1])).outputs[0]
    copy = kept.copy()
    for n in range(1, 5):
        runner.run(Batch([SLOTS], [n], x[n : n + 1]))
    np.testing.assert_array_equal(kept, copy)


@pytest.mark.parametrize("lengths", [[1, 1], [3, 1]], ids=str)
@pytest.mark.parametrize("heads", [[], [0]], ids=["plain", "heads"])
@pytest.mark.parametrize("token", [-1, 9, 10**12])
def test_a_token_that_is_none_moves_nothing(
    kind: str, lengths: list[int], heads: list[int], token: int
) -> None:
    """On CUDA it must not reach the device: an assertion there ends the process."""
    spec = make_spec("text")
    sessions = Sessions(make(spec, kind), 4)
    sessions.tick(dict.fromkeys(range(4), 2))
    before = rows_of(sessions.runner)
    inputs = [make_inputs(spec, t) for t in lengths]
    inputs[-1][-1] = token
    with pytest.raises(IndexError, match="tokens are 0 to 8"):
        sessions.runner.run(Batch(sessions.rows[:2], [20, 21], inputs, heads=heads))
    np.testing.assert_array_equal(rows_of(sessions.runner), before)
    sessions.tick(dict.fromkeys(range(4), 1))


@pytest.mark.parametrize("shape", [(1, 99), (1, 1), (4, 99), (4, 1), (1,)], ids=str)
def test_rows_of_another_width_move_nothing(kind: str, shape: tuple[int, ...]) -> None:
    sessions = Sessions(make(make_spec(), kind), 2)
    sessions.tick({0: 3, 1: 2})
    before = rows_of(sessions.runner)
    with pytest.raises(ValueError, match="3 wide"):
        sessions.runner.run(Batch(sessions.rows[:1], [20], [np.zeros(shape, np.float32)]))
    np.testing.assert_array_equal(rows_of(sessions.runner), before)
    sessions.tick({0: 1, 1: 1})


def test_what_is_beyond_the_buffers_goes_the_plain_way(spec: ModelSpec, kind: str) -> None:
    sessions = Sessions(make(spec, kind, max_batch=3, chunk_rows=20), 6)
    for lengths in ([1] * 6, [2] * 6, [18, 1], [17, 1], [25], [1] * 3):
        sessions.tick(dict(enumerate(lengths)))


def test_chunks_may_fill_the_buffers(kind: str) -> None:
    """To the last row, with a padded size at the end: what the padding writes has room behind it."""
    sessions = Sessions(make(make_spec(), kind, max_batch=6, chunk_rows=20), 5)
    for lengths in ([3] * 5, [11, 1, 1, 1, 1]):
        sessions.tick(dict(enumerate(lengths)))


def test_warming_up_records_every_size_and_leaves_the_arena(spec: ModelSpec) -> None:
    runner = make(spec, "eager")
    graphs = runner._graphs = RecordingGraphs()
    runner.run(Batch([SLOTS], [0], [make_inputs(spec, 3)]))
    before = rows_of(runner)
    runner.warm(MAX_BATCH)
    np.testing.assert_array_equal(rows_of(runner), before)
    assert graphs.recorded == len(runner.sizes) * (1 + spec.architecture.num_layers)
    for B, t, replays in ((5, 1, 1), (2, 3, 3 * spec.architecture.num_layers)):
        graphs.replays = 0
        runner.run(Batch([SLOTS] * B, list(range(B)), [make_inputs(spec, t)] * B))
        assert graphs.replays == replays


def test_batch_sizes_are_close() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(12) == [1, 2, 3, 4, 6, 8, 12]
    assert batch_sizes(50) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50]


@needs_cuda
@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_cuda_device_gets_the_cuda_runner(precision: str) -> None:
    arena = Arena(2, SLOTS, 16, torch.device("cuda"))
    runner = make_runner(make_network(make_spec()), arena, max_batch=4, precision=precision)
    assert isinstance(runner, CudaRunner)
    assert runner.precision == precision
