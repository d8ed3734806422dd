"""A file of another framework becomes a bundle: read, folded, named, checked, written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import bundle as bundles
from model.bundle import Bundle
from model.config import Architecture, ModelSpec, Signal
from model.convert.check import TOLERANCE, difference
from model.convert.foreign import Array, Folded, Foreign, fold, take
from model.convert.signals import IDENTITY, Meanings, signals, vocabulary
from model.convert.torch_file import Names
from model.errors import ConversionError


@dataclass(frozen=True)
class Wish:
    """What the user says of the file. key, names: of a torch checkpoint. output: of a Keras or ONNX model
    with several. leads: steps ahead in the head's rows, 0: as the file says, else 1. residual: the forward
    pass adds the present value to the head's."""

    key: str = ""
    names: Names = field(default_factory=Names)
    output: str = ""
    leads: int = 0
    residual: bool = False
    meanings: Meanings = field(default_factory=Meanings)
    vocabulary: Path | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class Imported:
    """The model, float32 as it will be stored, and what there is to tell about it.

    origins: for each of our tensors, theirs. difference: the largest between the outputs of both networks, in
    outputs whose largest magnitude is `scale`.
    """

    spec: ModelSpec
    weights: dict[str, Tensor]
    origins: dict[str, str]
    kind: str
    checked_by: str
    difference: float
    scale: float
    notes: tuple[str, ...]


def read(path: Path, wish: Wish) -> Imported:
    """Reads a file, whatever framework it is of, and proves the result on random input. Raises
    ConversionError."""
    foreign = _foreign(path, wish)
    text = foreign.embedding is not None or wish.vocabulary is not None
    folded = fold(foreign.stages, scaled_inputs=not text)
    weights, origins = dict(folded.weights), dict(folded.origins)
    try:
        spec, notes = _text(foreign, folded, wish) if text else _series(foreign, folded, wish)
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error
    if text:
        table = foreign.embedding
        origins["embedding.weight"] = foreign.embedding_source or "none in the file: one-hot"
        weights["embedding.weight"] = (
            torch.eye(folded.input_size) if table is None else take(table, "embedding")
        )
    names = spec.architecture.shapes()
    exact = {name: _as_stored(weights[name], name, "float32") for name in names}
    worst, scale = difference(foreign, exact, folded.input_mean, folded.input_std)
    if not worst <= TOLERANCE * max(1.0, scale):
        raise ConversionError(
            f"{path}: the outputs differ by {worst:.2g} from those of {foreign.checked_by}, of which "
            f"the largest is {scale:.2g}: the file was not understood; no bundle was written"
        )
    stored = {name: _as_stored(weights[name], name, wish.dtype) for name in names}
    if wish.dtype != "float32":
        worst, scale = difference(foreign, stored, folded.input_mean, folded.input_std)
    return Imported(
        spec, stored, {name: origins[name] for name in names}, foreign.kind, foreign.checked_by, worst, scale,
        (*foreign.notes, *folded.notes, *notes),
    )  # fmt: skip


def write(imported: Imported, path: Path, bundle: Bundle, out: Path, dtype: str, command: str) -> Bundle:
    """Saves it under the name, version and description of `bundle`, with the file it came from in its
    manifest."""
    training: dict[str, Any] = {
        "command": command,
        "imported": {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "kind": imported.kind,
            "checked_by": imported.checked_by,
            "largest_difference": imported.difference,
        },
    }
    saved = Bundle(
        bundle.name, bundle.version, imported.spec, imported.weights, bundle.description, training=training
    )
    return bundles.save(saved, out, dtype)


