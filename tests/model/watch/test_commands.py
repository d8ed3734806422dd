"""`train watch`, `watch`, and `evaluate` of a watch bundle, from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from model import bundle as bundles
from model.commands import main
from model.errors import BundleMalformed
from model.watch.board import evaluate, halves
from model.watch.nab import read
from tests.model.watch.making import make_series, make_watch_bundle

TINY = ("--hidden", "4", "--batches", "2", "--streams", "3", "--rows", "40", "--window", "16")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a benchmark of four streams, two of them without a window."""
    monkeypatch.chdir(tmp_path)
    windows, root = {}, tmp_path / "nab"
    for k, name in enumerate(("one/a.csv", "one/b.csv", "two/a.csv", "two/b.csv")):
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"2020-01-{1 + t // 24:02} {t % 24:02}:00:00,{v}" for t, v in enumerate(make_series(200, k))]
        path.write_text("\n".join(("timestamp,value", *rows)) + "\n")
        edges = [[rows[95].split(",")[0], rows[114].split(",")[0]]]
        windows[name] = edges if k % 2 else []
    costs = {"tpWeight": 1.0, "fnWeight": 1.0, "fpWeight": 0.11, "tnWeight": 1.0}
    files = {
        "labels/combined_windows.json": windows,
        "config/profiles.json": {"standard": {"CostMatrix": costs}},
        "results/final_results.json": {"other": {"standard": 40.0}},
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return tmp_path


def test_what_is_trained_is_measured_and_measured_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "watch", "--name", "mine", "--data", "nab", *TINY]) == 0
    bundle = bundles.load(here / "bundles" / "mine")
    assert bundle.quality["streams"] == 4
    assert bundle.spec.inputs[0].name == "value"
    capsys.readouterr()
    assert main(["evaluate", "bundles/mine", "--data", "nab"]) == 0
    shown = capsys.readouterr().out
    assert "mine (this bundle)" in shown
    assert "every figure is the manifest's" in shown
    path = here / "bundles" / "mine" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["quality"]["table"]["all"]["standard"] += 1
    path.write_text(json.dumps(manifest))
    assert main(["evaluate", "bundles/mine", "--data", "nab"]) == 1
    assert "all.standard: measured" in capsys.readouterr().err
    assert main(["inspect", "bundles/mine"]) == 0
    assert "expected, low, high, score, likelihood" in capsys.readouterr().out


def test_the_manifests_command_makes_the_same_weights_again(here: Path) -> None:
    assert main(["train", "watch", "--name", "mine", "--description", "a b", *TINY]) == 0
    first = bundles.load(here / "bundles" / "mine")
    assert main([*shlex.split(first.training["command"])[1:], "--out", "again"]) == 0
    assert bundles.load(here / "again").digest == first.digest
    assert main(["train", "watch", "--name", "mine", *TINY, "--seed", "1", "--out", "other"]) == 0
    assert bundles.load(here / "other").digest != first.digest


def test_a_column_is_watched_row_by_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundles.save(make_watch_bundle(), here / "bundle")
    command = ["watch", "nab/data/one/a.csv", "--bundle", "bundle"]
    assert main([*command, "--all"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "row,value,foreseen,from,to,score,likelihood"
    assert len(lines) == 201
    assert main(command) == 0
    alarms = [int(line.split(",")[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert 100 in alarms  # where the level changes
    assert f"{len(alarms)} alarms in 200 rows" in shown.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["watch", "nab/data/one/a.csv", "--bundle", "bundle", "--column", "x"], "no column 'x'"),
        (["watch", "nowhere.csv", "--bundle", "bundle"], "nowhere.csv"),
        (["evaluate", "bundle", "--data", "nowhere"], "combined_windows.json"),
        (["evaluate", "bundle"], "name them with --data"),
        (["train", "watch", "--name", "A B"], "name must match"),
        (["explain", "bundle"], "watch model"),
        (["train", "watch", "--name", "a", "--batches", "0"], "batches must be at least"),
    ],
)
def test_what_is_wrong_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    bundles.save(make_watch_bundle(), here / "bundle")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_rules_are_the_manifests_and_wrong_ones_are_refused(here: Path) -> None:
    bundle = bundles.save(make_watch_bundle(), here / "bundle")
    assert bundle.spec.rules == make_watch_bundle().spec.rules
    path = here / "bundle" / "manifest.json"
    for rules in (None, {"hold": 0}, {"holt": 5}):
        manifest = json.loads(path.read_text())
        manifest["rules"] = rules
        path.write_text(json.dumps(manifest))
        with pytest.raises(BundleMalformed):
            bundles.load(here / "bundle")


def test_the_halves_are_apart_and_every_directory_is_in_both(here: Path) -> None:
    streams = read(here / "nab").streams
    chosen, others = halves(streams)
    assert sorted(chosen + others) == list(range(4))
    assert {streams[n].directory for n in chosen} == {streams[n].directory for n in others} == {"one", "two"}


def test_the_figures_of_a_bundle_are_of_its_likelihoods(here: Path) -> None:
    figures = evaluate(make_watch_bundle(), here / "nab")
    assert set(figures["table"]) == {"all", "chosen by", "held out", "at 0.5", "without LSTM", "threshold"}
    assert figures["table"]["all"]["standard"] >= figures["table"]["at 0.5"]["standard"]
    assert sum(row["windows"] for row in figures["directories"].values()) == figures["windows"] == 2
    assert np.isfinite(figures["table"]["all"]["standard"])
