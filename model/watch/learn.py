"""Training on synthetic series: the network learns to expect the next change of a series it has never
seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import Architecture, ModelSpec, Signal
from model.errors import TrainingError
from model.network import Network
from model.watch import mixture, scale
from model.watch.plan import Plan
from model.watch.rules import INPUTS, OUTPUTS, READS, SAYS, Rules
from model.watch.synthetic import series


@dataclass(frozen=True)
class Learnt:
    """loss: nats a step on `VALIDATION` series of another seed. seconds: of processor time."""

    weights: dict[str, Tensor]
    loss: float
    seconds: float


#: Series that the loss is measured on, and the seed they are of
VALIDATION, VALIDATION_SEED = 128, 10_007


def spec_of(hidden: int, layers: int, rules: Rules) -> ModelSpec:
    """A watch model of that size."""
    return ModelSpec(
        Architecture("watch", READS, hidden, layers, SAYS),
        tuple(Signal(name) for name in INPUTS),
        tuple(Signal(name) for name in OUTPUTS),
        rules=rules,
    )


def batch_of(rng: np.random.Generator, streams: int, rows: int) -> tuple[Tensor, Tensor]:
    """Inputs [rows - 1, streams, READS] of new series, and the change that follows each [rows - 1,
    streams]."""
    values = np.stack([series(rng, rows) for _ in range(streams)], 1)
    inputs, changes = scale.together(values)
    return torch.from_numpy(inputs).float(), torch.from_numpy(changes).float()


def learn(plan: Plan, tell: Callable[[str], None]) -> Learnt:
    """Trains from scratch. The same plan, machine, thread count and torch give the same weights. Raises
    TrainingError if the loss is not finite."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    network = Network(spec_of(plan.hidden, plan.layers, Rules()).network)
    mean = {k: v.detach().clone() for k, v in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=0.01)
    windows = math.ceil((plan.rows - 1) / plan.window)
    last = plan.batches * windows
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda n: min((n + 1) / 50, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(n / last, 1))))
    )
    began, recent = time.process_time(), 0.0
    for batch in range(plan.batches):
        losses = []
        for loss in _windows(network, *batch_of(rng, plan.streams, plan.rows), plan.window):
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            rates.step()
            losses.append(float(loss.detach()))
            for name, value in network.state_dict().items():
                mean[name].lerp_(value, 1 - min(plan.average, (batch * windows + len(losses)) / 1000))
        recent = sum(losses) / len(losses)
        if not math.isfinite(recent):
            raise TrainingError(f"the loss is {recent} in batch {batch}: lower the rate")
        if batch % 10 == 9:
            tell(f"batch {batch + 1}/{plan.batches}  loss {recent:.4f}  {time.process_time() - began:.0f} s")
    network.load_state_dict(mean)
    return Learnt(mean, validate(network, plan), time.process_time() - began)


def _windows(network: Network, inputs: Tensor, changes: Tensor, window: int) -> Iterator[Tensor]:
    """The mean loss of each window of a batch, the state carried from one to the next."""
    state = None
    for t in range(0, len(inputs), window):
        y, state = network(inputs[t : t + window], state)
        state = (state[0].detach(), state[1].detach())
        yield -mixture.log_density(y[:, :, 0], changes[t : t + window]).mean()


@torch.no_grad()
def validate(network: Network, plan: Plan) -> float:
    """Nats a step on series that were not learnt from."""
    network.eval()
    rng = np.random.default_rng(VALIDATION_SEED)
    losses = list(_windows(network, *batch_of(rng, VALIDATION, plan.rows), plan.rows))
    network.train()
    return float(losses[0])
