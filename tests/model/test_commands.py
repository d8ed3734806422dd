"""train, evaluate and inspect as a user types them."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from model import bundle as bundles
from model.calendar import Calendar
from model.commands import main

FLAGS = ["--epochs", "3", "--window", "16", "--streams", "4", "--hidden", "8", "--warmup", "5"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own with a series and a text in it."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{900 * k},{math.sin(k * 0.3):.6f},{20 + k % 7}\n" for k in range(400))
    (tmp_path / "plant.csv").write_text("time,flow,heat\n" + rows)
    (tmp_path / "verse.txt").write_text("to be or not to be\n" * 60)
    return tmp_path


def train_series(*more: str) -> int:
    unit = ["--unit", "heat=°C"]
    return main(
        ["train", "series", "--csv", "plant.csv", "--name", "plant", "--leads", "4", *unit, *FLAGS, *more]
    )


def train_text(*more: str) -> int:
    return main(["train", "text", "--file", "verse.txt", "--name", "verse", *FLAGS, *more])


def test_a_series_from_training_to_evaluation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_series("--season", "7", "--residual", "--dtype", "float16") == 0
    bundle = bundles.load(here / "bundles" / "plant")
    assert [(s.name, s.unit) for s in bundle.spec.outputs] == [("flow", ""), ("heat", "°C")]
    assert bundle.training["split"] == {"train": 280, "validation": 40, "test": 80}
    assert set(bundle.quality["table"]) == {"model", "persistence", "seasonal"}
    assert (here / "runs" / "plant" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (here / "runs" / "plant" / "checkpoint.json").exists()
    shown = capsys.readouterr()
    assert "epoch 3/3" in shown.err
    assert "model.mse_4" in shown.out
    assert main(["evaluate", "bundles/plant", "--data", "plant.csv"]) == 0
    assert "every figure is the manifest's" in capsys.readouterr().out


def test_a_memory_with_quantiles_from_training_to_evaluation(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = ["--memory", "--rank", "3", "--season", "7", "--quantiles", "0.1,0.9", "--past", "20"]
    assert train_series(*memory, "--hidden", "40") == 0
    bundle = bundles.load(here / "bundles" / "plant")
    assert bundle.spec.architecture.quantiles == (0.1, 0.9)
    assert {"quantile_0.1", "quantile_0.9", "interval"} < set(bundle.quality["table"])
    assert "before the first epoch" in capsys.readouterr().err
    assert main(["evaluate", "bundles/plant", "--data", "plant.csv"]) == 0
    assert main([*shlex.split(bundle.training["command"])[1:], "--out", "again", "--run", "runs/again"]) == 0
    assert bundles.load(here / "again").digest == bundle.digest
    assert train_series(*memory, "--hidden", "40", "--resume") == 0
    assert bundles.load(here / "bundles" / "plant").digest == bundle.digest


def test_a_memory_needs_no_epochs_and_what_it_needs_is_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_series("--memory", "--rank", "3", "--hidden", "40", "--epochs", "0") == 0
    for flags, why in (
        (["--epochs", "0"], "without a memory nothing is fitted"),
        (["--memory", "--hidden", "40"], "memory needs a rank"),
        (["--memory", "--rank", "3"], "one layer of at least 24 units"),
        (
            ["--memory", "--rank", "3", "--outputs", "flow", "--inputs", "heat"],
            "every output among the inputs",
        ),
        (["--rank", "9"], "architecture.rank must be"),
    ):
        assert train_series(*flags) == 2
        assert why in capsys.readouterr().err


def test_a_text_from_training_to_evaluation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_text("--out", "mine", "--layers", "1") == 0
    assert bundles.load(here / "mine").spec.vocabulary == "\n benort"
    assert main(["evaluate", "mine", "--data", "verse.txt"]) == 0
    shown = capsys.readouterr().out
    assert "model.nats_per_character" in shown
    assert "frequencies.accuracy" in shown


def test_the_manifests_command_makes_the_same_weights_again(here: Path) -> None:
    assert train_series("--seed", "5", "--dropout", "0.3", "--out", "first", "--run", "runs/first") == 0
    first = bundles.load(here / "first")
    command = shlex.split(first.training["command"])
    assert command[:2] == ["cellstate", "train"]
    assert main([*command[1:], "--out", "again", "--run", "runs/again"]) == 0
    again = bundles.load(here / "again")
    assert again.digest == first.digest
    assert again.training["command"] == first.training["command"]
    assert main([*command[1:], "--seed", "6", "--out", "other", "--run", "runs/other"]) == 0
    assert bundles.load(here / "other").digest != first.digest


def test_the_manifest_tells_where_the_weights_come_from_and_no_path(here: Path) -> None:
    assert (
        main(
            [
                "train",
                "text",
                "--file",
                str(here / "verse.txt"),
                "--name",
                "v",
                "--description",
                "a b",
                *FLAGS,
            ]
        )
        == 0
    )
    manifest = (here / "bundles" / "v" / "manifest.json").read_text()
    assert str(here) not in manifest
    training = json.loads(manifest)["training"]
    assert "--file verse.txt" in training["command"]
    assert "--description 'a b'" in training["command"]
    assert training["data"]["file"] == "verse.txt"
    assert len(training["data"]["sha256"]) == 64
    assert {"seed", "torch", "epochs", "seconds", "split", "options"} <= set(training)


def test_a_calendar_from_training_to_evaluation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calendar = ["--calendar", "day,week", "--noise", "0.1"]
    assert train_series(*calendar) == 0
    bundle = bundles.load(here / "bundles" / "plant")
    assert bundle.spec.calendar == Calendar(("day", "week"), 900.0)
    assert [(s.name, s.unit) for s in bundle.spec.inputs][2:] == [("time", "s since 1970-01-01")]
    assert bundle.spec.inputs[2].mean == pytest.approx(900 * 279 / 2)
    assert bundle.spec.architecture.input_size == 6
    assert bundle.spec.closes_loop
    assert main(["evaluate", "bundles/plant", "--data", "plant.csv"]) == 0
    assert main([*shlex.split(bundle.training["command"])[1:], "--out", "again", "--run", "runs/again"]) == 0
    assert bundles.load(here / "again").digest == bundle.digest
    assert main(["inspect", "bundles/plant"]) == 0
    assert "calendar     day, week of time; 900 s a step" in capsys.readouterr().out
    assert train_series("--calendar", "day,year", "--noise", "0.1", "--resume") == 2
    assert "another calendar" in capsys.readouterr().err


def test_a_memory_with_a_calendar_remembers_the_signals_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--memory", "--rank", "3", "--quantiles", "0.1,0.9", "--calendar", "day"]
    assert train_series(*both, "--hidden", "30") == 0
    weights = bundles.load(here / "bundles" / "plant").weights["lstm.weight_ih_l0"].view(4, 30, 4)
    assert not weights[:, :24, 2:].any()
    assert weights[:, 24:, 2:].all()
    assert main(["evaluate", "bundles/plant", "--data", "plant.csv"]) == 0
    for more in (["--hidden", "24"], ["--hidden", "30", "--epochs", "0"]):
        assert train_series(*both, *more) == 2
        assert "beside a memory it needs more than its 24 units, and an epoch" in capsys.readouterr().err


def test_a_file_may_have_gaps_and_every_row_its_own_time(here: Path) -> None:
    lines = (here / "plant.csv").read_text().splitlines()
    (here / "plant.csv").write_text("\n".join(line for k, line in enumerate(lines) if k % 50 != 49))
    assert train_series("--calendar", "day") == 2
    assert train_series("--calendar", "day", "--allow-gaps") == 0
    assert bundles.load(here / "bundles" / "plant").spec.calendar == Calendar(("day",), 900.0)
    assert main(["evaluate", "bundles/plant", "--data", "plant.csv"]) == 0


def test_resume_goes_on_and_changes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_text() == 0
    digest = bundles.load(here / "bundles" / "verse").digest
    assert train_text("--resume") == 0
    assert "resumed after epoch 3" in capsys.readouterr().err
    assert bundles.load(here / "bundles" / "verse").digest == digest


def test_resume_wants_the_same_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_text() == 0
    (here / "verse.txt").write_text("to be or not to bee\n" * 60)
    assert train_text("--resume") == 2
    assert "another data" in capsys.readouterr().err


def test_a_figure_that_is_not_true_fails_the_evaluation(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_text() == 0
    path = here / "bundles" / "verse" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["quality"]["table"]["model"]["nats_per_character"] *= 0.99
    path.write_text(json.dumps(manifest))
    assert main(["evaluate", "bundles/verse", "--data", "verse.txt"]) == 1
    assert "model.nats_per_character: measured" in capsys.readouterr().err
    assert main(["evaluate", "bundles/verse", "--data", "verse.txt", "--tolerance", "0.02"]) == 0


def test_another_file_is_pointed_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_text() == 0
    (here / "verse.txt").write_text("not to be or to be\n" * 60)
    assert main(["evaluate", "bundles/verse", "--data", "verse.txt"]) == 1
    assert "not the file" in capsys.readouterr().err


def test_inspect_tells_what_a_bundle_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_series() == 0
    assert train_text() == 0
    capsys.readouterr()
    assert main(["inspect", "bundles/plant"]) == 0
    shown = capsys.readouterr().out
    bundle = bundles.load(here / "bundles" / "plant")
    for expected in (
        "plant  version 1  (series)", "1 layer of 8", f"{bundle.spec.architecture.parameters:,} parameters",
        "4 steps ahead", "heat", "°C", bundle.digest, "mse_4", "persistence", "cellstate train series",
    ):  # fmt: skip
        assert expected in shown
    assert main(["inspect", "bundles/verse"]) == 0
    assert "vocabulary   8 characters: '\\n benort'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("inspect nowhere", "cellstate: nowhere/manifest.json: No such file or directory"),
        ("evaluate nowhere --data plant.csv", "cellstate: nowhere/manifest.json"),
        ("train series --csv gone.csv --name x", "cellstate: gone.csv: No such file"),
        ("train series --csv plant.csv --name x --outputs cold", "no column 'cold'"),
        ("train series --csv plant.csv --name x --unit heat", "--unit must be COLUMN=UNIT, not 'heat'"),
        ("train series --csv plant.csv --name x --unit cold=K", "a unit is given for 'cold'"),
        ("train series --csv plant.csv --name x --inputs flow --outputs heat --residual", "residual head"),
        ("train series --csv plant.csv --name x --split 9999,10", "needs 10009 rows, the file has 400"),
        ("train series --csv plant.csv --name x --leads 0", "leads must be a whole number"),
        ("train series --csv plant.csv --name x --calendar day,hour", "features must be a list of some of"),
        ("train series --csv plant.csv --name x --calendar day,day", "and each once"),
        ("train series --csv plant.csv --name x --season -1", "season must be at least 0"),
        ("train text --file verse.txt --name x --hidden 0", "hidden_size must be a whole number"),
        ("train text --file verse.txt --name X!", "name must match"),
        ("train text --file verse.txt --name x --dropout 2", "dropout must be from 0 to 0.95"),
        ("train text --file verse.txt --name x --device cuda:99", "device 'cuda:99' can't be used"),
        ("train text --file verse.txt --name x --device toaster", "device 'toaster' can't be used"),
        ("train text --file verse.txt --name x --resume", "nothing to resume"),
    ],
)
def test_what_cant_be_done_is_one_line_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (here / "bundles").exists()


def test_a_reader_that_closes_early_is_no_error() -> None:
    command = [
        sys.executable,
        "-m",
        "model.commands",
        "inspect",
        str(Path(bundles.__file__).parent / "bundles" / "ett"),
    ]
    with subprocess.Popen(
        command,
        cwd=Path(bundles.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("split", ["a,b", "", "0.9;0.1"])
def test_a_split_that_is_no_numbers_is_a_wrong_flag(split: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_text("--split", split)
    assert "--split" in capsys.readouterr().err
