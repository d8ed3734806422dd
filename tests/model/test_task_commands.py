"""train task, inspect and evaluate as a user types them, on tasks that take seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model import bundle as bundles
from model.commands import main

QUICK = ["--length", "6", "--hidden", "16", "--sequences", "60000", "--learning-rate", "0.01"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*more: str) -> int:
    return main(["train", "task", "lag-2a", *QUICK, *more])


def test_a_task_from_training_to_evaluation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    bundle = bundles.load(here / "bundles" / "lag-2a-6")
    assert bundle.spec.architecture.task == "series"
    assert [s.name for s in bundle.spec.inputs] == [
        f"symbol_{s}" for s in ("a1", "a2", "a3", "a4", "a5", "x", "y")
    ]
    assert bundle.training["task"] == {"name": "lag-2a", "length": 6, "seed": 0}
    assert bundle.training["command"] == f"cellstate train task lag-2a {' '.join(QUICK)}"
    assert bundle.training["sequences"] == bundle.training["curve"][-1]["sequences"]
    assert bundle.quality["table"]["model"] == {"right": 1.0, "sequences_right": 1.0}
    assert (here / "runs" / "lag-2a-6" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "lag-2a-6: solved after" in capsys.readouterr().out
    assert main(["inspect", "bundles/lag-2a-6"]) == 0
    shown = capsys.readouterr().out
    assert "quality on the test part, 10000 sequences" in shown
    assert "sequences_right" in shown
    assert f"curve, last of {len(bundle.training['curve'])}" in shown
    assert main(["evaluate", "bundles/lag-2a-6"]) == 0
    told = capsys.readouterr()
    assert "every figure is the manifest's" in told.out
    assert told.err == ""  # no note that these were other sequences


def test_what_was_not_solved_is_saved_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--sequences", "640", "--name", "raw") == 1
    assert "raw: not solved after 640 sequences" in capsys.readouterr().out
    bundle = bundles.load(here / "bundles" / "raw")
    assert (bundle.training["solved"], bundle.quality["solved"]) == (False, False)


def test_what_was_broken_off_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--sequences", "640", "--name", "broken") == 1
    assert train("--sequences", "640", "--name", "broken", "--resume") == 1
    assert "resumed after 640 sequences from runs/broken" in capsys.readouterr().err


def test_a_plain_network_leaves_a_result_and_no_bundle(here: Path) -> None:
    assert train("--cell", "rnn", "--sequences", "640", "--name", "plain") == 1
    assert not (here / "bundles" / "plain").exists()
    result = json.loads((here / "runs" / "plain" / "result.json").read_text())
    assert (result["options"]["cell"], result["solved"], result["sequences"]) == ("rnn", False, 640)


def test_a_manifest_with_a_task_that_there_is_not(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--sequences", "640") == 1
    path = here / "bundles" / "lag-2a-6" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["training"]["task"]["name"] = "sorting"
    path.write_text(json.dumps(manifest))
    assert main(["evaluate", "bundles/lag-2a-6"]) == 2
    assert "names no task that can be set: no task 'sorting'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("sorting", "no task 'sorting'; there are reber,"),
        ("adding --length 5", "adding: length must be from 20"),
        ("adding --chrono -2", "chrono must be at least -1, not -2"),
        ("adding --name X!", "a model's name must match"),
        ("lag-2a --start 5", "lag-2a: its inputs depend on the length: no curriculum"),
        ("adding --resume", "nothing to resume: runs/adding-100/checkpoint.json: No such file"),
        ("adding --hidden 200000", "architecture.hidden_size must be a whole number"),
    ],
)
def test_a_wrong_flag_is_one_line_and_code_2(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "task", *flags.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"cellstate: {message}")
