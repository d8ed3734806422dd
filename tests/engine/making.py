"""Small engines, their jobs, and the float64 oracle that runs beside them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.calendar import UNIT, Calendar
from model.config import Architecture, ModelSpec, Signal
from model.network import Network, Scaler
from model.reference import Reference
from service.engine.engine import Engine
from service.engine.host_pool import HostPool
from service.engine.jobs import Job, Phase, Prepared, Rollout, StateHandle

#: Engine against reference, normalised values and log-probabilities: float32 rounds at 6e-8, a step sums some
#: dozens of products, and a state of bounded gates forgets its errors.
TOLERANCE = 1e-5

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]
VOCABULARY = "\n abcdefg"


def make_spec(
    task: str = "series",
    *,
    inputs: int = 3,
    hidden: int = 16,
    layers: int = 2,
    leads: int = 4,
    residual: bool = False,
    rank: int = 0,
    quantiles: tuple[float, ...] = (),
    calendar: tuple[str, ...] = (),
) -> ModelSpec:
    """Series: outputs are the inputs in another order and on another scale, so that a mix-up shows. calendar:
    of a time behind these inputs, in hours."""
    if task == "text":
        arch = Architecture("text", inputs, hidden, layers, len(VOCABULARY))
        return ModelSpec(arch, vocabulary=VOCABULARY)
    signals = [Signal(f"s{k}", "V", mean=10.0 * k, std=1.0 + k) for k in range(inputs)]
    # a residual head adds the normalised input to the output: there the scales are the same
    outputs = signals if residual else [Signal(s.name, s.unit, s.mean + 0.5, s.std * 1.25) for s in signals]
    outputs = [*outputs[1:], outputs[0]]
    spread = 2 if quantiles else 0
    reads = inputs + 2 * len(calendar)
    arch = Architecture("series", reads, hidden, layers, inputs, leads, residual, rank, quantiles, spread)
    if not calendar:
        return ModelSpec(arch, tuple(signals), tuple(outputs))
    signals.append(Signal("time", UNIT, 1.5e9, 1e6))
    return ModelSpec(arch, tuple(signals), tuple(outputs), calendar=Calendar(calendar, 3600.0))


def make_network(spec: ModelSpec, seed: int = 0) -> Network:
    """A network with weights large enough that the state matters."""
    torch.manual_seed(seed)
    network = Network(spec).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "weight" in name:
                parameter.mul_(2.0)
            if name == "spread.offsets":
                parameter.copy_(torch.randn(parameter.shape).sort(0).values)
    return network


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_engine(
    spec: ModelSpec | None = None,
    *,
    slots: int = 16,
    max_batch: int = 8,
    quantum: int = 4,
    clock: Clock | None = None,
    device: torch.device = CPU,
) -> Engine:
    engine = Engine(
        make_network(spec or make_spec()),
        slots=slots,
        max_batch=max_batch,
        quantum=quantum,
        device=device,
        clock=clock or Clock(),
    )
    arch = engine.runner.arch
    pinned = device.type == "cuda"
    # blocks so small that tests cross from one to the next
    engine.host = HostPool(arch.num_layers, arch.hidden_size, pinned=pinned, block_rows=4)
    return engine


def make_inputs(spec: ModelSpec, steps: int, seed: int = 1) -> Prepared:
    """Prepared steps [steps, I] or [steps]."""
    rng = np.random.default_rng(seed)
    if spec.architecture.task == "text":
        return rng.integers(0, spec.architecture.output_size, steps)
    return rng.standard_normal((steps, spec.architecture.input_size)).astype(np.float32)


def make_job(
    engine: Engine,
    steps: int = 1,
    state: StateHandle | None = None,
    *,
    seed: int = 1,
    rollout: Rollout | None = None,
    trace: bool = False,
) -> Job:
    return Job(make_inputs(engine.runner.network.spec, steps, seed), state, rollout=rollout, trace=trace)


def bad_job(state: StateHandle | None = None, steps: int = 1) -> Job:
    """A job that the runner can't run, nor others with it: its rows are wider than any model's here."""
    return Job(np.zeros((steps, 99), np.float32), state)


def tick(engine: Engine) -> list[Job]:
    """A tick, after which everything is accounted for."""
    ended = engine.tick()
    engine.check_integrity()
    return ended


def finish(engine: Engine) -> list[Job]:
    """Ticks until nothing is left to run; commits what is DONE. Returns the jobs in the order they ended."""
    ended: list[Job] = []
    while engine.has_work:
        newly = tick(engine)
        assert newly or engine.last_tick.batch, "the engine has work and makes no progress"
        for job in newly:
            if job.phase is Phase.DONE:
                engine.commit(job)
        engine.check_integrity()
        ended += newly
    return ended


def run(engine: Engine, *jobs: Job) -> list[Job]:
    """Submits and finishes."""
    for job in jobs:
        engine.submit(job)
    return finish(engine)


class Oracle:
    """The float64 reference of one sequence, in the engine's terms."""

    def __init__(self, network: Network) -> None:
        weights = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
        self.spec = network.spec
        self.reference = Reference(network.spec, weights)
        self.head: NDArray[np.float64] = np.zeros(0)

    def copy(self) -> Oracle:
        """The same place in the sequence; either goes on alone."""
        other = copy.copy(self)
        other.reference = copy.copy(self.reference)
        other.reference.h, other.reference.c = self.reference.h.copy(), self.reference.c.copy()
        return other

    @property
    def state(self) -> NDArray[np.float64]:
        """[2, layers, hidden]."""
        return np.stack((self.reference.h, self.reference.c))

    def run(self, inputs: Sequence[NDArray[np.generic]] | Prepared) -> NDArray[np.float64]:
        """The next step's prediction after each step, normalised; the newest head stays in `head`."""
        rows = []
        for row in inputs:
            self.head = self.reference.step(row)
            rows.append(self.head[0])
        return np.array(rows)

    def forecast(self, horizon: int) -> NDArray[np.float64]:
        """From the newest head on, closed loop by the signals' names, on a copy; normalised."""
        twin, leads = self.copy(), [self.head]
        while sum(map(len, leads)) < horizon:
            for prediction in leads[-1]:
                by_name = {
                    s.name: y * s.std + s.mean for s, y in zip(self.spec.outputs, prediction, strict=True)
                }
                twin.run([np.array([(by_name[s.name] - s.mean) / s.std for s in self.spec.inputs])])
            leads.append(twin.head)
        return np.concatenate(leads)[:horizon]

    @property
    def quantiles(self) -> NDArray[np.float64]:
        """Of the newest head."""
        return self.reference.quantiles(self.head)

    def likeliest(self, length: int) -> list[int]:
        """Greedy text from the newest head on, on a copy."""
        twin, tokens = self.copy(), [int(self.head[0].argmax())]
        while len(tokens) < length:
            twin.run(np.array(tokens[-1:]))
            tokens.append(int(twin.head[0].argmax()))
        return tokens


def normalised(engine: Engine, outputs: NDArray[np.floating]) -> NDArray[np.floating]:
    """Outputs of a job as the reference gives them."""
    spec = engine.runner.network.spec
    if spec.architecture.task == "text":
        return outputs
    scaler = Scaler(spec)
    return np.asarray((outputs - scaler.output_mean) / scaler.output_std)


def assert_outputs(
    engine: Engine, job: Job, expected: NDArray[np.float64], tolerance: float = TOLERANCE
) -> None:
    """The job's outputs are the reference's."""
    assert job.result.shape == expected.shape
    np.testing.assert_allclose(normalised(engine, job.result), expected, atol=tolerance, rtol=0)


def assert_state(engine: Engine, state: StateHandle, oracle: Oracle, tolerance: float = TOLERANCE) -> None:
    """The state is the reference's."""
    np.testing.assert_allclose(engine.read(state), oracle.state, atol=tolerance, rtol=0)
