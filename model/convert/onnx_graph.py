"""The nodes of an ONNX graph as a chain of layers and affine maps.

ONNX's LSTM has its gates in the order i, o, f, c, where c is our g, and two biases a layer
(onnx.ai/onnx/operators/onnx__LSTM.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.convert.foreign import Affine, Foreign, Layer, Squash, take, told
from model.convert.onnx_file import MOVING, REASONS, UNKNOWN, Graph, Way, attributes, load, title, way
from model.convert.onnx_run import Runner
from model.errors import ConversionError

ACTIVATIONS = ["sigmoid", "tanh", "tanh"]


def read(path: Path, output: str = "") -> Foreign:
    """The network in an ONNX file. Raises ConversionError."""
    graph = load(path)
    found = way(graph, output)
    stages: list[Layer | Affine] = []
    embedding: Tensor | None = None
    source = ""
    squash: Squash = ""
    for node, along in found.nodes:
        if node.op_type in MOVING:
            continue
        if squash:
            raise ConversionError(f"node {title(node)} comes behind a softmax; it must be the last")
        if node.op_type == "LSTM":
            stages.append(_lstm(graph, node))
        elif node.op_type == "Gather" and graph.constant(node.input[0]) is not None:
            if stages or embedding is not None:
                raise ConversionError(f"node {title(node)}: an embedding must come first")
            embedding = _constant(graph, node, node.input[0], 2)
            source = told(node.input[0], embedding)
        elif node.op_type in ("Softmax", "LogSoftmax"):
            squash = "softmax" if node.op_type == "Softmax" else "log_softmax"
        elif node.op_type != "Gather":  # that chooses a step
            stages.append(_affine(graph, node, along, _width(graph, found, stages, embedding)))
    run = Runner(graph, found)
    return Foreign(
        kind="ONNX graph",
        checked_by=run.by,
        stages=tuple(stages),
        probe=lambda mean, std: run.probes(None if embedding is None else len(embedding), mean, std),
        embedding=embedding,
        embedding_source=source,
        squash=squash,
        notes=("the graph takes a state as input; here sessions keep it, from zeros on",)
        if run.states
        else (),
    )


def _width(graph: Graph, found: Way, stages: list[Layer | Affine], embedding: Tensor | None) -> int:
    """How many features there are behind these stages."""
    if stages:
        last = stages[-1]
        return last.hidden_size if isinstance(last, Layer) else len(last.bias)
    if embedding is not None:
        return embedding.shape[1]
    for node, _ in found.nodes:  # of the input: as many as the first matrix takes
        matrix = graph.constant(node.input[1]) if node.op_type in ("LSTM", "MatMul", "Gemm") else None
        if matrix is not None:
            by_rows = node.op_type == "MatMul" or (
                node.op_type == "Gemm" and not attributes(node).get("transB")
            )
            return int(matrix.shape[0 if by_rows else -1])
    return 1


def _lstm(graph: Graph, node: Any) -> Layer:
    options = attributes(node)
    _check_options(node, options)
    names = [*node.input, *[""] * (8 - len(node.input))]
    for which, name in (("initial_h", names[5]), ("initial_c", names[6])):
        if not graph.is_zero(name):
            raise ConversionError(
                f"node {title(node)}: {which} ({name}) is not zero; a session begins with zeros"
            )
    if names[7] and not graph.is_zero(names[7]):
        raise ConversionError(
            f"node {title(node)}: peepholes ({names[7]}) have no equivalent; train without them"
        )
    W, R = (_constant(graph, node, name, 3) for name in names[1:3])
    H = R.shape[2]
    B = _constant(graph, node, names[3], 2) if names[3] else torch.zeros(1, 8 * H, dtype=torch.float64)
    for name, tensor, shape in (
        (names[1], W, [1, 4 * H, W.shape[2]]), (names[2], R, [1, 4 * H, H]), (names[3], B, [1, 8 * H]),
    ):  # fmt: skip
        if list(tensor.shape) != shape:
            raise ConversionError(f"{name} of node {title(node)} is {list(tensor.shape)}, must be {shape}")
    order = torch.cat([torch.arange(H) + gate * H for gate in (0, 2, 3, 1)])  # of i, o, f, c
    return Layer(
        W[0][order], R[0][order], (B[0, : 4 * H] + B[0, 4 * H :])[order],
        sources={
            "weight_ih": f"{told(names[1], W)}, gates i, o, f, c put as i, f, g, o",
            "weight_hh": f"{told(names[2], R)}, gates likewise",
            "bias": f"{told(names[3], B)}, both halves, gates likewise" if names[3] else "none: zeros",
        },
    )  # fmt: skip


def _check_options(node: Any, options: Mapping[str, Any]) -> None:
    direction = options.get("direction", "forward")
    if direction != "forward":
        raise ConversionError(
            f"node {title(node)} is {direction}: it reads the future, so it can't be stepped"
        )
    used = [
        str(a.decode() if isinstance(a, bytes) else a).lower()
        for a in options.get("activations", ACTIVATIONS)
    ]
    if used != ACTIVATIONS:
        raise ConversionError(f"node {title(node)} has activations {used}; an LSTM here has {ACTIVATIONS}")
    if options.get("clip"):
        raise ConversionError(f"node {title(node)} clips at {options['clip']:g}, which has no equivalent")
    if options.get("input_forget"):
        raise ConversionError(
            f"node {title(node)} couples its input and forget gates (input_forget=1): no equivalent"
        )


def _affine(graph: Graph, node: Any, along: str, size: int) -> Affine:
    """A node that is linear in the `size` features that come along."""
    options = attributes(node)
    first = node.input[0] == along
    others = [name for name in node.input if name and name != along]
    if node.op_type == "MatMul" and first and len(others) == 1:
        weight = _constant(graph, node, others[0], 2).T
        return Affine(
            weight, torch.zeros(len(weight), dtype=torch.float64), f"{told(others[0], weight.T)} transposed"
        )
    if node.op_type == "Gemm" and first and not options.get("transA"):
        weight = _constant(graph, node, node.input[1], 2)
        weight = weight if options.get("transB") else weight.T
        bias = torch.zeros(len(weight), dtype=torch.float64)
        if len(others) > 1:
            bias = bias + _vector(graph, node, others[1], len(weight)) * options.get("beta", 1.0)
        return Affine(weight * options.get("alpha", 1.0), bias, others[0], (others[1:] or ["none: zeros"])[0])
    if node.op_type in ("Add", "Sub", "Mul", "Div") and len(others) == 1:
        return _elementwise(graph, node, others[0], first, size)
    raise ConversionError(f"node {title(node)}: {REASONS.get(node.op_type, UNKNOWN)}")


def _elementwise(graph: Graph, node: Any, other: str, first: bool, size: int) -> Affine:
    """Add, Sub, Mul or Div of the sequence, which has `size` features, and a constant."""
    v = _vector(graph, node, other, size)
    one, none = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    if node.op_type == "Add":
        scale, shift = one, v
    elif node.op_type == "Sub":
        scale, shift = (one, -v) if first else (-one, v)
    elif node.op_type == "Mul":
        scale, shift = v, none
    elif first and bool((v != 0).all()):
        scale, shift = 1 / v, none
    else:
        raise ConversionError(f"node {title(node)} divides by zero, or by what is computed: {UNKNOWN}")
    return Affine(torch.diag(scale), shift, told(other, v), told(other, v))


def _vector(graph: Graph, node: Any, name: str, size: int) -> Tensor:
    """A constant [size], given as that, as one number, or with axes of 1 before it."""
    v = _constant(graph, node, name, None)
    if v.numel() not in (1, size) or (v.dim() and v.shape[-1] not in (1, size)):
        raise ConversionError(
            f"{told(name, v)} of node {title(node)} must be one number, or one for each feature"
        )
    return v.reshape(-1).expand(size).clone()


def _constant(graph: Graph, node: Any, name: str, axes: int | None) -> Tensor:
    value = graph.constant(name)
    if value is None:
        raise ConversionError(
            f"{name} of node {title(node)} is computed while the graph runs; it must be a constant"
        )
    tensor = take(torch.from_numpy(np.array(value)), name)
    if (axes is not None and tensor.dim() != axes) or not tensor.numel():
        raise ConversionError(
            f"{told(name, tensor)} of node {title(node)} must have {axes} axes, none of them empty"
        )
    return tensor
