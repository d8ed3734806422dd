"""`cellstate bench engine`: what it measures is checked here, never how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.network import Network
from model.reference import Reference
from service.bench import onnx_lstm, products
from service.bench.chunks import Sequences, lengths_of
from service.bench.options import PRECISIONS, Wrong
from service.bench.rounds import Contestant, Timing, interleave, quiet
from service.bench.subject import (
    CHECKED_STEPS,
    Ours,
    OurTick,
    TorchStep,
    check,
    expected,
    make_network,
    torch_lstm,
)
from service.bench.tables import machine_lines
from service.bench.ticks import Ticks
from service.cli import main
from service.engine import runners
from service.engine.engine import Engine
from service.engine.runner import Runner

CPU = torch.device("cpu")
TINY = ["bench", "engine", "--hidden", "16", "--batch", "1,3", "--inputs", "4", "--seconds", "0.01"]
needs_onnx = pytest.mark.skipif(not onnx_lstm.installed(), reason="needs onnx and onnxruntime")


@pytest.fixture
def network() -> Network:
    return make_network(16, 2, 4)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((3, 4), np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of one tiny run with everything in it."""
    path = tmp_path_factory.mktemp("bench") / "report.json"
    flags = ["--chunks", "--sessions", "1,3", "--steps", "12", "--profile", "--json", str(path)]
    assert main([*TINY, *flags]) == 0
    return json.loads(path.read_text())


# --- the command ----------------------------------------------------------------------------------------