def _foreign(path: Path, wish: Wish) -> Foreign:
    """Which reader a file is for, by its first bytes; ONNX has none of its own, so by its name."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        more = "; a TensorFlow SavedModel is not read: save a .keras file" if path.is_dir() else ""
        raise ConversionError(f"{path}: {error.strerror}{more}") from error
    if not start:
        raise ConversionError(f"{path}: the file is empty")
    keras = start.startswith(b"\x89HDF") or path.suffix in (".keras", ".h5", ".hdf5")
    onnx = path.suffix == ".onnx"
    if (keras or onnx) and (wish.key or wish.names != Names() or wish.residual):
        flags = "--key, --lstm, --head, --embedding, --ignore and --residual"
        raise ConversionError(f"{path}: {flags} are for torch checkpoints; this file says all that itself")
    if wish.output and not (keras or onnx):
        raise ConversionError(f"{path}: --output is for Keras models and ONNX graphs")
    if keras:
        from model.convert import keras_layers

        return keras_layers.read(path, wish.output)
    if onnx:
        from model.convert import onnx_graph

        return onnx_graph.read(path, wish.output)
    if start[:2] in (b"PK", b"\x80\x02") or start[:1] == b"\x80" or start[8:] == b"{":
        from model.convert import torch_file

        return torch_file.read(path, wish.key, wish.names)
    raise ConversionError(
        f"{path}: not a file that is known here: a torch checkpoint, .safetensors, .keras, .h5 or .onnx"
    )


def _series(foreign: Foreign, folded: Folded, wish: Wish) -> tuple[ModelSpec, list[str]]:
    if foreign.squash:
        raise ConversionError(
            f"the head ends with a {foreign.squash}: that is a text model's, whose characters --vocabulary "
            "names; a series model's head is linear"
        )
    leads = wish.leads or foreign.leads
    if leads < 1 or folded.head_rows % leads:
        raise ConversionError(f"the head has {folded.head_rows} rows, which are not those of {leads} leads")
    outputs = folded.head_rows // leads
    architecture = Architecture(
        "series", folded.input_size, folded.hidden_size, folded.num_layers, outputs, leads, wish.residual
    )
    inputs, written, notes = signals(wish.meanings, folded.input_size, outputs)
    if folded.input_mean.any() or (folded.input_std != 1).any():
        notes = [note for note in notes if note != IDENTITY]
        notes.append("the network normalises its inputs: that is in the bundle's means and deviations")
        inputs = _normalised(inputs, folded.input_mean, folded.input_std)
    return ModelSpec(architecture, inputs, written), notes


def _normalised(inputs: tuple[Signal, ...], mean: Array, std: Array) -> tuple[Signal, ...]:
    """The signals whose normalisation is theirs and then the network's own."""
    return tuple(
        Signal(s.name, s.unit, s.mean + s.std * float(m), s.std * float(d))
        for s, m, d in zip(inputs, mean, std, strict=True)
    )


def _text(foreign: Foreign, folded: Folded, wish: Wish) -> tuple[ModelSpec, list[str]]:
    table = foreign.embedding
    rows = folded.input_size if table is None else len(table)
    if rows != folded.head_rows:
        raise ConversionError(
            f"{'the inputs are' if table is None else 'the embedding is of'} {rows} tokens, the head of "
            f"{folded.head_rows}: a text model predicts the characters it reads"
        )
    if wish.vocabulary is None:
        raise ConversionError(
            f"an embedding of {rows} tokens makes it a text model: name them with --vocabulary FILE"
        )
    if wish.meanings != Meanings() or wish.leads > 1 or wish.residual:
        raise ConversionError("a text model has a vocabulary in place of signals, one lead and no residual")
    architecture = Architecture("text", folded.input_size, folded.hidden_size, folded.num_layers, rows)
    return ModelSpec(architecture, vocabulary=vocabulary(wish.vocabulary, rows)), []


def _as_stored(tensor: Tensor, name: str, dtype: str) -> Tensor:
    stored = tensor.to(bundles.STORED_TYPES[dtype]).float()
    if not torch.isfinite(stored).all():
        largest = float(np.abs(tensor.numpy()).max())
        raise ConversionError(f"{name} reaches {largest:.3g}, which {dtype} can't hold; use --dtype float32")
    return stored
