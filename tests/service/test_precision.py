"""`cellstate evaluate --precision`: the figures of the engine beside those of the float32 network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import bundle as bundles
from model.bundle import Bundle
from model.config import ModelSpec
from model.evaluate import compare, figures
from model.evaluate import evaluate as evaluate_network
from model.streaming import CHUNK
from service import precision
from service.cli import main
from service.engine.cpu_runner import CpuRunner
from tests.model.making import make_bundle, make_network, make_prepared, make_spec

CPU = torch.device("cpu")
CLOSE = 1e-4  # of a figure: float32 sums in two orders
ROWS = 2 * CHUNK + 100  # more than two chunks


def series(directory: Path) -> tuple[Bundle, Path]:
    path = directory / "waves.csv"
    rows = (f"{math.sin(0.3 * k):.5f},{k % 7 + 0.25 * (k % 3)}\n" for k in range(ROWS))
    path.write_text("s0,s1\n" + "".join(rows))
    return _trained(make_spec(hidden=12, leads=3, residual=True)), path


def text(directory: Path) -> tuple[Bundle, Path]:
    path = directory / "verse.txt"
    path.write_text(("abc\nab\nb" * ROWS)[:ROWS])
    return _trained(make_spec("text", hidden=12)), path


def _trained(spec: ModelSpec) -> Bundle:
    split = {"train": ROWS // 2, "validation": 0, "test": ROWS - ROWS // 2}
    return replace(make_bundle(spec), training={"split": split}, quality={"season": 7})


@pytest.mark.parametrize("make", [series, text])
@pytest.mark.parametrize("streams", [1, 3])
def test_in_float32_the_engines_figures_are_the_networks(make: Any, streams: int, tmp_path: Path) -> None:
    bundle, path = make(tmp_path)
    told = precision.evaluate(bundle, path, ["fp32"], CPU, streams)
    network, _ = evaluate_network(bundle, path, CPU, streams)
    assert told["network"] == network
    assert dict(figures(told["fp32"]))
    assert compare(network, told["fp32"], CLOSE) == []
    assert told["fp32"]["state"].endswith(", fp32")


@pytest.mark.parametrize("task", ["series", "text"])
def test_the_state_goes_from_chunk_to_chunk_and_a_new_stream_begins_with_zeros(task: str) -> None:
    spec = make_spec(task, hidden=12)
    network = make_network(spec)
    x = make_prepared(spec, 30, 2)
    served = precision.Served(make_network(spec), "fp32", CPU, 2)
    for _ in range(2):
        with torch.no_grad():
            whole, _ = network(x)
        first, state = served(x[:20], None)
        last, _ = served(x[20:], state)
        torch.testing.assert_close(torch.cat((first, last)), whole, atol=1e-5, rtol=1e-5)


def test_the_figures_are_the_runners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A runner that forgets a little more is worse, and a tolerance notices."""
    bundle, path = series(tmp_path)
    bundles.save(bundle, tmp_path / "b")
    flags = ["evaluate", str(tmp_path / "b"), "--data", str(path), "--precision", "fp32"]
    assert main([*flags, "--tolerance", "0.001"]) == 0
    as_it_is = CpuRunner.tops
    monkeypatch.setattr(CpuRunner, "tops", lambda self, batch: 0.5 * as_it_is(self, batch))
    assert main(flags) == 0
    assert "model.mse_1" in capsys.readouterr().out
    assert main([*flags, "--tolerance", "0.001"]) == 1
    assert "model.mse_1: fp32 " in capsys.readouterr().err


@pytest.mark.parametrize("make", [series, text])
def test_all_precisions_stand_side_by_side(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, path = make(tmp_path)
    bundles.save(bundle, tmp_path / "b")
    assert main(["evaluate", str(tmp_path / "b"), "--data", str(path), "--precision", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["network", "fp32", "bf16", "int8"]
    names = [line.split()[0] for line in lines[4:]]
    assert names[0] == ("model.mse_1" if make is series else "model.nats_per_character")
    assert not [name for name in names if name.startswith(("persistence", "seasonal", "frequencies"))]
    for line in lines[4:]:
        network, *served = line.split()[1:]
        for value, difference in zip(served[::2], served[1::2], strict=True):
            assert float(value) == pytest.approx(float(network), rel=0.1)
            assert difference.endswith("%")


def test_without_a_precision_it_is_the_models_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, path = series(tmp_path)
    quality, _ = evaluate_network(bundle, path, CPU)
    bundles.save(replace(bundle, quality=quality), tmp_path / "b")
    assert main(["evaluate", str(tmp_path / "b"), "--data", str(path)]) == 0
    assert "every figure is the manifest's, within 0.001 of it" in capsys.readouterr().out


def test_a_bundle_that_is_not_there_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "/nowhere", "--data", "x.csv", "--precision", "fp32"]) == 2
    assert capsys.readouterr().err.startswith("cellstate: /nowhere/manifest.json")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "/nowhere", "--data", "x.csv", "--precision", "fp8"])
    assert ended.value.code == 2
