"""The same LSTM in ONNX Runtime: float32, and int8 as its dynamic quantisation makes it.

onnxruntime and onnx are optional: `installed` says whether they are there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.lstm import StackedLSTM

Array = NDArray[np.float32]
OPSET, IR = 17, 9  # old enough for every onnxruntime of the last years


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def graph(lstm: StackedLSTM) -> Any:
    """One step as an onnx.ModelProto: x [1, B, I] and each layer's h{k}, c{k} [1, B, H] to h{k}_next and
    c{k}_next, layers chained."""
    from onnx import TensorProto, checker, helper, numpy_helper

    H = lstm.hidden_size

    def value(name: str, size: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "B", size])

    nodes, weights, inputs, outputs = [], [], [value("x", lstm.input_size)], []
    layer_in = "x"
    for k in range(lstm.num_layers):
        w_ih, w_hh, bias = (_iofc(tensor.detach().float().cpu().numpy()) for tensor in lstm.layer(k))
        both = np.concatenate((bias, np.zeros_like(bias)))  # ONNX has two biases, which it adds
        for name, array in ((f"W{k}", w_ih), (f"R{k}", w_hh), (f"b{k}", both)):
            weights.append(numpy_helper.from_array(array[None], name))
        inputs += [value(f"h{k}", H), value(f"c{k}", H)]
        outputs += [value(f"h{k}_next", H), value(f"c{k}_next", H)]
        given = [layer_in, f"W{k}", f"R{k}", f"b{k}", "", f"h{k}", f"c{k}"]
        nodes.append(helper.make_node("LSTM", given, ["", f"h{k}_next", f"c{k}_next"], hidden_size=H))
        layer_in = f"h{k}_next"
    model = helper.make_model(
        helper.make_graph(nodes, "lstm", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    checker.check_model(model)
    return model


def _iofc(rows: Array) -> Array:
    """Rows of the gates i, f, g, o in the order of ONNX: i, o, f, c, where c is our g."""
    i, f, g, o = np.split(rows, 4)
    return np.concatenate((i, o, f, g))


def session(model: Any, threads: int, *, int8: bool = False) -> Any:
    """An onnxruntime.InferenceSession of a graph, which does not spin while it waits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    data = _quantised(model) if int8 else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _quantised(model: Any) -> bytes:
    """The graph with int8 weights, activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as directory, _no_advice():
        path = Path(directory) / "int8.onnx"
        quantize_dynamic(model, str(path), weight_type=QuantType.QInt8)
        return path.read_bytes()


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Without the quantiser's advice, which it logs by the root logger: shapes need no inference here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class Stepped:
    """A session of ONNX Runtime that carries its state from step to step, in memory of its own.

    bound: by IOBinding, between two sets of buffers in turn; else by plain `run`, whose outputs are the next
    step's inputs.
    """

    def __init__(self, of: Any, x: Array, layers: int, hidden: int, *, bound: bool) -> None:
        """x [B, I]: the inputs of every step."""
        self.of, self.x, self.bound = of, np.ascontiguousarray(x[None]), bound
        self.names = [f"{part}{k}" for k in range(layers) for part in "hc"]
        self.outputs = [f"{name}_next" for name in self.names]
        self.shape = (1, len(x), hidden)
        self.reset()

    def reset(self) -> None:
        self.feeds = {"x": self.x} | {name: np.zeros(self.shape, np.float32) for name in self.names}
        if self.bound:
            self.buffers = [[np.zeros(self.shape, np.float32) for _ in self.names] for _ in range(2)]
            self.turns = [self._binding(*self.buffers), self._binding(*reversed(self.buffers))]

    def _binding(self, before: list[Array], after: list[Array]) -> Any:
        from onnxruntime import OrtValue

        binding = self.of.io_binding()
        binding.bind_ortvalue_input("x", OrtValue.ortvalue_from_numpy(self.x))
        for name, h_or_c in zip(self.names, before, strict=True):
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(h_or_c))
        for name, h_or_c in zip(self.outputs, after, strict=True):
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(h_or_c))
        return binding

    def step(self) -> None:
        if self.bound:
            self.of.run_with_iobinding(self.turns[0])
            self.turns.reverse()
            self.buffers.reverse()
            return
        after = self.of.run(self.outputs, self.feeds)
        self.feeds.update(zip(self.names, after, strict=True))

    def state(self) -> Array:
        """h and c, [2, layers, B, hidden]."""
        values = self.buffers[0] if self.bound else [self.feeds[name] for name in self.names]
        flat = np.concatenate(values)  # h0, c0, h1, c1, ...
        return np.stack((flat[0::2], flat[1::2]))
