"""An ONNX model on disk, and its graph read backwards from an output to an input, as a chain of layers.

Shapes are moved about on the way (Transpose, Squeeze, Reshape, the choice of a step); what that comes to is
not worked out but tried: the conversion is only good if the graph, run on random input, gives what the bundle
gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ConversionError

#: Operators that move numbers about or leave them as they are, while the model is used
MOVING = ("Identity", "Dropout", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten", "Slice")
REASONS = {
    "GRU": "a GRU has three gates; train an LSTM",
    "RNN": "a plain RNN has no gates; train an LSTM",
    "LayerNormalization": "it depends on the whole vector, so it can't be folded into a weight",
    "Loop": "the recurrence was exported as a loop; import the framework's own file instead",
    "Scan": "the recurrence was exported as a loop; import the framework's own file instead",
    "Attention": "it reads the whole sequence, so it can't be stepped",
}
UNROLLED = "if the recurrence was written out, import the framework's own file instead"
UNKNOWN = "a network here is [Gather from an embedding], LSTM nodes, and MatMul, Gemm, Add with constants"


@dataclass
class Graph:
    """A checked model. `constants`: what its initializers and constant nodes hold, worked out as asked
    for."""

    model: Any
    path: Path
    makers: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor that depends on no input; None for any other."""
        if name in self.constants:
            return self.constants[name]
        node = self.makers.get(name)
        if node is None or node.op_type in ("LSTM", "Shape", "RandomNormal", "RandomUniform"):
            return None
        values = {n: self.constant(n) for n in node.input if n}
        if any(value is None for value in values.values()):
            return None
        from onnx.reference import ReferenceEvaluator

        outputs = ReferenceEvaluator(node).run(None, values)
        self.constants.update(zip(node.output, map(np.asarray, outputs), strict=False))
        return self.constants.get(name)

    def is_zero(self, name: str) -> bool:
        """Whether a tensor holds zeros whatever its shape, or is an input that a fresh sequence has zeros
        for."""
        if not name or name in self.inputs:
            return True
        value = self.constant(name)
        if value is not None:
            return not np.any(value)
        node = self.makers.get(name)
        if node is None:
            return False
        if node.op_type == "ConstantOfShape":
            fill = [np.asarray(_attribute(a).float_data or _array(_attribute(a))) for a in node.attribute]
            return not any(np.any(f) for f in fill)
        if node.op_type == "Concat":
            return all(self.is_zero(n) for n in node.input)
        return node.op_type in (*MOVING, "Expand", "Tile") and self.is_zero(node.input[0])


def load(path: Path) -> Graph:
    """Reads and checks the model. Raises ConversionError."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ConversionError("an ONNX file needs onnx: pip install 'cellstate[import]'") from error
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError, TypeError, RuntimeError) as error:
        told = (str(error) or repr(error)).strip().splitlines()[0]
        raise ConversionError(f"{path}: truncated, damaged or no ONNX file: {told}") from error
    graph = Graph(model, path)
    graph.constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    graph.makers = {name: node for node in model.graph.node for name in node.output if name}
    graph.inputs = {i.name: i for i in model.graph.input if i.name not in graph.constants}
    return graph


@dataclass(frozen=True)
class Way:
    """The nodes between an input and an output of the graph, in the order they run, and the names of both;
    for each node the tensor that comes along the way."""

    source: str
    output: str
    nodes: tuple[tuple[Any, str], ...]


def way(graph: Graph, output: str) -> Way:
    """From `output`, by default the first, back to the input. Raises ConversionError."""
    outputs = [o.name for o in graph.model.graph.output]
    if output and output not in outputs:
        raise ConversionError(f"--output {output}: there is no such output; there is {outputs}")
    if not any(node.op_type == "LSTM" for node in graph.model.graph.node):
        kinds = sorted({node.op_type for node in graph.model.graph.node})
        reason = next((REASONS[kind] for kind in kinds if kind in REASONS), UNROLLED)
        raise ConversionError(f"{graph.path}: there is no LSTM node in it, but {', '.join(kinds)}: {reason}")
    name = output or outputs[0]
    end = name
    nodes: list[tuple[Any, str]] = []
    while name not in graph.inputs:
        node = graph.makers.get(name)
        if node is None or len(nodes) > len(graph.model.graph.node):
            raise ConversionError(f"tensor {name} comes from nowhere")
        if node.op_type == "LSTM" and name in node.output[2:]:
            raise ConversionError(
                f"{name} is the cell state of node {title(node)}, which is not given out here"
            )
        along = _along(graph, node)
        nodes.append((node, along))
        name = along
    return Way(name, end, tuple(nodes[::-1]))


def _along(graph: Graph, node: Any) -> str:
    """The one input of a node that the sequence comes in by."""
    if node.op_type == "LSTM":
        return str(node.input[0])
    if node.op_type == "Gather" and graph.constant(node.input[0]) is not None:
        return str(node.input[1])
    if node.op_type in (*MOVING, "Gather"):
        return str(node.input[0])
    moving = [str(name) for name in node.input if name and graph.constant(name) is None]
    if len(moving) != 1:
        raise ConversionError(
            f"node {title(node)} reads {len(moving)} computed tensors ({', '.join(moving)}); here each layer "
            "reads the one before it"
        )
    return moving[0]


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name; text as str."""
    import onnx

    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def title(node: Any) -> str:
    """What to call a node: its operator and name."""
    return f"{node.op_type} {node.name or node.output[0]}"


def fixed_shape(value: Any) -> list[int | None]:
    """The shape of an input; None for a size that is free."""
    dims: Iterable[Any] = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]


def _attribute(attribute: Any) -> Any:
    import onnx

    return onnx.helper.get_attribute_value(attribute)


def _array(tensor: Any) -> NDArray[Any]:
    import onnx

    return np.asarray(onnx.numpy_helper.to_array(tensor))