def test_the_report_says_what_it_was_measured_on(report: dict[str, Any]) -> None:
    machine = report["machine"]
    assert machine["processor"]
    assert machine["cores"] >= 1
    assert machine["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert len(machine["load_average"]) == len(machine["load_average_after"]) == 3
    assert report["options"]["hidden"] == [16]
    assert "others had the core for 50% of the time" in machine_lines(machine | {"core_share": 0.5})
    assert "others" not in machine_lines(machine | {"core_share": 0.99})


def test_every_batch_and_precision_has_a_row_with_every_contestant(report: dict[str, Any]) -> None:
    rows = report["step"]
    assert [(row["batch"], row["precision"]) for row in rows] == [(b, p) for b in (1, 3) for p in PRECISIONS]
    for row in rows:
        assert row["session_steps_per_s"] == pytest.approx(1e6 * row["batch"] / row["ours_us"])
        assert row["ours_us"] == row["timings"][f"ours {row['precision']}"]["us"] > 0
        assert row["gemm"].startswith(row["precision"])
        assert row["ours_to_gemm"] == pytest.approx(row["ours_us"] / row["gemm_us"])
        assert {"ours fp32", "ours bf16", "ours int8", "nn.LSTM"} <= set(row["off"]) <= set(row["timings"])
        if onnx_lstm.installed():
            rival = row["onnx_int8_us" if row["precision"] == "int8" else "onnx_us"]
            assert row["ours_to_onnx"] == pytest.approx(row["ours_us"] / rival)
            assert {"onnx fp32 run", "onnx fp32 bound", "onnx int8 run", "onnx int8 bound"} <= set(row["off"])


def test_chunks_have_a_row_for_each_kind_of_lengths(report: dict[str, Any]) -> None:
    seen = [(row["sessions"], row["lengths"], row["precision"]) for row in report["chunks"]]
    kinds = [(1, "equal"), (3, "equal"), (3, "ragged")]
    assert seen == [(n, kind, p) for n, kind in kinds for p in PRECISIONS]
    for row in report["chunks"]:
        assert row["ours_us_per_step"] > 0
        assert (row["ours_waste"] is None) == (row["lengths"] == "equal")
    assert report["chunks"][0]["steps"] == 12


def test_ticks_have_a_row_for_one_session_and_for_many(report: dict[str, Any]) -> None:
    assert [(row["precision"], row["batch"]) for row in report["ticks"]] == [
        (p, b) for p in PRECISIONS for b in (1, 256)
    ]
    for row in report["ticks"]:
        assert 0 < row["outside_run_us"] < row["tick_us"]
        assert row["outside_run_us_per_session"] == pytest.approx(row["outside_run_us"] / row["batch"])


def test_json_on_stdout_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--precision", "fp32", "--json", "-"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert set(told) == {"machine", "options", "step"}
    assert "kernel/GEMM" in shown.err
    assert "measuring" not in shown.err  # nobody looks: no line of progress


def test_without_onnxruntime_the_columns_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx_lstm, "installed", lambda: False)
    path = tmp_path / "report.json"
    assert main([*TINY, "--precision", "fp32", "--json", str(path)]) == 0
    assert capsys.readouterr().out.count("not installed") == 4
    rows = json.loads(path.read_text())["step"]
    assert [(row["onnx_us"], row["onnx_int8_us"], row["ours_to_onnx"]) for row in rows] == [(None,) * 3] * 2


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--hidden big", "--hidden: 'big' is not a whole number"),
        ("--batch 1,0", "--batch: 0 is not from 1 to 16384"),
        ("--batch 1,,2", "--batch: '' is not a whole number"),
        ("--layers 99999", "--layers: 99999 is not from"),
        ("--precision fp32,fp8", "--precision: 'fp8' is not one of fp32, bf16, int8"),
        ("--seconds nan", "--seconds: nan is not above 0"),
        ("--seconds soon", "--seconds: 'soon' is not a number"),
        ("--device toaster", "--device: 'toaster' is not cpu, cuda or cuda:N"),
        ("--device cuda:99", "--device: device 'cuda:99' can't be used"),
        ("--json /nowhere/report.json", "--json: /nowhere/report.json can't be written"),
    ],
)
def test_a_bad_option_is_one_line_and_code_2(
    flags: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "engine", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cellstate: {reason}")
    assert len(error.splitlines()) == 1


def test_the_command_line_is_read_without_torch() -> None:
    """`cellstate serve` must answer a signal at once: its process imports nothing heavy."""
    code = "import sys; from service.cli import parser; parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert PRECISIONS == runners.PRECISIONS  # and so it has a copy of its own


# --- what is measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_state_that_is_expected_is_the_references(
    network: Network, x: np.ndarray, precision: str
) -> None:
    wanted = expected(network.lstm, x)
    for b, row in enumerate(x):
        reference = Reference(network.spec, {k: v.numpy() for k, v in network.state_dict().items()})
        for _ in range(CHECKED_STEPS):
            reference.step(row)
        np.testing.assert_allclose(wanted[:, :, b], np.stack((reference.h, reference.c)), atol=1e-12)
    ours = Ours(network, 3, precision, 1, CPU)
    check("ours", OurTick(ours, x), wanted, precision)
    check("nn.LSTM", TorchStep(torch_lstm(network.lstm, CPU), x, CPU), wanted, "fp32")


@needs_onnx
@pytest.mark.parametrize("bound", [False, True])
def test_the_onnx_graph_is_the_reference(network: Network, x: np.ndarray, bound: bool) -> None:
    graph = onnx_lstm.graph(network.lstm)
    wanted = expected(network.lstm, x)
    for int8, precision in ((False, "fp32"), (True, "int8")):
        session = onnx_lstm.session(graph, 1, int8=int8)
        stepped = onnx_lstm.Stepped(session, x, 2, 16, bound=bound)
        for _ in range(2):  # it can be set back
            off = check("onnx", stepped, wanted, precision)
        assert (off > 1e-5) == int8  # it really is quantised


@needs_onnx
def test_a_contestant_with_its_gates_in_another_order_is_noticed(
    network: Network, x: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_lstm, "_iofc", lambda rows: rows)
    session = onnx_lstm.session(onnx_lstm.graph(network.lstm), 1)
    with pytest.raises(Wrong, match="onnx computes something else"):
        check("onnx", onnx_lstm.Stepped(session, x, 2, 16, bound=False), expected(network.lstm, x), "int8")
    assert main(TINY) == 1
    assert capsys.readouterr().err.startswith("cellstate: onnx fp32 run computes something else")


