"""ONNX graphs as exporters make them, run by onnxruntime, and what the bundle gives beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from tests.model.convert.making import bring, brought, outputs

Array = NDArray[Any]
Node = onnx.NodeProto


class Making:
    """A graph, node by node; each gets the output of the one before it as its first input."""

    def __init__(
        self, kind: int = onnx.TensorProto.FLOAT, shape: Sequence[int | str] = ("b", "t", 3)
    ) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[Node] = []
        self.tensors: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", kind, shape)]
        self.last = "x"

    def constant(self, array: Array) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def drawn(self, *shape: int) -> str:
        return self.constant(self.random.normal(0, 0.5, shape).astype(np.float32))

    def add(self, op: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> Making:
        outputs = outputs or [f"{op}{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, [self.last, *inputs], outputs, **attributes))
        self.last = next(name for name in outputs if name)
        return self

    def lstm(self, I: int, H: int, *more: str, bias: bool = True, **attributes: Any) -> Making:  # noqa: E741
        n = 2 if attributes.get("direction") == "bidirectional" else 1
        B = self.drawn(n, 8 * H) if bias else ""
        return self.add(
            "LSTM", self.drawn(n, 4 * H, I), self.drawn(n, 4 * H, H), B, *more, hidden_size=H, **attributes
        )

    @staticmethod
    def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def save(self, path: str = "net.onnx") -> Path:
        inner = helper.make_graph(self.nodes, "g", self.inputs, [], self.tensors)
        inferred = onnx.shape_inference.infer_shapes(self._model(inner)).graph.value_info
        out = [value for value in inferred if value.name == self.last]
        model = self._model(helper.make_graph(self.nodes, "g", self.inputs, out, self.tensors))
        onnx.save(model, path)
        return Path(path)


def axes(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def stacked(bias: bool = True) -> Making:
    """As tf2onnx writes two Keras layers and a dense one: batch first outside, time first within."""
    g = Making()
    g.add("Transpose", perm=[1, 0, 2]).lstm(3, 6, bias=bias).add("Squeeze", g.constant(axes(1)))
    g.lstm(6, 4, bias=bias).add("Squeeze", g.constant(axes(1))).add("Transpose", perm=[1, 0, 2])
    return g.add("MatMul", g.drawn(4, 2)).add("Add", g.drawn(2))


def ran(path: Path, x: Array) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


X = np.random.default_rng(1).normal(size=(2, 15, 3)).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_two_sizes_and_a_head(bias: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = stacked(bias).save()
    assert bring(path) == 0
    np.testing.assert_allclose(outputs(brought(), X)[:, :, 0], ran(path, X), atol=1e-5, rtol=0)
    assert "gates i, o, f, c put as i, f, g, o" in capsys.readouterr().out


def test_the_last_step_by_y_h_and_gemm() -> None:
    g = Making()
    g.add("Transpose", perm=[1, 0, 2])
    g.lstm(3, 6, outputs=["", "y_h"]).add("Squeeze", g.constant(axes(0)))
    path = g.add("Gemm", g.drawn(4, 6), g.drawn(4), transB=1, alpha=0.5, beta=2.0).save()
    assert bring(path, "--leads", "2") == 0
    np.testing.assert_allclose(outputs(brought(), X)[:, -1].reshape(2, 4), ran(path, X), atol=1e-5, rtol=0)


def test_a_text_model_with_its_softmax() -> None:
    g = Making(onnx.TensorProto.INT64, ("b", "t"))
    g.nodes.append(helper.make_node("Gather", [g.drawn(5, 3), "x"], ["embedded"]))
    g.last = "embedded"
    g.lstm(3, 6, layout=1).add("Squeeze", g.constant(axes(2)))
    path = g.add("MatMul", g.drawn(6, 5)).add("Softmax", axis=-1).save()
    Path("letters.txt").write_text("abcde")
    assert bring(path, "--vocabulary", "letters.txt") == 0
    tokens = np.random.default_rng(1).integers(0, 5, (2, 15))
    # onnxruntime has no batch-first LSTM: the check ran on onnx's own reference, as does this
    from onnx.reference import ReferenceEvaluator

    reference: Any = ReferenceEvaluator(str(path))
    expected = reference.run(None, {"x": tokens})[0]
    np.testing.assert_allclose(np.exp(outputs(brought(), tokens)[:, :, 0]), expected, atol=1e-5, rtol=0)


def test_normalisation_within_the_graph() -> None:
    """On the way in it becomes the bundle's, by the numbers; on the way out it is part of the head."""
    g = Making()
    g.add("Sub", g.constant(np.array([100, 2, -7], np.float32))).add(
        "Div", g.constant(np.array(4, np.float32))
    )
    g.add("Transpose", perm=[1, 0, 2]).lstm(3, 6).add("Squeeze", g.constant(axes(1)))
    g.add("Transpose", perm=[1, 0, 2]).add("MatMul", g.drawn(6, 2))
    path = g.add("Mul", g.constant(np.array(3, np.float32))).add("Add", g.drawn(1, 1, 2)).save()
    assert bring(path) == 0
    raw = (X * 4 + [100, 2, -7]).astype(np.float32)
    np.testing.assert_allclose(outputs(brought(), raw)[:, :, 0], ran(path, raw), atol=1e-5, rtol=0)
    assert [(s.mean, s.std) for s in brought().spec.inputs] == [(100, 4), (2, 4), (-7, 4)]


