"""The layers of a Keras model as a chain, and what Keras would compute with them, in float64.

Keras keeps kernels with inputs as rows, [I, 4H], and its gates in the order i, f, c, o, where c is our g: the
order is ours (keras/layers/rnn/lstm.py, LSTMCell.call: z0 to z3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.convert.foreign import Affine, Array, Foreign, Layer, Probe, Squash, take, told
from model.convert.keras_file import KerasLayer, layers
from model.errors import ConversionError
from model.reference import sigmoid

#: Layers that do nothing outside of training, or to a sequence that is not padded
INERT = (
    "InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization", "Masking", "NotEqual",
)  # fmt: skip
REASONS = {
    "Bidirectional": "it reads the future, so it can't be stepped; train the LSTM without it",
    "GRU": "a GRU has three gates; train an LSTM",
    "SimpleRNN": "a plain RNN has no gates; train an LSTM",
    "CuDNNLSTM": "load the model in Keras 2 and save it with LSTM layers of the same weights",
    "LayerNormalization": "it depends on the whole vector, so it can't be folded into a weight",
    "RepeatVector": "an encoder and decoder is two networks; here one network runs step by step",
}
UNKNOWN = "a network here is [Embedding], LSTM layers and Dense layers without activation"
WITHOUT = (
    "the file tells no activations: those of keras.layers.LSTM, and none at the Dense, are taken for granted"
)


def read(path: Path, output: str = "") -> Foreign:
    """The network in a Keras file. Raises ConversionError."""
    found = layers(path, output)
    stages: list[Layer | Affine] = []
    embedding: KerasLayer | None = None
    squash: Squash = ""
    leads, sequence, notes = 1, True, []
    for layer in found:
        config = layer.config or {}
        if squash:
            raise ConversionError(
                f"layer {layer.name} ({layer.kind}) comes behind a softmax; it must be the last"
            )
        if layer.kind == "LSTM":
            if not sequence:
                raise ConversionError(f"layer {layer.name} reads the last step alone of the LSTM before it")
            stages.append(_lstm(layer))
            sequence = bool(config.get("return_sequences", True))
        elif layer.kind == "Embedding":
            if stages or embedding:
                raise ConversionError(f"layer {layer.name}: an Embedding must be the first layer")
            embedding = layer
        elif layer.kind in ("Reshape", "Flatten"):
            leads = _leads(layer, sequence)
        else:
            if sequence and config.get("axis") in (1, [1]):
                raise ConversionError(
                    f"layer {layer.name} ({layer.kind}) normalises along time; that mixes the steps"
                )
            stages += _affine(layer)
            squash = _squash(layer)
        notes += _notes(layer)
    if not any(isinstance(stage, Layer) for stage in stages):
        raise ConversionError(
            f"{path}: there is no LSTM layer in it; it has {[layer.kind for layer in found]}"
        )
    if found and all(layer.config is None for layer in found):
        notes.append(WITHOUT)
        if sum(isinstance(stage, Affine) for stage in stages) > 1:
            raise ConversionError(
                f"{path}: several Dense layers, and a file of weights alone tells no activations between "
                "them: import the .keras file"
            )
    table = None if embedding is None else _arrays(embedding, 2)[0]
    return Foreign(
        kind="Keras model",
        checked_by="Keras's own formulas in float64",
        stages=tuple(stages),
        probe=lambda mean, std: [_probe(found, mean, std)],
        embedding=None if table is None else torch.from_numpy(table),
        embedding_source=""
        if embedding is None or table is None
        else told(f"{embedding.name}.embeddings", table),
        squash=squash,
        leads=leads,
        notes=tuple(notes),
    )


def _lstm(layer: KerasLayer) -> Layer:
    config = layer.config or {}
    for key, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        if (used := _activation(config, key, wanted)) != wanted:
            raise ConversionError(f"layer {layer.name}: {key} is {used}; an LSTM here has {wanted}")
    if config.get("go_backwards"):
        raise ConversionError(f"layer {layer.name}: go_backwards reads the future, so it can't be stepped")
    arrays = _arrays(layer, 2, 2, *([1] if len(layer.arrays) > 2 else []))
    kernel, recurrent = arrays[:2]
    H = len(recurrent)
    bias = arrays[2] if len(arrays) > 2 else np.zeros(4 * H)
    for name, array, shape in (
        ("kernel", kernel, (len(kernel), 4 * H)),
        ("recurrent_kernel", recurrent, (H, 4 * H)),
        ("bias", bias, (4 * H,)),
    ):
        if array.shape != shape:
            raise ConversionError(f"{layer.name}.{name} is {list(array.shape)}, must be {list(shape)}")
    return Layer(
        torch.from_numpy(kernel.T.copy()), torch.from_numpy(recurrent.T.copy()), torch.from_numpy(bias),
        sources={
            "weight_ih": told(f"{layer.name}.kernel", kernel) + " transposed",
            "weight_hh": told(f"{layer.name}.recurrent_kernel", recurrent) + " transposed",
            "bias": told(f"{layer.name}.bias", bias) if len(arrays) > 2 else "none: zeros",
        },
    )  # fmt: skip


def _affine(layer: KerasLayer) -> list[Affine]:
    """A layer as an affine map; none if it does nothing."""
    if layer.kind in INERT or layer.kind in ("Activation", "Softmax"):
        return []
    if layer.kind in ("Dense", "TimeDistributed"):
        _inner(layer)
        arrays = _arrays(layer, 2, *([1] if len(layer.arrays) > 1 else []))
        kernel = arrays[0]
        bias = arrays[1] if len(arrays) > 1 else np.zeros(kernel.shape[1])
        if len(bias) != kernel.shape[1]:
            raise ConversionError(f"{layer.name}.bias is {list(bias.shape)}, must be {[kernel.shape[1]]}")
        source = told(f"{layer.name}.kernel", kernel) + " transposed"
        bias_source = told(f"{layer.name}.bias", bias) if len(arrays) > 1 else "none: zeros"
        return [Affine(torch.from_numpy(kernel.T.copy()), torch.from_numpy(bias), source, bias_source)]
    if layer.kind in ("BatchNormalization", "Normalization", "Rescaling"):
        scale, shift = _scaling(layer)
        return [Affine(torch.diag(torch.from_numpy(scale)), torch.from_numpy(shift), layer.name, layer.name)]
    raise ConversionError(f"layer {layer.name} ({layer.kind}): {REASONS.get(layer.kind, UNKNOWN)}")


def _inner(layer: KerasLayer) -> Mapping[str, Any]:
    """The configuration of a Dense, also of one within a TimeDistributed."""
    config = layer.config or {}
    if layer.kind == "TimeDistributed" and "layer" in config:
        if config["layer"].get("class_name") != "Dense":
            raise ConversionError(
                f"layer {layer.name}: TimeDistributed({config['layer'].get('class_name')}): {UNKNOWN}"
            )
        inner: Mapping[str, Any] = config["layer"]["config"]
        return inner
    return config


def _scaling(layer: KerasLayer) -> tuple[Array, Array]:
    """Scale and shift [n] of a normalisation with the figures it has learnt."""
    config = layer.config
    if config is None:
        raise ConversionError(
            f"layer {layer.name} ({layer.kind}) needs its configuration: import the .keras file"
        )
    if layer.kind == "Rescaling":
        raise ConversionError(f"layer {layer.name} (Rescaling): give it as --mean and --std of the inputs")
    if layer.kind == "Normalization":
        if config.get("invert") or len(layer.arrays) < 2:
            raise ConversionError(
                f"layer {layer.name} (Normalization): give it as --mean and --std of the inputs"
            )
        mean, variance = (a.reshape(-1) for a in layer.arrays[:2])
        scale = 1 / np.maximum(np.sqrt(variance), 1e-7)  # Keras's backend.epsilon()
        return scale, -mean * scale
    arrays = [a.reshape(-1) for a in layer.arrays]
    n = len(arrays[-1]) if arrays else 0
    gamma = arrays.pop(0) if config.get("scale", True) and arrays else np.ones(n)
    beta = arrays.pop(0) if config.get("center", True) and arrays else np.zeros(n)
    if len(arrays) != 2 or len({len(a) for a in (gamma, beta, *arrays)}) != 1:
        raise ConversionError(
            f"layer {layer.name} (BatchNormalization) has arrays that don't fit its configuration"
        )
    mean, variance = arrays
    scale = gamma / np.sqrt(variance + float(config.get("epsilon", 1e-3)))
    return scale, beta - mean * scale


def _squash(layer: KerasLayer) -> Squash:
    """ "softmax" if the layer ends with one. Raises ConversionError for any other activation."""
    if layer.kind == "Softmax":
        return "softmax"
    if layer.kind not in ("Dense", "TimeDistributed", "Activation"):
        return ""
    used = _activation(_inner(layer), "activation", "linear")
    if used in ("softmax", "log_softmax"):
        return "softmax" if used == "softmax" else "log_softmax"
    if used != "linear":
        raise ConversionError(
            f"layer {layer.name} ({layer.kind}): its activation is {used}; the head here is linear. If it is "
            "the last layer, set it to None before saving, and apply it where the outputs are used"
        )
    return ""


def _activation(config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if isinstance(value, Mapping):  # a registered function
        value = value.get("config")
    return "linear" if value is None else str(value)


def _leads(layer: KerasLayer, sequence: bool) -> int:
    """A reshape at the end, of the last step's outputs into [leads, outputs]."""
    if sequence:
        raise ConversionError(
            f"layer {layer.name} ({layer.kind}) is on whole sequences: it would mix the steps"
        )
    shape = (layer.config or {}).get("target_shape", (1,))
    return int(shape[0]) if len(shape) == 2 and int(shape[0]) > 0 else 1


