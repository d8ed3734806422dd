"""A task's test sequences streamed to a service, one step a message, are answered as the network answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from loadtests import memory
from model.bundle import Bundle
from model.commands import main as train
from model.network import Network
from model.tasks.catalogue import make
from model.tasks.measuring import Trial
from model.tasks.task import Batch
from model.train.task_job import spec_of


def test_what_is_served_is_the_networks_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--hidden", "16", "--learning-rate", "0.01", "--sequences", "60000"]
    assert train(["train", "task", "lag-2a", "--length", "6", *flags]) == 0
    capsys.readouterr()
    assert (
        memory.main(["bundles/lag-2a-6", "--precision", "fp32", "--sequences", "12", "--parallel", "5"]) == 0
    )
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["model", "precision", "sequences"]
    assert line.split()[:4] == ["lag-2a-6", "fp32", "12", "72"]
    assert line.split()[-4:] == ["100.00%", "100.00%", "0", "ok"]
    shutil.copytree("bundles/lag-2a-6", "again")
    assert memory.main(["bundles/lag-2a-6", "again"]) == 2
    assert capsys.readouterr().err == "memory: two bundles have the same name\n"


def test_a_bundle_that_was_trained_on_data_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    ett = Path(memory.__file__).parents[1] / "model" / "bundles" / "ett"
    assert memory.main([str(ett)]) == 2
    assert "was not trained on a task" in capsys.readouterr().err


def row(difference: float, rounding: float, precision: str = "fp32", served: float = 1.0) -> memory.Row:
    return memory.Row("m", precision, 1, 1, 1.0, difference, rounding, served, 1.0, 0.99, 0)


def test_a_sequence_that_is_answered_otherwise_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make("copying", 1)
    spec = spec_of(task, 4)
    trained = {"task": {"name": "copying", "length": 1, "seed": 0}}
    bundle = Bundle("m", "1", spec, Network(spec).state_dict(), "random", training=trained)
    trial = Trial(task, 0)

    async def served(url: str, model: str, batch: Batch, parallel: int) -> list[NDArray[np.float32]]:
        """The network's own answers; but all right in the sequence 2."""
        with torch.no_grad():
            own = bundle.network()(batch.x)[0][:, :, 0]
        at = batch.row == 2
        own[batch.step[at], 2] = batch.target[at]
        return [own[:, row].numpy() for row in range(len(batch))]

    monkeypatch.setattr(memory, "serve", served)
    found = memory.compare("", bundle, trial, "fp32", 8, 1)
    assert found.unlike == 1
    assert found.served > found.own


def test_in_float32_the_outputs_are_held_to_the_networks_whatever_it_amplifies() -> None:
    assert row(9e-4, 1e-6).good
    assert not row(2e-3, 9e-4).good
    assert not row(0.07, 0.08).good
    assert row(0.5, 1e-6, "bf16").good
    assert not row(0.0, 0.0, "bf16", served=0.98).good