def test_our_ticks_read_one_set_of_rows_and_write_another(network: Network, x: np.ndarray) -> None:
    tick = OurTick(Ours(network, 3, "fp32", 1, CPU), x)
    assert len({*tick.now, *tick.next}) == 6
    assert tick.now != sorted(tick.now)
    before = tick.now
    tick.step()
    assert tick.next is before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bare_products_are_the_layers(
    network: Network, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way gives [B, 4H] of every layer, near the float32 product."""
    seen: dict[str, list[torch.Tensor]] = {}

    def record(calls: list[products.Product]) -> products.Product:
        return lambda: seen.setdefault(str(len(seen)), [call() for call in calls])  # type: ignore[misc]

    monkeypatch.setattr(products, "_all", record)
    assert len(products.products(network.lstm, 3, precision, CPU)) == len(seen) > 0
    for results in seen.values():
        for k, result in enumerate(results):
            w_ih, w_hh, bias = network.lstm.layer(k)
            x = torch.randn(3, w_ih.shape[1] + 16, generator=torch.Generator().manual_seed(k))
            wanted = x @ torch.cat((w_ih, w_hh), 1).T
            if result.dtype == torch.int32:  # the sums alone, without their scales and the bias
                assert torch.corrcoef(torch.stack((result.flatten().float(), wanted.flatten())))[0, 1] > 0.98
            else:
                torch.testing.assert_close(result.float(), wanted + bias, atol=0.05, rtol=0.05)


def test_ragged_lengths_are_always_the_same_and_longest_first() -> None:
    lengths = lengths_of(64, 512)
    assert lengths == lengths_of(64, 512) == sorted(lengths, reverse=True)
    assert 10 <= lengths[-1] < 100 < 400 < lengths[0] <= 500
    assert max(lengths_of(64, 12)) <= 12


def test_other_weights_on_sequences_are_noticed(network: Network) -> None:
    sequences = Sequences([9, 4], 4, CPU)
    lstm = torch_lstm(network.lstm, CPU)
    sequences.check(Ours(network, 2, "fp32", 1, CPU), lstm, "fp32")
    with pytest.raises(Wrong, match="the last state is off"):
        sequences.check(Ours(make_network(16, 2, 4, seed=1), 2, "fp32", 1, CPU), lstm, "fp32")


# --- how it is measured ---------------------------------------------------------------------------------


def test_contestants_take_turns_and_the_slower_one_is_slower() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass

    with quiet(1):
        timings = interleave(
            [Contestant("fast", lambda: order.append("fast")), Contestant("slow", slow)], 0.01
        )
    assert timings["slow"].us > 2000 > timings["fast"].us > 0
    assert timings["fast"].rounds == timings["slow"].rounds >= 5
    turns = [name for n, name in enumerate(order) if n == 0 or order[n - 1] != name]
    assert turns.count("slow") >= 3


def test_a_share_is_of_the_same_rounds() -> None:
    """The machine was half as fast in the second round, for both."""
    assert Timing((10.0, 20.0, 10.0)).share_of(Timing((20.0, 40.0, 5.0))) == 0.5


class Untold:
    """A runner that does not say what its kernels take."""

    def __init__(self, runner: Runner) -> None:
        self.run = runner.run


def test_kernels_are_subtracted_where_the_runner_tells_them(network: Network) -> None:
    engine = Engine(network, slots=16, max_batch=4, quantum=8, device=CPU)
    ticks = Ticks(engine, 2, 4)
    ticks.run(3)
    assert len(ticks.outside_kernels) == 3
    spans = zip(ticks.outside, ticks.outside_kernels, ticks.whole, strict=True)
    assert all(outside < outside_kernels < whole for outside, outside_kernels, whole in spans)
    engine.runner = Untold(engine.runner)  # type: ignore[assignment]
    ticks.forget()
    ticks.run(3)
    assert ticks.outside_kernels == []
    assert engine.resident == 2
    engine.check_integrity()