def _notes(layer: KerasLayer) -> list[str]:
    config = layer.config or {}
    if layer.kind == "Masking" or (layer.kind == "Embedding" and config.get("mask_zero")):
        return [f"layer {layer.name} skips padding; a session has none, and each of its steps is taken"]
    if layer.kind == "LSTM" and config.get("return_sequences") is False:
        return [f"layer {layer.name} gives its last step alone; a session gives every step's"]
    return []


def _arrays(layer: KerasLayer, *axes: int) -> list[Array]:
    """The layer's arrays, with so many axes each."""
    shapes = [list(a.shape) for a in layer.arrays]
    if [a.ndim for a in layer.arrays] != list(axes) or not all(a.size for a in layer.arrays):
        raise ConversionError(
            f"layer {layer.name} ({layer.kind}) has arrays {shapes}, of which one is missing or wrong"
        )
    return [take(torch.from_numpy(a), layer.name).numpy() for a in layer.arrays]


def _probe(found: Sequence[KerasLayer], mean: Array, std: Array) -> Probe:
    """The layers one after another, straight from the file's arrays, on random input [T, B]."""
    T, B = 32, 3
    generator = np.random.default_rng(0)
    first = next((layer for layer in found if layer.kind == "Embedding"), None)
    if first is not None:
        x: Array = generator.integers(0, len(first.arrays[0]), (T, B)).astype(np.float64)
    else:
        x = (generator.standard_normal((T, B, len(mean))) * std + mean).astype(np.float32).astype(np.float64)
    y = x
    for layer in found:
        y = _run(layer, y)
    return Probe(x, y)


