"""What a user says beside the file: signals, vocabulary, and the commands that the documentation gives."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model import bundle as bundles
from model.commands import main
from model.config import Signal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bring-your-own.md"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own with a series and a text network in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    series = nn.ModuleDict({"rnn": nn.LSTM(2, 8), "out": nn.Linear(8, 1)})
    text = nn.ModuleDict({"embed": nn.Embedding(3, 4), "rnn": nn.LSTM(4, 8), "out": nn.Linear(8, 3)})
    torch.save(series.state_dict(), "plant.pt")
    torch.save(text.state_dict(), "verse.pt")
    return tmp_path


def blocks(language: str) -> list[str]:
    return [part.split("```")[0] for part in PAGE.read_text().split(f"```{language}\n")[1:]]


def test_the_documentations_commands_run(here: Path) -> None:
    (here / "signals.json").write_text(blocks("json")[0])
    (here / "letters.json").write_text('["a", "b", "c"]')
    commands = [
        line for block in blocks("sh") for line in block.splitlines() if line.startswith("cellstate import")
    ]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)[1:]
        if Path(words[1]).suffix == ".pt":
            assert main(words) == 0
    assert bundles.load(here / "bundles" / "verse").spec.vocabulary == "abc"
    heat = Signal("heat", "°C", 20.1, 3.0)
    assert bundles.load(here / "bundles" / "plant").spec.outputs == (heat,)


def test_what_is_not_given_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "plant.pt", "--name", "plant"]) == 0
    spec = bundles.load(Path("bundles/plant")).spec
    assert [s.name for s in (*spec.inputs, *spec.outputs)] == ["x0", "x1", "y0"]
    shown = capsys.readouterr().out
    assert "note: no means and deviations were given" in shown
    assert "note: a state dict tells no activations" in shown


def test_it_can_be_inspected_and_not_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows what it was trained on."""
    assert main(["import", "plant.pt", "--name", "plant", "--version", "7"]) == 0
    assert main(["inspect", "bundles/plant"]) == 0
    assert "cellstate import plant.pt --name plant --version 7" in capsys.readouterr().out
    Path("plant.csv").write_text("x0,x1,y0\n1,2,3\n4,5,6\n")
    assert main(["evaluate", "bundles/plant", "--data", "plant.csv"]) == 2
    assert "does not say how its data was split" in capsys.readouterr().err


def test_help_comes_without_torch() -> None:
    code = "import sys; from model.commands import main\n"
    code += "try: main(['import', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'h5py', 'onnx'} & set(sys.modules)"
    root = Path(bundles.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"inputs": ["a", "b"]}, "0 outputs are named, the network has 1"),
        ({"inputs": ["a"], "outputs": ["c"]}, "1 inputs are named, the network has 2"),
        ({"inputs": ["a", "a"], "outputs": ["c"]}, "the inputs name a signal twice"),
        ({"inputs": ["a", {"name": "b", "std": 0}], "outputs": ["c"]}, "'b' needs a finite mean and a std a"),
        ({"inputs": ["a", {"name": "b", "men": 0}], "outputs": ["c"]}, "a signal has name, unit, mean and s"),
        ({"inputs": ["a", {"name": "b", "mean": "0"}], "outputs": ["c"]}, "mean and std are numbers; this i"),
        ({"inputs": 3, "outputs": ["c"]}, "must hold lists of signals"),
        ([1], "must be an object"),
    ],
)  # fmt: skip
def test_a_file_of_signals_that_cant_be_used(
    signals: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("signals.json").write_text(json.dumps(signals))
    refused("plant.pt --signals signals.json", message, capsys)


@pytest.mark.parametrize(
    ("name", "letters", "message"),
    [
        ("l.json", '{"a": 0, "b": 1, "c": 3}', "must give the characters tokens from 0 on, each once"),
        ("l.json", '["a", "b", "<pad>"]', "token 2 is '<pad>', must be one character"),
        ("l.json", '["a", "b"', "l.json: not JSON"),
        ("l.json", "3", "must be a string, a list of characters, or an object"),
        ("l.txt", "ab", "has 2 characters, 2 of them different; the network has 3"),
        ("l.txt", "aab", "has 3 characters, 2 of them different; the network has 3"),
    ],
)
def test_a_vocabulary_that_cant_be_used(
    name: str, letters: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(letters)
    refused(f"verse.pt --vocabulary {name}", message, capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("plant.pt --unit heat", "--unit must be NAME=..., not 'heat'"),
        ("plant.pt --mean x0=warm", "--mean x0=warm: 'warm' is not a number"),
        ("plant.pt --mean x0=nan", "'x0' needs a finite mean"),
        ("plant.pt --std cold=2", "--std cold=...: there is no such signal; there is ['x0', 'x1', 'y0']"),
        ("plant.pt --inputs a,b,c", "3 inputs are named, the network has 2"),
        ("plant.pt --leads 2", "the head has 1 rows, which are not those of 2 leads"),
        ("plant.pt --residual", "a residual head needs every output among the inputs"),
        ("plant.pt --head rnn2", "--head rnn2: there is no such matrix rnn2.weight; there is ['out']"),
        ("plant.pt --lstm gru", "the state dict has no gru.*"),
        ("plant.pt --key model", "there is no 'model' of --key model; it holds ['out.bias'"),
        ("plant.pt --output y", "--output is for Keras models and ONNX graphs"),
        ("plant.pt --signals gone.json", "gone.json: No such file or directory"),
        ("plant.pt --signals plant.pt --inputs a,b", "names the signals: leave the flags that do so too"),
        ("verse.pt", "an embedding of 3 tokens makes it a text model: name them with --vocabulary FILE"),
        ("verse.pt --vocabulary verse.pt", "verse.pt: not UTF-8 text"),
        ("plant.pt --vocabulary plant.pt", "the inputs are 2 tokens, the head of 1"),
    ],
)
def test_what_cant_be_done_is_one_line_and_exit_code_2(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(flags, message, capsys)


def test_a_place_that_cant_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file")
    assert main(["import", "plant.pt", "--name", "x", "--out", "taken"]) == 2
    assert "taken: File exists" in capsys.readouterr().err


def refused(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", *flags.split(), "--name", "x"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("bundles").exists()
