"""Made the Keras files in this directory: real models of real Keras, and what they give for random input.

    pip install torch==2.13.0 keras==3.15.1 h5py==3.16.0
    KERAS_BACKEND=torch python make.py

Weights are drawn, not learnt: larger than Keras begins with, so that every gate is far from its middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

HERE = Path(__file__).parent


def drawn(model: Any) -> Any:
    """Weights that training might have left; a variance must be above zero."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if np.issubdtype(np.dtype(str(variable.dtype)), np.floating):
            value = random.normal(0, 0.6, variable.shape)
            variable.assign(np.abs(value) + 0.1 if "variance" in variable.path else value)
    return model


def series() -> Any:
    """Two layers of different sizes, and the last step alone."""
    return keras.Sequential(
        [
            keras.Input((None, 3)),
            layers.LSTM(6, return_sequences=True),
            layers.Dropout(0.2),
            layers.LSTM(4, use_bias=False),
            layers.Dense(2),
        ]
    )


def text() -> Any:
    """A functional model of tokens, with a mask, names of its own, and a softmax at each step."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(5, 3, name="letters")(tokens)
    x = layers.LSTM(4, return_sequences=True, name="memory")(x)
    return keras.Model(tokens, layers.TimeDistributed(layers.Dense(5, activation="softmax"), name="next")(x))


def normalised() -> Any:
    """Affine layers all about, and four leads of two outputs."""
    first = layers.Normalization()
    first.adapt(np.random.default_rng(1).normal((100.0, -3.0), (20.0, 0.5), (200, 9, 2)))
    return keras.Sequential(
        [
            keras.Input((None, 2)),
            first,
            layers.LSTM(4, return_sequences=True),
            layers.BatchNormalization(),
            layers.LSTM(4),
            layers.Dense(8),
            layers.Reshape((4, 2)),
        ]
    )


def main() -> None:
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(2)
    x = random.normal(size=(2, 12, 3)).astype(np.float32)
    tokens = random.integers(0, 5, (2, 12)).astype(np.int32)
    raw = random.normal((100.0, -3.0), (20.0, 0.5), (2, 12, 2)).astype(np.float32)
    found: dict[str, Any] = {}
    for name, model, inputs in (("series", drawn(series()), x), ("text", drawn(text()), tokens)):
        model.save(HERE / f"{name}.keras")
        model.save(HERE / f"{name}.h5")
        model.save_weights(HERE / f"{name}.weights.h5")
        found |= {f"{name}.x": inputs, f"{name}.y": np.asarray(model.predict(inputs, verbose=0))}
    model = normalised()
    kept = model.layers[0].get_weights()
    drawn(model).layers[0].set_weights(kept)
    model.save(HERE / "normalised.keras")
    found |= {"normalised.x": raw, "normalised.y": np.asarray(model.predict(raw, verbose=0))}
    np.savez(HERE / "outputs.npz", **found)


if __name__ == "__main__":
    main()
