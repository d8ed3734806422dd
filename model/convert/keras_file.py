"""A Keras model on disk: `.keras`, `.weights.h5`, and the older `.h5`. Nothing in it is run.

`layers` finds the layers in the order they run, `keras_layers` turns them into stages and runs them as Keras
would.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.convert.foreign import Array
from model.errors import ConversionError

#: Largest dataset that is read, in numbers, and largest weights file in an archive, in bytes
LARGEST_ARRAY, LARGEST_MEMBER = 1 << 31, 1 << 33
#: What h5py raises for what it can't read
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError)

#: Class names as Keras 3 writes them into a weights file, lower case with underscores
SNAKE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class KerasLayer:
    """One layer: its class, its name, its configuration (None where the file has none) and its arrays, in
    Keras's order (kernel, recurrent kernel, bias)."""

    kind: str
    name: str
    config: Mapping[str, Any] | None
    arrays: tuple[Array, ...] = ()
    inputs: tuple[str, ...] = field(default=())


def layers(path: Path, output: str) -> list[KerasLayer]:
    """The layers of the model, in the order they run, up to `output` (a layer's name) or the model's only
    output. Raises ConversionError."""
    try:
        import h5py
    except ImportError as error:
        raise ConversionError("a Keras file needs h5py: pip install 'cellstate[import]'") from error
    try:
        if zipfile.is_zipfile(path):
            config, weights = _archive(path)
            with h5py.File(io.BytesIO(weights), "r") as file:
                return _chain(_with_arrays(_configured(config), file), config, output)
        with h5py.File(path, "r") as file:
            if "model_config" in file.attrs:
                config = _json(file.attrs["model_config"])
                group = file["model_weights"]
                found = [_with_legacy_arrays(layer, group) for layer in _configured(config)]
                return _chain(found, config, output)
            return list(_unconfigured(file))
    except (*DAMAGED, zipfile.BadZipFile, RecursionError) as error:
        told = (str(error) or repr(error)).splitlines()[0]
        raise ConversionError(f"{path}: truncated, damaged or no Keras file: {told}") from error


def _archive(path: Path) -> tuple[Mapping[str, Any], bytes]:
    """Configuration and weights of a `.keras` archive."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in ("config.json", "model.weights.h5"):
            if name not in names:
                raise ConversionError(f"{path}: a zip archive without {name}: not a .keras file")
            if archive.getinfo(name).file_size > LARGEST_MEMBER:
                raise ConversionError(
                    f"{path}: {name} says that it has {archive.getinfo(name).file_size} bytes"
                )
        return _json(archive.read("config.json")), archive.read("model.weights.h5")


def _json(text: str | bytes) -> Mapping[str, Any]:
    config = json.loads(text)
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict | list):
        raise ValueError("its configuration is not a model's")
    return config


def _configured(model: Mapping[str, Any]) -> list[KerasLayer]:
    """The layers of a Sequential or functional model, without arrays, in the order of its `layers`."""
    if model.get("class_name") not in ("Sequential", "Functional", "Model"):
        raise ConversionError(
            f"a {model.get('class_name')} model's way through its layers is in its code; build the same "
            "network as Sequential, set_weights(model.get_weights()), and save that"
        )
    inner = model["config"]
    entries = inner if isinstance(inner, list) else inner["layers"]  # a list: Keras before 2.2.3
    found = []
    for entry in entries:
        config = entry["config"]
        name = str(entry.get("name") or config.get("name") or "")
        found.append(KerasLayer(str(entry["class_name"]), name, config, inputs=tuple(_inputs(entry))))
    return found


def _inputs(entry: Mapping[str, Any]) -> Iterator[str]:
    """The layers whose outputs a layer of a functional model reads."""
    nodes = entry.get("inbound_nodes") or []
    if len(nodes) > 1:
        raise ConversionError(
            f"layer {entry.get('name')} is used {len(nodes)} times; here each layer runs once"
        )
    for node in nodes:
        if isinstance(node, dict):  # Keras 3
            kwargs = {k: v for k, v in node.get("kwargs", {}).items() if k != "mask"}
            yield from _histories([node.get("args", []), kwargs])
        else:
            for source in node:
                yield str(source[0])
                if len(source) > 3 and source[3].get("initial_state"):
                    yield "initial_state"


def _histories(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield str(value["config"]["keras_history"][0])
        else:
            yield from _histories(list(value.values()))
    elif isinstance(value, list):
        for part in value:
            yield from _histories(part)


def _chain(found: list[KerasLayer], model: Mapping[str, Any], output: str) -> list[KerasLayer]:
    """The layers from the input to the output, one after another."""
    by_name = {layer.name: layer for layer in found}
    if output and output not in by_name:
        raise ConversionError(f"--output {output}: there is no such layer; there is {list(by_name)}")
    if model.get("class_name") == "Sequential":
        return found[: [layer.name for layer in found].index(output) + 1] if output else found
    name = output or _only_output(model["config"]["output_layers"])
    chain: list[KerasLayer] = []
    while name:
        if name not in by_name or len(chain) > len(found):
            raise ConversionError(f"the layers' order can't be followed: there is no layer {name!r}")
        layer = by_name[name]
        chain.append(layer)
        if len(layer.inputs) > 1:
            raise ConversionError(
                f"layer {name} reads {len(layer.inputs)} tensors ({', '.join(layer.inputs)}); here each "
                "layer reads the one before it, and an LSTM begins with zeros"
            )
        name = layer.inputs[0] if layer.inputs else ""
    return chain[::-1]


def _only_output(outputs: Any) -> str:
    if outputs and isinstance(outputs[0], str):  # Keras 3 writes one output without a list around it
        return str(outputs[0])
    if len(outputs) != 1:
        names = [str(entry[0]) for entry in outputs]
        raise ConversionError(f"the model has {len(outputs)} outputs; say which with --output: {names}")
    return str(outputs[0][0])


def _with_arrays(found: list[KerasLayer], file: Any) -> list[KerasLayer]:
    """The layers of a `.keras` archive. A layer's group is named by its class and its number among those of
    the class; since Keras 3 it also carries the layer's own name."""
    groups = _container(file)
    named = {_text(g["vars"].attrs["name"]): g for g in groups.values() if "name" in _attributes(g)}
    counts: dict[str, int] = {}
    filled = []
    for layer in found:
        kind = SNAKE.sub("_", layer.kind).lower()
        number = counts[kind] = counts.get(kind, -1) + 1
        group = named.get(layer.name) or groups.get(f"{kind}_{number}" if number else kind)
        filled.append(layer if group is None else _filled(layer, _variables(group)))
    return filled


