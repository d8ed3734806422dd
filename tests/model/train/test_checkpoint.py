"""A checkpoint comes back whole, or a TrainingError says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.errors import TrainingError
from model.train import checkpoint

TENSORS = {
    "weights/a": torch.randn(3, 2),
    "adam/0/step": torch.tensor(7.0),
    "random/cpu": torch.arange(9, dtype=torch.uint8),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    checkpoint.write(tmp_path, 3, TENSORS, {"epoch": 3, "best": 0.25})
    return tmp_path


def test_it_comes_back_bit_by_bit(written: Path) -> None:
    tensors, facts = checkpoint.read(written)
    assert (facts["epoch"], facts["best"]) == (3, 0.25)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_a_newer_one_takes_its_place(written: Path) -> None:
    checkpoint.write(written, 4, TENSORS, {"epoch": 4})
    assert sorted(p.name for p in written.iterdir()) == ["checkpoint-000004.safetensors", "checkpoint.json"]
    assert checkpoint.read(written)[1]["epoch"] == 4


def test_until_the_facts_are_replaced_the_older_one_counts(written: Path) -> None:
    """A kill between the two files of the next epoch."""
    (written / "checkpoint-000004.safetensors").write_bytes(b"half of i")
    assert checkpoint.read(written)[1]["epoch"] == 3


def test_what_is_wrong_is_said(written: Path) -> None:
    path = written / checkpoint.FACTS
    facts = json.loads(path.read_text())
    for wrong, message in (
        ({**facts, "format": 9}, "not a checkpoint of format 1"),
        ({**facts, "tensors": "../elsewhere"}, "is not a file beside it"),
        ({**facts, "tensors": "gone.safetensors"}, r"gone\.safetensors: No such file"),
        ({**facts, "sha256": "0"}, "is not the file that"),
        ({"format": 1}, "can't be read"),
        ([], "not a checkpoint"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(TrainingError, match=message):
            checkpoint.read(written)
    path.write_text("{")
    with pytest.raises(TrainingError, match="can't be read"):
        checkpoint.read(written)