def test_a_graph_of_one_step_that_takes_its_state() -> None:
    """As for a device: sizes written in, and h and c handed in and out."""
    g = Making(shape=(1, 1, 3))
    for name in ("h", "c"):
        g.inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 1, 6)))
    g.lstm(3, 6, "", "h", "c").add("Reshape", g.constant(axes(1, 6)))
    g.add("MatMul", g.drawn(6, 2))
    path = g.save()
    assert bring(path) == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    h = np.ones((1, 1, 6), np.float32)
    expected = session.run(None, {"x": X[:1, :1], "h": h, "c": h})[0]
    bundle = brought()
    with torch.no_grad():
        state = (torch.ones(1, 1, 6), torch.ones(1, 1, 6))
        ours = bundle.network()(torch.from_numpy(X[:1, :1]), state)[0]
    np.testing.assert_allclose(ours.reshape(1, 2), expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("last", [False, True])
def test_what_torch_exports(last: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(3, 5, 2, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.rnn(x)[0]
            given: torch.Tensor = self.out(y[:, -1] if last else y)
            return given

    torch.manual_seed(0)
    net = Net().eval()
    torch.onnx.export(net, (torch.from_numpy(X),), "net.onnx", dynamo=False, input_names=["x"])
    assert bring("net.onnx") == 0
    with torch.no_grad():
        expected = net(torch.from_numpy(X)).numpy()
    ours = outputs(brought(), X)[:, :, 0]
    np.testing.assert_allclose(ours[:, -1] if last else ours, expected, atol=1e-5, rtol=0)


def test_without_onnxruntime_onnxs_own_reference_runs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert bring(stacked().save()) == 0
    assert "against onnx.reference" in capsys.readouterr().out


def test_without_onnx_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stacked().save()
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(path, "an ONNX file needs onnx: pip install 'cellstate[import]'", capsys)


def one(*more: str, op: str = "", **attributes: Any) -> Making:
    """One layer with these options, and perhaps another operator behind it."""
    g = Making(shape=("t", "b", 3)).lstm(3, 4, *more, **attributes)
    return g.add(op) if op else g


def with_constant(position: int, array: Array) -> Making:
    g = Making(shape=("t", "b", 3))
    inputs = ["", "", "", ""]
    inputs[position] = g.constant(array.astype(np.float32))
    return g.lstm(3, 4, *inputs)


def gru() -> Making:
    g = Making(shape=("t", "b", 3))
    return g.add("GRU", g.drawn(1, 12, 3), g.drawn(1, 12, 4), hidden_size=4)


def added() -> Making:
    g = Making(shape=("t", "b", 3)).lstm(3, 3)
    return g.add("Squeeze", g.constant(axes(1))).add("Add", "x")


def over(tensor: int, array: Array) -> Making:
    g = one()
    g.tensors[tensor].CopyFrom(numpy_helper.from_array(array.astype(np.float32), f"w{tensor}"))
    return g


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (one(direction="reverse"), "node LSTM LSTM0 is reverse: it reads the future, so it can't be stepped"),
        (one(direction="bidirectional"), "node LSTM LSTM0 is bidirectional: it reads the future"),
        (one(clip=3.0), "node LSTM LSTM0 clips at 3, which has no equivalent"),
        (one(input_forget=1), "couples its input and forget gates (input_forget=1): no equivalent"),
        (one(activations=["HardSigmoid", "Tanh", "Tanh"]), "has activations ['hardsigmoid', 'tanh', 'tanh']"),
        (with_constant(3, np.ones((1, 12))), "peepholes (w0) have no equivalent; train without them"),
        (with_constant(1, np.ones((1, 2, 4))), "initial_h (w0) is not zero; a session begins with zeros"),
        (gru(), "there is no LSTM node in it, but GRU: a GRU has three gates; train an LSTM"),
        (one(op="Relu"), "node Relu Relu1: a network here is"),
        (added(), "node Add Add2 reads 2 computed tensors (Squeeze1, x); here each layer reads the one befo"),
        (over(1, np.full((1, 16, 3), np.inf)), "w1 holds a number that is not finite"),
        (over(1, np.zeros((1, 15, 3))), "w1 of node LSTM LSTM0 is [1, 15, 3], must be [1, 16, 3]"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent_is_named(
    graph: Making, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(graph.save(), message, capsys)


def test_a_graph_that_does_something_else_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Two reshapes that mix steps and features look like those of any exporter; the numbers tell."""
    g = Making(shape=(4, 3, 3))
    g.lstm(3, 4).add("Reshape", g.constant(axes(3, 4, 4))).add("Transpose", perm=[1, 0, 2])
    g.lstm(4, 4)
    refused(g.save(), "the outputs differ by", capsys)


@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_a_truncated_file(share: float, capsys: pytest.CaptureFixture[str]) -> None:
    path = stacked().save()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "net.onnx: truncated, damaged or no ONNX file", capsys)


def test_garbage_and_an_output_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.onnx").write_bytes(b"garbage")
    refused(Path("x.onnx"), "x.onnx: truncated, damaged or no ONNX file", capsys)
    refused(stacked().save(), "--output z: there is no such output; there is", capsys, "--output", "z")


def refused(file: Path, message: str, capsys: pytest.CaptureFixture[str], *flags: str) -> None:
    assert bring(file, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("brought").exists()
