"""What `inspect` says of a bundle, for people and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import bundle as bundles
from model.bundle import Bundle
from model.commands import main
from model.inspection import facts, lines
from tests.model.making import make_bundle, make_spec

SHIPPED = Path(bundles.__file__).parent / "bundles"
QUALITY = {
    "part": "test",
    "rows": [5, 9],
    "table": {"model": {"mse_1": 0.5}, "persistence": {"mse_1": 0.7, "x": 1}},
}


def saved(directory: Path, bundle: Bundle, dtype: str = "float32") -> Bundle:
    return bundles.save(bundle, directory, dtype)


def test_the_facts_are_those_of_the_files(tmp_path: Path) -> None:
    bundle = saved(tmp_path, make_bundle(make_spec(inputs=2, hidden=5, layers=2, leads=3)), "float16")
    found = facts(bundle, tmp_path)
    tensors = {t["name"]: t for t in found["tensors"]}
    assert {name: tuple(t["shape"]) for name, t in tensors.items()} == bundle.spec.architecture.shapes()
    assert tensors["lstm.weight_hh_l1"]["bytes"] == 20 * 5 * 2
    assert {t["dtype"] for t in tensors.values()} == {"F16"}
    assert found["state_bytes"] == 2 * 2 * 5 * 4
    assert found["bundle_bytes"] == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert found["architecture"]["parameters"] == bundle.spec.architecture.parameters


def test_the_forget_biases_imply_time_constants(tmp_path: Path) -> None:
    bundle = make_bundle(make_spec(hidden=4, layers=1))
    bias = torch.zeros(16)
    bias[4:8] = torch.tensor([-1e30, 0.0, math.log(9), 1e30])  # never, 1/2, 0.9 and always open
    found = facts(
        saved(tmp_path, replace(bundle, weights={**bundle.weights, "lstm.bias_l0": bias})), tmp_path
    )
    (layer,) = found["forget_bias"]
    assert layer["median"] == pytest.approx((1 / math.log(2) - 1 / math.log(0.9)) / 2, rel=1e-5)
    assert sum(layer["counts"]) == 4
    assert layer["counts"][0] == layer["counts"][-1] == 1
    json.dumps(found, allow_nan=False)


def test_a_figure_that_is_no_number_is_null_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, replace(make_bundle(), quality={"table": {"model": {"mse_1": math.nan}}}))
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["table"]["model"] == {"mse_1": None}


def test_a_bundle_without_figures_and_training_says_so(tmp_path: Path) -> None:
    shown = "\n".join(lines(facts(saved(tmp_path, make_bundle()), tmp_path)))
    assert "quality      not measured" in shown
    assert "training     not known" in shown


def test_the_figures_stand_in_columns(tmp_path: Path) -> None:
    bundle = saved(tmp_path, replace(make_bundle(), quality=QUALITY))
    shown = list(lines(facts(bundle, tmp_path)))
    at = shown.index("quality on the test part, rows 5 to 9")
    assert [line.split() for line in shown[at + 1 : at + 4]] == [
        ["mse_1", "x"],
        ["model", "0.5", "-"],
        ["persistence", "0.7", "1"],
    ]


@pytest.mark.parametrize("name", ["ett", "shakespeare"])
def test_the_shipped_bundles_are_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(SHIPPED / name)]) == 0
    shown = capsys.readouterr().out
    bundle = bundles.load(SHIPPED / name)
    for tensor in bundle.spec.architecture.shapes():
        assert tensor in shown
    assert bundle.digest in shown
    assert bundle.training["command"] in shown
    assert main(["inspect", str(SHIPPED / name), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quality"] == bundle.quality
    assert found["vocabulary"] == bundle.spec.vocabulary
