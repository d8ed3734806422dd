"""Training learns, is the same for the same seed, stops when it should, and goes on where it was killed."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import Architecture, ModelSpec, Signal
from model.dropout import NONE, Dropout
from model.errors import TrainingError
from model.network import Network
from model.train.options import Options
from model.train.report import Report
from model.train.streams import SeriesData, TextData, TrainingData
from model.train.trainer import Trainer

OPTIONS = Options(
    epochs=4, window=10, streams=4, learning_rate=0.01, warmup=5,
    dropout=0.2, average=0.9, noise=0.05, shift=0.1,
)  # fmt: skip


def make_waves(rows: int = 300) -> Tensor:
    """Two waves, one the other's future: a network with a memory can predict both, [N, 2]."""
    t = torch.arange(rows) * 0.4
    return torch.stack((t.sin(), (t + 1.0).sin()), 1)


def make_trainer(
    options: Options = OPTIONS, directory: Path | None = None, task: str = "series", **facts: Any
) -> Trainer:
    torch.manual_seed(options.seed)
    report = Report(io.StringIO())
    data: TrainingData
    if task == "text":
        network = Network(ModelSpec(Architecture("text", 4, 12, 2, 3), vocabulary="abc"))
        tokens = torch.tensor([0, 1, 2, 1] * 100)
        data = TextData(tokens, range(300), range(300, 400), options)
    else:
        signals = (Signal("a"), Signal("b"))
        network = Network(ModelSpec(Architecture("series", 2, 12, 2, 2, leads=2), signals, signals))
        waves = make_waves()
        data = SeriesData(waves, waves, (0, 1), 2, range(200), range(200, 300), options)
    return Trainer(network, data, options, directory, report, facts)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("task", "start", "end"), [("series", 0.4, 0.02), ("text", 1.0, 0.02)])
def test_it_learns_what_can_be_learnt(task: str, start: float, end: float) -> None:
    """From about the variance, or ln 3, to nearly nothing."""
    trainer = make_trainer(
        Options(epochs=60, window=10, streams=4, learning_rate=0.02, dropout=0.0), task=task
    )
    assert trainer.data.validate(trainer.network) > start
    progress = trainer.fit()
    assert progress.best < end
    assert trainer.data.validate(trainer.network) == pytest.approx(progress.best)


