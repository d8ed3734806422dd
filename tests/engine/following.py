"""Sessions in a CPU runner's arena, each followed by a float64 oracle with the weights that are kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ModelSpec
from model.network import Network, Scaler
from service.engine.arena import Arena
from service.engine.cpu_runner import CpuRunner
from service.engine.jobs import Prepared
from service.engine.native.packing import keep
from service.engine.native.product import Kind
from service.engine.runner import Batch, Outcome
from tests.engine.making import CPU, Oracle, make_inputs, make_network, make_spec
from tests.engine.native.making import PATHS, VECTORS

SLOTS, MAX_BATCH = 12, 8
#: A path of each kind: for shapes that would take too long on every one
KINDS = sorted(
    {f"fp32 on vectors of {max(VECTORS)}", f"int8 on vectors of {min(VECTORS)}", *list(PATHS)[-2:]}
)
#: Several panels of outputs, and hidden units that fill no vector
WIDE = make_spec(inputs=70, hidden=100, leads=2)
#: Of a runner whose rows stay float32: measured 1.1e-6 at most, whatever the weights are kept in. Where rows
#: are rounded to bf16, against an oracle that rounds them too: as near but for a number that is rounded the
#: other way, one place of bf16, after which both go on apart for a while; measured 1.4e-3, the median 2e-7.
FLOAT32, ROUNDED = 4e-6, 5e-3


class _RoundedRows:
    """A matrix whose operands are rounded to bf16 before a product, as DOT and TILE take them."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.matrix = matrix

    def __matmul__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        rounded = torch.from_numpy(x.astype(np.float32)).bfloat16().double().numpy()
        return np.asarray(self.matrix @ rounded)


def kept(network: Network, precision: str) -> Network:
    """A copy with the weights that a precision keeps: those of a layer's products. Of a token no product is
    taken, so that the first matrix of a text model stays."""
    network = copy.deepcopy(network)
    tokens = network.embedding is not None
    for n in range(network.spec.architecture.num_layers):
        weights = network.lstm.layer(n)[:2]
        products = weights[1:] if n == 0 and tokens else weights
        for weight, part in zip(
            products, keep([w.detach().numpy() for w in products], precision)[0], strict=True
        ):
            weight.data.copy_(torch.from_numpy(part))
    return network


def make_oracle(network: Network, kind: Kind, *, rounded: bool = False) -> Oracle:
    """rounded: for DOT and TILE, one that rounds the products' rows as they do."""
    oracle = Oracle(kept(network, kind.precision))
    if rounded and kind.half:
        for name, matrix in oracle.reference.w.items():
            table = name == "lstm.weight_ih_l0" and network.embedding is not None
            if name.startswith("lstm.weight") and not table:
                oracle.reference.w[name] = _RoundedRows(matrix)  # type: ignore[assignment]
    return oracle


def make_runner(
    spec: ModelSpec, path: str, *, slots: int = SLOTS, max_batch: int = MAX_BATCH, threads: int = 1
) -> CpuRunner:
    target, kind = PATHS[path]
    arch = spec.architecture
    arena = Arena(arch.num_layers, slots, arch.hidden_size, CPU)
    return CpuRunner(make_network(spec), arena, max_batch, kind.precision, threads, target)


def normalised(spec: ModelSpec, outputs: NDArray[np.floating]) -> NDArray[np.floating]:
    """Outputs of a runner as the reference gives them."""
    if spec.architecture.task == "text":
        return outputs
    scaler = Scaler(spec)
    return np.asarray((outputs - scaler.output_mean) / scaler.output_std)


def follow(spec: ModelSpec, path: str, *, slots: int = SLOTS, max_batch: int = MAX_BATCH) -> Followed:
    """A runner on a path, and oracles to its tolerance."""
    kind = PATHS[path][1]
    oracle = make_oracle(make_network(spec), kind, rounded=True)
    runner = make_runner(spec, path, slots=slots, max_batch=max_batch)
    return Followed(runner, oracle, ROUNDED if kind.half else FLOAT32)


