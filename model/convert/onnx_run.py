"""An ONNX graph run as it is, on random input, to compare the conversion with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from model.convert.foreign import Array, Probe
from model.convert.onnx_file import MOVING, Graph, Way, attributes, fixed_shape
from model.errors import ConversionError

#: The steps and sequences of a run, if the graph leaves them free
STEPS, BATCH = 17, 3


class Runner:
    """Runs a graph: with onnxruntime if it is there, else with onnx's own reference. by: which of them.

    states: by the names of the graph's inputs that an LSTM's state begins with, h or c [H] to begin with. It
    is the same for all layers, for a graph may take theirs as one tensor.
    """

    def __init__(self, graph: Graph, found: Way) -> None:
        self.graph, self.found = graph, found
        self.layers = [node for node, _ in found.nodes if node.op_type == "LSTM"]
        self.states: dict[str, Array] = {}
        for node in self.layers:
            units = np.arange(_hidden(graph, node))
            for name, start in zip(node.input[5:7], (0.5 * np.cos(units), np.sin(units)), strict=False):
                if given := _input(graph, name):
                    self.states[given] = start
        self.session: Any  # of either, with run(names, feeds)
        self.session, self.by = self._session()

    def _session(self) -> tuple[Any, str]:
        model = _free(self.graph.model)
        try:
            import onnxruntime
        except ImportError:
            onnxruntime = None
        if onnxruntime is None or any(attributes(node).get("layout") for node in self.layers):
            from onnx.reference import ReferenceEvaluator

            return ReferenceEvaluator(model), "onnx.reference"  # onnxruntime has no batch-first LSTM
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        providers = ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ConversionError(f"{self.graph.path}: onnxruntime can't run it: {reason}") from error
        return session, "onnxruntime"

    def probes(self, tokens: int | None, mean: Array, std: Array) -> Sequence[Probe]:
        """Runs with the input's axes read in each way that the graph takes: with its own sizes if these have
        several steps, else with others, which most graphs take whatever sizes are written in them. tokens:
        how many there are, None for features of this mean and deviation [I]. Raises ConversionError."""
        shape = fixed_shape(self.graph.inputs[self.found.source])
        readings = _readings(len(shape), tokens is None)
        own = [(axes, *_own(shape, axes)) for axes in readings]
        reason = "its input has no axis of steps"
        for trial in (
            [(axes, T, B) for axes, T, B in own if T > 1],
            [(axes, STEPS, BATCH if "B" in axes else 1) for axes in readings],
            own,
        ):
            probes = []
            for axes, T, B in trial:
                x = _random(T, B, tokens, mean, std)
                try:
                    probes.append(Probe(x, self._run(_arranged(x, axes), T, B), self._state()))
                except Exception as error:  # noqa: BLE001 - the graph takes this reading or it doesn't
                    reason = (str(error) or repr(error)).splitlines()[0]
            if probes:
                return probes
        raise ConversionError(f"{self.graph.path}: the graph can't be run on random input: {reason}")

    def _run(self, x: Array, steps: int, batch: int) -> Array:
        """The output for this input: beside it the graph gets states, and the number of steps where it
        counts."""
        import onnx

        feeds: dict[str, Any] = {}
        for name, value in self.graph.inputs.items():
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = [n or batch for n in fixed_shape(value)]
            if len(shape) == 3:
                shape[1] = batch  # of a state: [layers, batch, hidden]
            if name == self.found.source:
                feeds[name] = x.astype(kind)
            elif name in self.states:
                feeds[name] = np.broadcast_to(self.states[name].astype(kind), shape).copy()
            else:
                feeds[name] = np.full(shape, steps if np.issubdtype(kind, np.integer) else 0, kind)
        return np.asarray(self.session.run([self.found.output], feeds)[0]).astype(np.float64)

    def _state(self) -> tuple[tuple[Array, Array], ...]:
        """What the layers begin with in a run."""
        if not self.states:
            return ()
        state = []
        for node in self.layers:
            H = _hidden(self.graph, node)
            given = [_input(self.graph, name) for name in [*node.input[5:7], "", ""][:2]]
            h, c = (self.states[name] if name else np.zeros(H) for name in given)
            state.append((h, c))
        return tuple(state)


def _hidden(graph: Graph, node: Any) -> int:
    recurrence = graph.constant(node.input[2])
    return 1 if recurrence is None else int(recurrence.shape[-1])


def _input(graph: Graph, name: str) -> str:
    """The graph's input that a tensor is a part of, "" if it isn't."""
    while name and name not in graph.inputs:
        node = graph.makers.get(name)
        name = node.input[0] if node is not None and node.op_type in MOVING else ""
    return name


def _free(model: Any) -> Any:
    """The model without the sizes that its inputs, outputs and inner tensors are said to have."""
    free = type(model)()
    free.CopyFrom(model)
    for value in [*free.graph.input, *free.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del free.graph.value_info[:]
    return free


def _random(T: int, B: int, tokens: int | None, mean: Array, std: Array) -> Array:
    """Features [T, B, I], as float32 has them, or tokens [T, B]."""
    generator = np.random.default_rng(0)
    if tokens is not None:
        return generator.integers(0, tokens, (T, B)).astype(np.float64)
    x = generator.standard_normal((T, B, len(mean))) * std + mean
    return x.astype(np.float32).astype(np.float64)


def _arranged(x: Array, axes: str) -> Array:
    """x [T, B, I] or [T, B] with its axes as these letters say; a letter that is missing has size 1."""
    letters = "TBI"[: x.ndim]
    order = [letters.index(a) for a in axes if a != "1"]
    moved = x.transpose(*order, *(k for k in range(x.ndim) if k not in order))
    sizes = iter(moved.shape)
    return moved.reshape([1 if a == "1" else next(sizes) for a in axes])


def _readings(axes: int, has_features: bool) -> list[str]:
    """What an input's axes may mean, as letters: time, batch, features, 1 for none of them."""
    letters = "TBI" if has_features else "TB"
    if axes < len(letters):
        return ["TI" if has_features else "T"][: 1 if axes == len(letters) - 1 else 0]
    spare = "1" * (axes - len(letters))
    found = {"".join(p) for p in permutations(letters + spare)}
    return sorted(r for r in found if not has_features or r.rstrip("1").endswith("I"))


def _own(shape: list[int | None], axes: str) -> tuple[int, int]:
    """T and B as the graph's input has them, 1 where it has no such axis."""
    sizes = dict(zip(axes, shape, strict=True))
    return sizes.get("T", 1) or STEPS, sizes.get("B", 1) or BATCH