def _attributes(group: Any) -> Any:
    return group["vars"].attrs if "vars" in group else {}


def _container(file: Any) -> Any:
    for name in ("layers", "_layer_checkpoint_dependencies"):
        if name in file:
            return file[name]
    raise ConversionError(f"the weights hold no group of layers; they hold {list(file)[:8]}")


def _variables(group: Any) -> list[Array]:
    """The arrays of a layer's group: its own, its cell's (an LSTM), or its layer's (TimeDistributed)."""
    for part in (group, group.get("cell"), group.get("layer")):
        if part is not None and "vars" in part and len(part["vars"]):
            variables = part["vars"]
            keys = sorted(variables, key=int)
            return [
                _array(variables, key) for key in keys if variables[key].dtype.kind == "f"
            ]  # others count
    return []


def _with_legacy_arrays(layer: KerasLayer, weights: Any) -> KerasLayer:
    if layer.name not in weights:
        return layer
    group = weights[layer.name]
    return _filled(layer, [_array(group, _text(n)) for n in group.attrs.get("weight_names", [])])


def _filled(layer: KerasLayer, arrays: Sequence[Array]) -> KerasLayer:
    return KerasLayer(layer.kind, layer.name, layer.config, tuple(arrays), layer.inputs)


def _unconfigured(file: Any) -> Iterator[KerasLayer]:
    """The layers of a file of weights alone. Those of a class are numbered; LSTMs come before dense
    layers."""
    if "layer_names" in file.attrs:  # the older form: groups by layer name, in order
        for name in map(_text, file.attrs["layer_names"]):
            group = file[name]
            names = [_text(n) for n in group.attrs.get("weight_names", [])]
            if names:
                kind = _kind_by_weights(names, [_array(group, n) for n in names])
                yield KerasLayer(kind, name, None, tuple(_array(group, n) for n in names))
        return
    order = {"embedding": 0, "lstm": 1, "bidirectional": 1, "gru": 1, "simple_rnn": 1, "time_distributed": 3}
    groups = _container(file)
    numbered = []
    for key in groups:
        kind, _, number = key.rpartition("_") if re.search(r"_\d+$", key) else (key, "", "0")
        numbered.append((order.get(kind, 2), int(number), kind, key))
    for _, _, kind, key in sorted(numbered):
        arrays = _variables(groups[key])
        if arrays or any(part in groups[key] for part in ("forward_layer", "backward_layer", "layers")):
            name = _text(_attributes(groups[key]).get("name", key))
            yield KerasLayer(_class_name(kind), name, None, tuple(arrays))


def _class_name(kind: str) -> str:
    known = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "SimpleRNN"}
    return known.get(kind, "".join(part.capitalize() for part in kind.split("_")))


def _kind_by_weights(names: Sequence[str], arrays: Sequence[Array]) -> str:
    """A layer's class, of the names of its weights."""
    ends = [name.rpartition("/")[2].partition(":")[0] for name in names]
    if any("backward" in name for name in names):
        return "Bidirectional"
    if "recurrent_kernel" in ends:
        kernel = arrays[ends.index("recurrent_kernel")]
        return {4: "LSTM", 3: "GRU", 1: "SimpleRNN"}.get(kernel.shape[-1] // kernel.shape[0], "unknown")
    if ends == ["embeddings"]:
        return "Embedding"
    return "Dense" if set(ends) <= {"kernel", "bias"} else f"with {', '.join(ends)}"


def _array(group: Any, key: str) -> Array:
    """A dataset of numbers in the file itself: not behind a link to another file."""
    import h5py

    dataset = group[key]
    inside = isinstance(dataset, h5py.Dataset) and dataset.file == group.file
    if not inside or dataset.external is not None or dataset.is_virtual:
        raise ValueError(f"{group.name}/{key} is not a dataset of this file")
    if dataset.dtype.kind != "f" or dataset.size > LARGEST_ARRAY:
        raise ValueError(f"{dataset.name} is {dataset.dtype} {list(dataset.shape)}, must be floating point")
    array = np.asarray(dataset[()], dtype=np.float64)
    if not np.isfinite(array).all():
        raise ConversionError(f"{dataset.name} holds a number that is not finite")
    return array


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
