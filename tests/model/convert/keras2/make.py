"""Made the files in this directory: models of Keras 2, their ONNX graphs by tf2onnx, and their outputs.

pip install tensorflow-cpu==2.15.1 'numpy<2' onnx==1.16.2 tf2onnx==1.17.0
python make.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf2onnx
from tensorflow import keras

HERE = Path(__file__).parent
layers = keras.layers


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
    """A functional model of tokens, with a softmax at each step."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(5, 3, name="letters")(tokens)
    x = layers.LSTM(4, return_sequences=True, name="memory")(x)
    return keras.Model(tokens, layers.TimeDistributed(layers.Dense(5, activation="softmax"), name="next")(x))


def main() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 12, 3)).astype(np.float32)
    tokens = random.integers(0, 5, (2, 12)).astype(np.int32)
    found: dict[str, Any] = {}
    for name, model, inputs in (("series", series(), x), ("text", text(), tokens)):
        model.set_weights([random.normal(0, 0.6, w.shape) for w in model.get_weights()])
        model.save(HERE / f"{name}.h5")
        model.save_weights(HERE / f"{name}_weights.h5")
        shape = [None, None, *inputs.shape[2:]]
        signature = [tf.TensorSpec(shape, tf.as_dtype(inputs.dtype), name="x")]
        tf2onnx.convert.from_keras(model, signature, opset=15, output_path=str(HERE / f"{name}.onnx"))
        found |= {f"{name}.x": inputs, f"{name}.y": model.predict(inputs, verbose=0)}
    np.savez(HERE / "outputs.npz", **found)


if __name__ == "__main__":
    main()