@dataclass
class Followed:
    """A runner, and the oracle of every row that has been written. Every call is checked: outputs, heads and
    states to the tolerance, and that no other row has changed a bit."""

    runner: CpuRunner
    fresh: Oracle
    tolerance: float
    oracles: dict[int, Oracle] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)  # the largest of each check
    calls: int = 0

    def __post_init__(self) -> None:
        self.oracles.setdefault(self.runner.arena.padding, self.fresh)

    @property
    def spec(self) -> ModelSpec:
        return self.fresh.spec

    def inputs(self, lengths: Sequence[int]) -> list[Prepared]:
        self.calls += 1
        return [make_inputs(self.spec, t, seed=1000 * self.calls + b) for b, t in enumerate(lengths)]

    def run(
        self,
        source: list[int],
        target: list[int],
        lengths: Sequence[int],
        *,
        heads: Sequence[int] = (),
        traced: bool = False,
    ) -> Outcome:
        batch = Batch(source, target, self.inputs(lengths), list(heads), traced)
        outcome = self._run(batch)
        for b, (row, x) in enumerate(zip(target, batch.inputs, strict=True)):
            expected = self.oracles[row].run(x)
            assert outcome.outputs[b].shape == expected.shape
            self._check(normalised(self.spec, outcome.outputs[b]) - expected)
            if b in batch.heads:
                self._check(outcome.heads[b] - self.oracles[row].head)
                if b in outcome.quantiles:
                    self._check(outcome.quantiles[b] - self.oracles[row].quantiles)
        self._check_states(target)
        assert sorted(outcome.heads) == sorted(batch.heads)
        return outcome

    def tops(self, source: list[int], target: list[int], lengths: Sequence[int]) -> None:
        batch = Batch(source, target, self.inputs(lengths))
        self._move(batch)
        tops = self.runner.tops(batch)
        assert tops.shape == (lengths[0], len(lengths), self.spec.architecture.hidden_size)
        for b, (row, x) in enumerate(zip(target, batch.inputs, strict=True)):
            for t, step in enumerate(x):
                self.oracles[row].run([step])
                self._check(tops[t, b].numpy() - self.oracles[row].reference.h[-1])
        self._check_states(target)

    def tick(self, rng: np.random.Generator) -> None:
        """A batch of some sessions that go on in place, change their rows, fork or begin."""
        arena = self.runner.arena
        B = int(rng.integers(1, MAX_BATCH + 1))
        target = rng.permutation(arena.padding)[:B].tolist()
        written = sorted(self.oracles)
        source = [
            row if row in self.oracles and rng.random() < 0.5 else int(rng.choice(written)) for row in target
        ]
        lengths = [1] * B if rng.random() < 0.5 else sorted(rng.integers(1, 13, B).tolist(), reverse=True)
        self.run(source, target, lengths, heads=[b for b in range(B) if rng.random() < 0.3])

    def assert_near(self) -> None:
        """All in all: half of what was checked is within some places of float32, rounded rows or not."""
        assert len(self.errors) >= 8
        assert float(np.median(self.errors)) < 1e-6

    def _run(self, batch: Batch) -> Outcome:
        before = self.runner.arena.states.numpy().copy()
        self._move(batch)
        outcome = self.runner.run(batch)
        others = sorted(set(range(len(before))) - set(batch.target))
        np.testing.assert_array_equal(self.runner.arena.states.numpy()[others], before[others])
        return outcome

    def _move(self, batch: Batch) -> None:
        begun = [self.oracles[row].copy() for row in batch.source]
        self.oracles.update(zip(batch.target, begun, strict=True))

    def _check_states(self, rows: list[int]) -> None:
        for row, state in zip(rows, self.runner.arena.fetch(rows), strict=True):
            self._check(state - self.oracles[row].state)

    def _check(self, differences: NDArray[np.floating]) -> None:
        self.errors.append(float(np.abs(differences).max()))
        assert self.errors[-1] < self.tolerance, f"{self.errors[-1]} of check {len(self.errors)}"
