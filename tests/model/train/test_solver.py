"""The loop for whole sequences: real gradients, a curriculum, and a resumption that changes nothing."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import TrainingError
from model.network import Network
from model.tasks.catalogue import make
from model.train.plain import PlainNetwork
from model.train.report import Report
from model.train.solver import ROUND, Solver, answers
from model.train.task_job import spec_of
from model.train.task_options import TaskOptions

OPTIONS = TaskOptions(hidden=8, batch=8, sequences=2 * ROUND * 8, warmup=5)


def make_solver(
    options: TaskOptions = OPTIONS, directory: Path | None = None, task: str = "lag-2c", full: int = 10
) -> Solver:
    tasks = [make(task, length) for length in options.lengths(full)]
    torch.manual_seed(options.seed)
    spec = spec_of(tasks[-1], options.hidden)
    network = PlainNetwork(spec) if options.cell == "rnn" else Network(spec)
    return Solver(network, tasks, options, directory, Report(io.StringIO()))


def weights(solver: Solver) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in solver.network.named_parameters()}


def test_the_gradient_of_the_last_answer_reaches_the_first_step_and_is_exact() -> None:
    """Against the cell written out, step after step, in float64: nothing is truncated."""
    task = make("adding", 60)
    torch.manual_seed(0)
    network = Network(spec_of(task, 6)).double()
    batch = task.draw(np.random.default_rng(0), 3)
    x = batch.x.double().requires_grad_()
    (found,) = torch.autograd.grad(task.loss(answers(network, replace(batch, x=x)), batch), x)
    state, tops = network.lstm.zero_state(3), []
    for row in x:
        top, state = network.lstm.step(row, state)
        tops.append(top)
    y = network.head(torch.stack(tops)[batch.step, batch.row]).flatten(1)
    (wanted,) = torch.autograd.grad(task.loss(y, batch), x)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-10)
    assert found[0].abs().max() > 0


@pytest.mark.parametrize(
    ("cell", "anew", "mixed"),
    [("lstm", "rate", 0.0), ("lstm", "nothing", 0.0), ("lstm", "warmup", 0.5), ("rnn", "rate", 0.0)],
)
def test_an_interrupted_training_ends_as_one_that_was_not(
    cell: str, anew: str, mixed: float, tmp_path: Path
) -> None:
    # Every length is passed at once
    options = replace(OPTIONS, cell=cell, anew=anew, mixed=mixed, fade=mixed, start=3, passed=1.0)
    options = replace(options, clip_by="median" if mixed else "norm")
    whole = make_solver(options)
    whole.fit()
    half = make_solver(options, tmp_path)
    half._round()
    half._mastered()
    half._advance()
    half._checkpoint(now=True)
    again = make_solver(options, tmp_path)
    again.resume()
    assert again.progress.sequences == ROUND * 8
    again.fit()
    assert all(
        torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True)
    )
    assert [p["length"] for p in again.progress.passed] == [p["length"] for p in whole.progress.passed]


@pytest.mark.parametrize(("anew", "rate"), [("rate", 1.0), ("nothing", 0.25)])
def test_the_learning_rate_begins_anew_at_a_new_length_or_not(anew: str, rate: float) -> None:
    solver = make_solver(replace(OPTIONS, anew=anew, start=3, warmup=0))
    solver.progress.drops.drops = 2
    solver._advance()
    assert solver._update()[2] == rate * OPTIONS.learning_rate


def test_after_a_warm_up_the_rate_is_what_the_length_leaves_of_it() -> None:
    solver = make_solver(replace(OPTIONS, anew="warmup", fade=0.5, start=3, warmup=4))
    rates = [solver._update()[2] for _ in range(5)]
    solver.progress.drops.drops = 1
    solver._advance()
    rates += [solver._update()[2] for _ in range(5)]
    share = 0.5 * (solver.tasks[0].length / solver.task.length) ** 0.5
    rising = [0.25, 0.5, 0.75, 1.0, 1.0]
    expected = [*rising, *(share * part for part in rising)]
    assert rates == pytest.approx([part * OPTIONS.learning_rate for part in expected])


def test_of_a_mixture_the_full_length_alone_is_judged() -> None:
    solver = make_solver(replace(OPTIONS, mixed=0.5, start=3), full=24)
    solver.progress.stage = 3
    lengths, judged = [], []
    for _ in range(200):
        lengths.append(solver._drawn(np.random.default_rng((0, solver.progress.update))).length)
        judged.append(len(solver._update()[1]))
    assert [count > 0 for count in judged] == [length == 24 for length in lengths]
    assert set(lengths) == set(range(3, 25))
    assert 70 < lengths.count(24) < 130
    solver.progress.stage = 0
    assert solver._drawn(np.random.default_rng(0)).length == 3


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    make_solver(OPTIONS, tmp_path)._checkpoint(now=True)
    with pytest.raises(TrainingError, match="made with another options: hidden 8, now 9"):
        make_solver(replace(OPTIONS, hidden=9), tmp_path).resume()
    with pytest.raises(TrainingError, match="keeps no checkpoints"):
        make_solver().resume()


def test_it_ends_when_the_sequences_are_used_up() -> None:
    solver = make_solver(task="adding", full=30)
    progress = solver.fit()
    assert not progress.solved
    assert progress.sequences == OPTIONS.sequences
    assert [entry["sequences"] for entry in progress.history] == [ROUND * 8, 2 * ROUND * 8]


def test_it_ends_when_the_task_is_solved_and_keeps_weights_that_solve_it() -> None:
    options = TaskOptions(hidden=16, batch=32, sequences=200_000, learning_rate=0.01)
    solver = make_solver(options, task="lag-2a", full=6)
    progress = solver.fit()
    assert progress.solved
    assert progress.sequences < 50_000
    batch = solver.task.draw(np.random.default_rng(9), 100)
    with torch.no_grad():
        assert solver.task.wrong(answers(solver.network, batch), batch).sum() == 0


def test_a_loss_that_is_not_finite_ends_it() -> None:
    solver = make_solver()
    with torch.no_grad():
        solver.network.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at update 0"):
        solver.fit()


@pytest.mark.parametrize(
    ("start", "growth", "full", "lengths"),
    [
        (0, 2.0, 100, [100]),
        (100, 2.0, 100, [100]),
        (300, 2.0, 100, [100]),
        (25, 2.0, 100, [25, 50, 100]),
        (30, 2.0, 100, [30, 60, 100]),
        (30, 2.0, 125, [30, 60, 125]),  # not 30, 60, 120, 125
    ],
)
def test_lengths_grow_to_the_full_one(start: int, growth: float, full: int, lengths: list[int]) -> None:
    assert TaskOptions(start=start, growth=growth).lengths(full) == lengths


def test_an_update_whose_gradient_is_no_number_moves_nothing() -> None:
    solver = make_solver()
    hook = solver.network.head.weight.register_hook
    hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    before = weights(solver)
    solver._update()
    assert all(torch.equal(before[name], p) for name, p in weights(solver).items())
    assert solver.progress.update == 1
