"""Everything the page shows of one bundle, computed and not yet drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.bundle import Bundle
from model.explain.activations import Observation, observe
from model.explain.gradients import (
    DISTANCE,
    SEED,
    Backward,
    Classics,
    States,
    classics,
    fresh_lstm,
    of_lstm,
)
from model.explain.subject import Subject, lstm_weights, subject
from model.explain.units import Follower, Unit, choose, followers, time_constants
from model.network import Network

#: Places of the run that gradients go back from, and random directions at each.
PLACES, DIRECTIONS = 8, 2
#: Multiply-adds of one back-propagation, at most: a wide network is followed back less far.
WORK = 1e11
LEAST_DISTANCE = 32


@dataclass(frozen=True)
class Story:
    """tau [L, H]: time constants in steps. trained, untrained: G(k) over the run's own input, of the bundle
    and of the same sizes with fresh weights (forget bias 1).
    """

    bundle: Bundle
    subject: Subject
    observation: Observation
    tau: Tensor
    units: list[Unit]
    followers: list[Follower]
    classics: Classics
    trained: Backward
    untrained: Backward

    @property
    def distance(self) -> int:
        return len(self.trained.squared) - 1


def tell(bundle: Bundle, data: Path | None, say: Callable[[str], None] = lambda line: None) -> Story:
    """Runs the network over its input and computes it all. Raises DataError, BundleMalformed."""
    network = bundle.network()
    on = subject(bundle, network, data)
    with torch.no_grad():
        x = network.embed(on.x)
    distance = _distance(bundle, len(x) - on.warm)
    ends = torch.linspace(on.warm + distance, len(x), PLACES).long().tolist()
    starts = sorted({end - distance for end in ends})
    say(f"{bundle.name}: {len(x):,} steps through the network")
    observation = observe(network.lstm, x, on.warm, on.kept, starts, on.features)
    say(f"gradients of {bundle.name} over {distance} steps, then of the fresh networks")
    windows = torch.stack([x[a : a + distance] for a in starts], 1).double()
    windows = windows.repeat_interleave(DIRECTIONS, 1)
    trained, untrained = _gradients(network, windows, observation)
    return Story(
        bundle=bundle,
        subject=on,
        observation=observation,
        tau=time_constants(observation.log_forget),
        units=choose(observation),
        followers=followers(observation, on.names),
        classics=classics(),
        trained=trained,
        untrained=untrained,
    )


def _distance(bundle: Bundle, measured: int) -> int:
    """How far back the gradients of this bundle are followed."""
    affordable = int(WORK / (3 * PLACES * DIRECTIONS * lstm_weights(bundle)))
    return min(DISTANCE, measured // 2, max(LEAST_DISTANCE, affordable))


def _gradients(network: Network, x: Tensor, observation: Observation) -> tuple[Backward, Backward]:
    """x [K, B, I] float64. The trained network starts from the states it had there, the fresh one from 0."""
    lstm = network.lstm
    h, c = (
        torch.cat([state[part] for state in observation.states], 1).double().repeat_interleave(DIRECTIONS, 1)
        for part in (0, 1)
    )
    generator = torch.Generator().manual_seed(SEED)
    sizes = lstm.input_size, lstm.hidden_size, lstm.num_layers
    double = fresh_lstm(*sizes, seed=SEED)
    fresh_state: States = double.zero_state(x.shape[1])
    untrained = of_lstm(double, x, fresh_state, generator)
    double.load_state_dict(lstm.state_dict())
    return of_lstm(double, x, (h, c), generator), untrained
