"""What is measured: a network of seeded random weights, our runner on it, and the state to be reached."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import Architecture, ModelSpec, Signal
from model.lstm import StackedLSTM
from model.network import Network
from service.bench.options import Wrong
from service.engine.arena import Arena
from service.engine.runner import Batch
from service.engine.runners import make_runner

#: Largest difference from the float64 state after a few steps. Rounding of float32; and of weights and inputs
#: to 8 bits of mantissa, or to 8 bits: a confusion of gates or of layers is several times as large.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}
CHECKED_STEPS = 4
SLOTS = 1024  # rows of the arena, at least: the sessions of a tick lie scattered among others


class Stateful(Protocol):
    """A contestant whose arithmetic can be checked."""

    def reset(self) -> None:
        """Back to a state of zeros."""
        ...

    def step(self) -> object: ...

    def state(self) -> NDArray[np.float32]:
        """h and c, [2, layers, B, hidden]."""
        ...


def make_network(hidden: int, layers: int, inputs: int, seed: int = 0) -> Network:
    """Outputs are the inputs one step later; weights as they are before training."""
    signals = tuple(Signal(f"x{k}") for k in range(inputs))
    arch = Architecture("series", inputs, hidden, layers, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(ModelSpec(arch, signals, signals)).eval()
    return network.requires_grad_(False)


class Ours:
    """The engine's runner, for ticks of any size up to `most`."""

    def __init__(
        self, network: Network, most: int, precision: str, threads: int, device: torch.device
    ) -> None:
        arch = network.spec.architecture
        self.slots = max(SLOTS, 4 * most)
        self.arena = Arena(arch.num_layers, self.slots, arch.hidden_size, device)
        self.runner = make_runner(
            copy.deepcopy(network), self.arena, max_batch=most, precision=precision, threads=threads
        )
        self.runner.warm(most)

    def rows(self, count: int, seed: int = 0) -> list[int]:
        """So many different rows of the arena, at random."""
        rows: list[int] = np.random.default_rng(seed).permutation(self.slots)[:count].tolist()
        return rows

    def states(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """h and c, [2, layers, B, hidden]."""
        return self.arena.fetch(rows).transpose(1, 2, 0, 3)


class OurTick:
    """Single steps of B sessions. They read one set of rows and write another, as copy on write does.

    The head, and its outputs in user units, are part of a step of ours and of nobody else's.
    """

    def __init__(self, ours: Ours, x: NDArray[np.float32]) -> None:
        """x [B, I]: the inputs of every step."""
        self.ours, self.inputs = ours, [row[None].copy() for row in x]
        both = ours.rows(2 * len(x))
        self.now, self.next = both[: len(x)], both[len(x) :]

    def reset(self) -> None:
        zeros = np.zeros_like(self.ours.arena.fetch([0])[0])
        for row in self.now:
            self.ours.arena.load(row, zeros)

    def step(self) -> None:
        self.ours.runner.run(Batch(self.now, self.next, self.inputs))
        self.now, self.next = self.next, self.now

    def state(self) -> NDArray[np.float32]:
        return self.ours.states(self.now)


class TorchStep:
    """torch.nn.LSTM, one step a call, its state carried."""

    def __init__(self, lstm: nn.LSTM, x: NDArray[np.float32], device: torch.device) -> None:
        self.lstm, self.x = lstm, torch.from_numpy(x)[None].to(device)
        self.reset()

    def reset(self) -> None:
        zeros = torch.zeros(self.lstm.num_layers, self.x.shape[1], self.lstm.hidden_size)
        self.carried = (zeros.to(self.x.device), zeros.to(self.x.device))

    def step(self) -> None:
        _, self.carried = self.lstm(self.x, self.carried)

    def state(self) -> NDArray[np.float32]:
        return torch.stack(self.carried).cpu().numpy()


def torch_lstm(lstm: StackedLSTM, device: torch.device) -> nn.LSTM:
    """torch's module with these weights."""
    theirs = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers)
    weights: dict[str, Tensor] = {}
    for k in range(lstm.num_layers):
        names = (f"weight_ih_l{k}", f"weight_hh_l{k}", f"bias_ih_l{k}")
        weights |= dict(zip(names, lstm.layer(k), strict=True))
        weights[f"bias_hh_l{k}"] = torch.zeros_like(weights[f"bias_ih_l{k}"])
    theirs.load_state_dict(weights)
    return theirs.to(device).eval().requires_grad_(False)


def expected(lstm: StackedLSTM, x: NDArray[np.float32], steps: int = CHECKED_STEPS) -> NDArray[np.float64]:
    """h and c after steps of x [B, I] each, in float64 by the written-out cell, [2, layers, B, hidden]."""
    exact = copy.deepcopy(lstm).cpu().double()
    state = exact.zero_state(len(x))
    with torch.no_grad():
        for _ in range(steps):
            _, state = exact.step(torch.from_numpy(x).double(), state)
    return torch.stack(state).numpy()


def check(name: str, contestant: Stateful, wanted: NDArray[np.float64], precision: str) -> float:
    """The largest difference of the contestant's state from what is wanted. Raises Wrong if it is large."""
    contestant.reset()
    for _ in range(CHECKED_STEPS):
        contestant.step()
    difference = np.abs(contestant.state() - wanted).max()
    if not difference <= TOLERANCE[precision]:  # "not within": a NaN is wrong too
        raise Wrong(f"{name} computes something else: its state is off by {difference:.2g}")
    return float(difference)