def _run(layer: KerasLayer, x: Array) -> Array:
    if layer.kind == "Embedding":
        return layer.arrays[0][x.astype(np.int64)]
    if layer.kind == "LSTM":
        return _run_lstm(layer.arrays, x)
    if layer.kind in ("Dense", "TimeDistributed"):
        x = x @ layer.arrays[0] + (layer.arrays[1] if len(layer.arrays) > 1 else 0)
    elif layer.kind in ("BatchNormalization", "Normalization"):
        scale, shift = _scaling(layer)
        x = x * scale + shift
    if squash := _squash(layer):
        e = np.exp(x - x.max(-1, keepdims=True))
        x = e / e.sum(-1, keepdims=True)
        return np.log(x) if squash == "log_softmax" else x
    return x


def _run_lstm(arrays: Sequence[Array], x: Array) -> Array:
    """keras.layers.LSTM with return_sequences on x [T, B, I]."""
    kernel, recurrent = arrays[0], arrays[1]
    bias = arrays[2] if len(arrays) > 2 else 0.0
    h = c = np.zeros((x.shape[1], len(recurrent)))
    steps = []
    for row in x:
        z0, z1, z2, z3 = np.split(row @ kernel + h @ recurrent + bias, 4, axis=-1)
        c = sigmoid(z1) * c + sigmoid(z0) * np.tanh(z2)
        h = sigmoid(z3) * np.tanh(c)
        steps.append(h)
    return np.array(steps)