@pytest.mark.parametrize("task", ["series", "text"])
def test_the_seed_decides_everything(task: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = make_trainer(replace(OPTIONS, seed=seed), task=task)
        losses = [entry["train"] for entry in trainer.fit().history]
        runs.append((weights(trainer), losses))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


@pytest.mark.parametrize("task", ["series", "text"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_equals_uninterrupted(tmp_path: Path, task: str, stop_after: int) -> None:
    whole = make_trainer(task=task)
    whole.fit()
    killed = make_trainer(directory=tmp_path, task=task)
    interrupt(killed, stop_after)
    torch.manual_seed(999)  # the random state must come from the checkpoint, not from here
    resumed = make_trainer(directory=tmp_path, task=task)
    torch.rand(7)
    resumed.resume()
    assert resumed.progress.epoch == stop_after
    resumed.fit()
    assert same(weights(resumed), weights(whole))
    for mine, theirs in zip(resumed.progress.history, whole.progress.history, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("schedule", ["plateau", "step", "constant"])
def test_a_schedule_goes_on_where_it_was(tmp_path: Path, schedule: str) -> None:
    options = replace(
        OPTIONS, schedule=schedule, drop=0.5, drop_after=1, chrono=20, clip_by="value", warmup=0
    )
    whole = make_trainer(options)
    rates = [entry["rate"] for entry in whole.fit().history]
    killed = make_trainer(options, tmp_path)
    interrupt(killed, 3)
    resumed = make_trainer(options, tmp_path)
    resumed.resume()
    resumed.fit()
    assert same(weights(resumed), weights(whole))
    if schedule == "step":
        assert rates == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    if schedule == "constant":
        assert rates == [0.01] * 4


class Killed(Exception):
    pass


def interrupt(trainer: Trainer, epochs: int) -> None:
    """Runs a trainer until it has begun the epoch after so many, and drops it there."""
    begin = trainer.report.begin

    def stop(epoch: int, epochs_in_all: int, updates: int) -> None:
        begin(epoch, epochs_in_all, updates)
        if epoch == epochs:
            raise Killed

    trainer.report.begin = stop  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        trainer.fit()


KILLED_RUN = """
import sys
from pathlib import Path
from dataclasses import replace
from tests.model.train.test_trainer import OPTIONS, make_trainer
import torch
torch.set_num_threads(1)
trainer = make_trainer(replace(OPTIONS, epochs=100_000, patience=100_000), Path(sys.argv[1]))
print("started", flush=True)
trainer.fit()
"""


def test_a_kill_at_any_moment_leaves_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    """`kill -9` amid writing: checkpoints are written every few milliseconds here."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not (tmp_path / "checkpoint.json").exists() and process.poll() is None:
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    trainer = make_trainer(replace(OPTIONS, epochs=100_000, patience=100_000), tmp_path)
    trainer.resume()
    assert trainer.progress.epoch >= 1
    assert trainer.progress.update == trainer.progress.epoch * trainer.data.windows


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_kind_of_dropout_resumes_as_if_uninterrupted(tmp_path: Path, precision: str) -> None:
    options = replace(
        OPTIONS, dropout_mask="window", weight_dropout=0.3, symbol_dropout=0.2, precision=precision
    )
    whole = make_trainer(options, task="text")
    whole.fit()
    interrupt(make_trainer(options, tmp_path, "text"), 2)
    resumed = make_trainer(options, tmp_path, "text")
    torch.rand(7)
    resumed.resume()
    resumed.fit()
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    ("change", "dropped"),
    [
        ({}, Dropout(0.2)),
        ({"dropout_mask": "window"}, Dropout(0.2, locked=True)),
        ({"weight_dropout": 0.5}, Dropout(0.2, weights=0.5)),
        ({"symbol_dropout": 0.1}, Dropout(0.2, symbols=0.1)),
    ],
)
def test_what_is_dropped_is_what_the_options_say(change: dict[str, Any], dropped: Dropout) -> None:
    trainer = make_trainer(replace(OPTIONS, epochs=1, **change))
    seen: list[Dropout] = []
    forward = trainer.network.forward

    def spy(x: Tensor, state: Any = None, dropout: Dropout = NONE) -> Any:
        if trainer.network.training:
            seen.append(dropout)
        return forward(x, state, dropout)

    trainer.network.forward = spy  # type: ignore[method-assign]
    trainer.fit()
    assert set(seen) == {dropped}


def test_a_finished_training_resumes_to_its_end(tmp_path: Path) -> None:
    whole = make_trainer(directory=tmp_path)
    whole.fit()
    again = make_trainer(directory=tmp_path)
    again.resume()
    again.fit()
    assert same(weights(again), weights(whole))
    assert again.progress == whole.progress


@pytest.mark.parametrize(
    ("options", "facts", "message"),
    [
        (replace(OPTIONS, dropout=0.3), {}, r"another options: dropout 0\.2, now 0\.3"),
        (replace(OPTIONS, epochs=5, seed=1), {}, r"another options: epochs 4, now 5; seed 0, now 1"),
        (OPTIONS, {"data": "x"}, "another data: None, now 'x'"),
    ],
)
def test_another_trainings_checkpoint_is_refused(
    tmp_path: Path, options: Options, facts: dict[str, Any], message: str
) -> None:
    interrupt(make_trainer(directory=tmp_path), 1)
    with pytest.raises(TrainingError, match=message):
        make_trainer(options, tmp_path, **facts).resume()


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nothing to resume: .*checkpoint\.json"):
        make_trainer(directory=tmp_path / "empty").resume()
    with pytest.raises(TrainingError, match="keeps no checkpoints"):
        make_trainer().resume()


def test_it_stops_when_the_validation_loss_has_stopped_falling() -> None:
    """The validation loss is made to rise after the third epoch; two more are waited for."""
    trainer = make_trainer(replace(OPTIONS, epochs=50, patience=2))
    losses = iter([3.0, 2.0, 1.0, 1.5, 1.0, 0.1])
    kept: list[dict[str, Tensor]] = []

    def validate(network: Network) -> float:
        kept.append({name: t.clone() for name, t in network.state_dict().items()})
        return next(losses)

    trainer.data.validate = validate  # type: ignore[method-assign]
    progress = trainer.fit()
    assert (progress.epoch, progress.best_epoch, progress.best) == (5, 3, 1.0)
    assert same(weights(trainer), kept[2])


def test_a_loss_that_is_not_finite_stops_it() -> None:
    trainer = make_trainer()
    trainer.data.loss = lambda y, target: y.sum() * math.nan  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="the loss is nan at update 0: try a lower learning rate"):
        trainer.fit()


def test_the_state_is_carried_from_window_to_window_and_not_its_gradient() -> None:
    trainer = make_trainer(replace(OPTIONS, epochs=1))
    states: list[tuple[Tensor, Tensor] | None] = []
    results: list[tuple[Tensor, Tensor]] = []
    forward = trainer.network.forward

    def spy(x: Tensor, state: Any = None, dropout: Dropout = NONE) -> Any:
        y, after = forward(x, state, dropout)
        if trainer.network.training:
            states.append(state)
            results.append(after)
        return y, after

    trainer.network.forward = spy  # type: ignore[method-assign]
    trainer.fit()
    assert len(states) == trainer.data.windows > 2
    assert states[0] is None
    for given, (h, c) in zip(states[1:], results, strict=False):
        assert given is not None
        assert torch.equal(given[0], h)
        assert torch.equal(given[1], c)
        assert not given[0].requires_grad
        assert not given[1].requires_grad


def test_the_learning_rate_rises_and_falls() -> None:
    options = Options(learning_rate=1.0, warmup=10, final_rate=0.1)
    rates = [options.rate(k, 100) for k in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert max(rates) == rates[rates.index(max(rates))]
    assert rates.index(max(rates)) == 9
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[100] == pytest.approx(0.1)
    assert Options(learning_rate=0.5, warmup=0).rate(0, 10) == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", -1), ("window", 0), ("streams", 0), ("dropout", 1.0), ("dropout", -0.1),
     ("weight_dropout", 1.0), ("symbol_dropout", -0.1), ("clip", 0.0), ("average", 1.0),
     ("learning_rate", 0.0), ("learning_rate", math.nan), ("seed", -1), ("patience", 0)],
)  # fmt: skip
def test_impossible_options_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(TrainingError, match=f"{name.replace('_', '-')} must be"):
        replace(OPTIONS, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["precision", "loss", "dropout_mask"])
def test_an_unknown_choice_is_refused_by_name(name: str) -> None:
    with pytest.raises(TrainingError, match=f"{name.replace('_', '-')} must be one of"):
        replace(OPTIONS, **{name: "float8"})  # type: ignore[arg-type]


def test_weights_follow_their_running_mean() -> None:
    """With a mean that is kept for ever the best weights differ from the last, and lag behind them."""
    trainer = make_trainer(replace(OPTIONS, average=0.99))
    first = weights(trainer)
    last: dict[str, Tensor] = {}

    def validate(network: Network) -> float:
        last.update({n: p.detach().clone() for n, p in zip(weights(trainer), mean_of(trainer), strict=True)})
        return 1.0 / (1 + trainer.progress.epoch)

    def mean_of(trainer: Trainer) -> list[Tensor]:
        return [trainer.mean[name] for name, _ in trainer.network.named_parameters()]

    trainer.data.validate = validate  # type: ignore[method-assign]
    trainer.fit()
    assert same(weights(trainer), last)
    assert not same(weights(trainer), first)


def test_bfloat16_learns_too() -> None:
    trainer = make_trainer(
        Options(epochs=40, window=10, streams=4, learning_rate=0.02, dropout=0.0, precision="bfloat16")
    )
    assert trainer.fit().best < 0.05
    assert all(tensor.dtype == torch.float32 for tensor in weights(trainer).values())
