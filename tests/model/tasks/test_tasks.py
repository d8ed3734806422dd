"""The long-memory tasks: every sequence's answer is found again from the sequence alone."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.errors import TaskError
from model.tasks import reber
from model.tasks.catalogue import TASKS, make
from model.tasks.copying import BLANK, DELIMITER, ITEMS
from model.tasks.order import SYMBOLS
from model.tasks.task import Batch, Task
from model.train.task_options import TaskOptions

COUNT = 300


def draw(name: str, length: int, seed: int = 0, count: int = COUNT) -> tuple[Task, Batch]:
    task = make(name, length)
    return task, task.draw(np.random.default_rng(seed), count)


def symbols(batch: Batch, row: int) -> list[int]:
    """A sequence of one-hot symbols, up to its end."""
    x = batch.x[: int(batch.lengths[row]), row]
    assert torch.equal(x.sum(-1), torch.ones(len(x)))
    return x.argmax(-1).tolist()


def perfect(task: Task, batch: Batch) -> Tensor:
    """Outputs that are right: the target as it is, or as logits if they go through a softmax."""
    if batch.allowed is not None:
        return batch.allowed
    return batch.target if task.outputs[0].unit == "" else 50 * batch.target


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_draws_the_same_sequences(name: str) -> None:
    (_, a), (_, b), (_, c) = (draw(name, 30, seed) for seed in (1, 1, 2))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.target, b.target)
    assert a.x.shape != c.x.shape or not torch.equal(a.x, c.x)


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answer_is_right_and_another_is_wrong(name: str) -> None:
    task, batch = draw(name, 30)
    y = perfect(task, batch)
    assert task.wrong(y, batch).tolist() == [0.0] * COUNT
    shifted = y.roll(1, dims=-1) if y.shape[1] > 1 else y + 0.05
    assert task.wrong(shifted, batch).mean() > 0.5
    assert task.loss(y, batch) < task.loss(shifted, batch)


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_is_whole(name: str) -> None:
    task, batch = draw(name, 30)
    assert batch.x.shape == (int(batch.lengths.max()), COUNT, len(task.inputs))
    assert batch.target.shape == (len(batch.step), len(task.outputs))
    assert (batch.step < batch.lengths[batch.row]).all()
    weights = torch.zeros(COUNT).index_add(0, batch.row, batch.weight)
    assert torch.allclose(weights, torch.ones(COUNT), atol=1e-5)
    beyond = torch.arange(len(batch.x))[:, None] >= batch.lengths
    assert not batch.x[beyond].any()


@pytest.mark.parametrize(("name", "low", "neutral"), [("adding", -1, 0.0), ("multiplication", 0, 1.0)])
def test_two_marked_numbers_are_added_or_multiplied(name: str, low: float, neutral: float) -> None:
    _, batch = draw(name, 50, count=2000)
    firsts = 0
    for row in range(2000):
        x = batch.x[: int(batch.lengths[row]), row].double().numpy()
        marked = np.flatnonzero(x[:, 1] == 1)
        assert x[0, 1] == x[-1, 1] == -1
        numbers = [*x[marked, 0], neutral][:2]  # a first pair that is marked shows it not
        firsts += len(marked) == 1
        wanted = 0.5 + sum(numbers) / 4 if name == "adding" else numbers[0] * numbers[1]
        assert batch.target[row].item() == pytest.approx(wanted, abs=1e-6)
        assert marked.min() < 10 or len(marked) == 1
        assert marked.max() < 25
        assert (np.abs(x[:, 0]) <= 1).all()
        assert (x[:, 0] >= low).all()
    assert set(batch.lengths.tolist()) == set(range(50, 56))
    assert 0 < firsts < 400


@pytest.mark.parametrize(("name", "count"), [("order-2", 2), ("order-3", 3)])
def test_the_class_is_the_order_of_the_symbols(name: str, count: int) -> None:
    task, batch = draw(name, 100)
    for row in range(COUNT):
        text = "".join(SYMBOLS[k] for k in symbols(batch, row))
        assert re.fullmatch("E[abcdXY]+B", text)
        assert 100 <= len(text) <= 110
        places = [k for k, symbol in enumerate(text) if symbol in "XY"]
        spans = {2: [(10, 20), (50, 60)], 3: [(10, 20), (33, 43), (66, 76)]}[count]
        assert all(a <= place <= b for place, (a, b) in zip(places, spans, strict=True))
        label = task.outputs[int(batch.target[row].argmax())].name
        assert label == "class_" + "".join(text[k] for k in places)
    assert len(set(batch.target.argmax(-1).tolist())) == 2**count


def test_2a_repeats_its_first_symbol_at_the_end() -> None:
    task, batch = draw("lag-2a", 6)
    names = [signal.name.removeprefix("next_") for signal in task.outputs]
    rows = set()
    for row in range(COUNT):
        seen = [names[k] for k in symbols(batch, row)]
        says = [names[int(k)] for k in batch.target[batch.row == row].argmax(-1)]
        assert seen[1:] == says[:-1]
        assert says[-1] == seen[0]
        rows.add(" ".join(seen))
    assert rows == {"x a1 a2 a3 a4 a5", "y a1 a2 a3 a4 a5"}


def test_2c_asks_for_its_second_symbol_after_the_trigger() -> None:
    task, batch = draw("lag-2c", 40)
    names = [signal.name.removeprefix("symbol_") for signal in task.inputs]
    for row in range(COUNT):
        seen = [names[k] for k in symbols(batch, row)]
        assert (seen[0], seen[-1]) == ("b", "e")
        assert all(name.startswith("a") for name in seen[2:-1])
        assert len(seen) >= 43
        assert task.outputs[int(batch.target[row].argmax())].name == f"next_{seen[1]}"
    assert batch.lengths.float().mean().item() == pytest.approx(43 + 9, abs=2)
    assert int(batch.lengths.min()) == 43


def test_copying_shows_ten_symbols_and_asks_for_them_after_the_gap() -> None:
    task, batch = draw("copying", 15, count=20)
    for row in range(20):
        seen = symbols(batch, row)
        says = batch.target[batch.row == row].argmax(-1).tolist()
        assert seen[ITEMS:] == [BLANK] * 14 + [DELIMITER] + [BLANK] * 10
        assert says == [BLANK] * 25 + seen[:ITEMS]
        assert max(seen[:ITEMS]) < BLANK
    y = 50 * batch.target
    y[-1] = y[-1].roll(1)  # the tenth symbol of the last sequence
    assert task.wrong(y, batch).tolist() == pytest.approx([0.0] * 19 + [0.1])


def test_a_rebers_string_is_of_the_grammar_and_its_legal_symbols_are_the_grammars() -> None:
    inner = "B(TS*X|PT*V)"  # the grammar's first half; the whole as an automaton, apart from the module's
    edges = {("0", "B"): "1", ("1", "T"): "2", ("1", "P"): "3", ("2", "S"): "2", ("2", "X"): "4",
             ("3", "T"): "3", ("3", "V"): "5", ("4", "X"): "3", ("4", "S"): "6", ("5", "P"): "4",
             ("5", "V"): "6", ("6", "E"): "7"}  # fmt: skip
    generator = np.random.default_rng(0)
    for _ in range(COUNT):
        text, legal = reber.string(generator)
        assert re.match(f"B[TP]{inner}", text)
        assert text[1] == text[-2]
        assert text[-1] == "E"
        assert len(legal) == len(text) - 1
        state = "0"
        for symbol, allowed in zip(text[2:-2], legal[1:-2], strict=True):
            assert set(allowed) == {s for (a, s) in edges if a == state}
            state = edges[state, symbol]
        assert state == "7"
        assert (legal[0], legal[-2], legal[-1]) == ("TP", text[1], "E")


def test_rebers_training_and_test_strings_are_apart() -> None:
    task = reber.EmbeddedReber(seed=3)
    texts = [text for text, _ in task.strings]
    assert len(set(texts)) == 2 * reber.STRINGS
    test = task.test(np.random.default_rng(0), 2 * reber.STRINGS)
    assert test.lengths.tolist() == [len(text) - 1 for text in texts]
    trained = task.draw(np.random.default_rng(0), 2000)
    assert set(trained.lengths.tolist()) <= {len(text) - 1 for text in texts[: reber.STRINGS]}
    assert reber.EmbeddedReber(seed=4).strings != task.strings


def test_a_legal_symbol_that_is_less_active_than_another_is_an_error() -> None:
    task, batch = draw("reber", 1, count=5)
    assert batch.allowed is not None
    y = batch.allowed.clone()
    assert task.wrong(y, batch).tolist() == [0.0] * 5
    place = int((batch.row == 2).nonzero()[0])
    y[place] += 2 * (1 - batch.allowed[place]) * torch.eye(7)[int(batch.allowed[place].argmin())]
    assert task.wrong(y, batch).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(("name", "length"), [("adding", 19), ("copying", 0), ("lag-2a", 1)])
def test_a_length_that_is_too_short_is_refused(name: str, length: int) -> None:
    with pytest.raises(TaskError, match=f"{name}: length must be from"):
        make(name, length)


def test_a_task_that_there_is_not_is_answered_with_those_there_are() -> None:
    with pytest.raises(TaskError, match="no task 'sorting'; there are reber, lag-2a"):
        make("sorting", 10)


@pytest.mark.parametrize("name", ["adding", "order-2", "order-3", "lag-2c", "copying"])
def test_inputs_and_outputs_are_the_same_at_every_length(name: str) -> None:
    tasks = [make(name, length) for length in (20, 50, 1000)]
    assert all((a.inputs, a.outputs) == (b.inputs, b.outputs) for a, b in pairwise(tasks))


def test_the_page_names_every_task_and_every_flag() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "long-memory.md").read_text()
    for name in TASKS:
        assert f"`{name}`" in page
    for field in fields(TaskOptions):
        assert f"`--{field.name.replace('_', '-')}`" in page
