"""Files of real Keras, 3 and 2 (keras/make.py and keras2/make.py made them), give what Keras gave."""

from __future__ import annotations

import builtins
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.model.convert.making import bring, brought, outputs

FILES = Path(__file__).parent / "keras"
FORMS = ("keras", "h5", "weights.h5")


def kept(name: str, made_by: str = "keras") -> tuple[Any, Any]:
    """What the model was given, and what it gave."""
    with np.load(FILES.parent / made_by / "outputs.npz") as found:
        return found[f"{name}.x"], found[f"{name}.y"]


@pytest.fixture(autouse=True)
def _letters() -> None:
    Path("letters.txt").write_text("abcde")


@pytest.mark.parametrize("form", FORMS)
def test_a_series_model(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bring(FILES / f"series.{form}") == 0
    x, y = kept("series")
    np.testing.assert_allclose(outputs(brought(), x)[:, -1, 0], y, atol=1e-5, rtol=0)
    shown = capsys.readouterr().out
    assert "lstm_1.recurrent_kernel [4, 16] transposed" in shown
    assert "layer 1 of 4 units is filled up to 6" in shown


@pytest.mark.parametrize("form", FORMS)
def test_a_text_model(form: str) -> None:
    assert bring(FILES / f"text.{form}", "--vocabulary", "letters.txt") == 0
    x, y = kept("text")
    np.testing.assert_allclose(np.exp(outputs(brought(), x)[:, :, 0]), y, atol=1e-5, rtol=0)


def test_normalisations_and_leads() -> None:
    """Raw inputs, as Keras's Normalization layer got them: its figures are now the bundle's."""
    assert bring(FILES / "normalised.keras") == 0
    x, y = kept("normalised")
    np.testing.assert_allclose(outputs(brought(), x)[:, -1], y, atol=1e-5, rtol=0)
    assert brought().spec.inputs[0].mean == pytest.approx(100, abs=2)
    assert brought().spec.architecture.leads == 4


def test_a_unit_of_ones_own_comes_before_the_networks_normalisation() -> None:
    """x0 is sent in thousands of what Keras was trained with."""
    assert bring(FILES / "normalised.keras", "--std", "x0=0.001") == 0
    x, y = kept("normalised")
    np.testing.assert_allclose(outputs(brought(), x * [0.001, 1])[:, -1], y, atol=1e-5, rtol=0)


Change = Callable[[dict[str, Any]], None]


def rewritten(name: str, change: Change) -> Path:
    """The .keras file with another configuration."""
    to = Path("changed.keras")
    with zipfile.ZipFile(FILES / f"{name}.keras") as old, zipfile.ZipFile(to, "w") as new:
        config = json.loads(old.read("config.json"))
        change(config)
        new.writestr("config.json", json.dumps(config))
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    return to


def layer(index: int, **values: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        entry = config["config"]["layers"][index]
        entry["class_name"] = values.pop("class_name", entry["class_name"])
        entry["config"].update(values)

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("series", layer(1, recurrent_activation="hard_sigmoid"), "layer lstm: recurrent_activation is hard"),
        ("series", layer(3, activation="relu"), "layer lstm_1: activation is relu; an LSTM here has tanh"),
        ("series", layer(1, go_backwards=True), "layer lstm: go_backwards reads the future"),
        ("series", layer(1, class_name="Bidirectional"), "layer lstm (Bidirectional): it reads the future"),
        ("series", layer(1, class_name="GRU"), "layer lstm (GRU): a GRU has three gates; train an LSTM"),
        ("series", layer(4, activation="relu"), "layer dense (Dense): its activation is relu; the head here"),
        ("series", layer(4, activation="softmax"), "the head ends with a softmax: that is a text model's"),
        ("series", layer(2, class_name="LayerNormalization"), "layer dropout (LayerNormalization): it depen"),
        ("series", layer(2, class_name="Lambda"), "layer dropout (Lambda): a network here is"),
        ("series", layer(1, return_sequences=False), "layer lstm_1 reads the last step alone of the LSTM be"),
        ("series", lambda config: config.update(class_name="Mine"), "a Mine model's way through its layers"),
        ("series", lambda config: config.pop("config"), "its configuration is not a model's"),
        ("text", lambda c: c["config"].update(output_layers=[["next", 0, 0], ["memory", 0, 0]]), "--output"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent_is_named(
    name: str, change: Change, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(rewritten(name, change), message, capsys)


@pytest.mark.parametrize("file", ["series.h5", "series_weights.h5", "series.onnx"])
def test_a_series_model_of_keras_2_and_by_tf2onnx(file: str) -> None:
    assert bring(FILES.parent / "keras2" / file) == 0
    x, y = kept("series", "keras2")
    np.testing.assert_allclose(outputs(brought(), x)[:, -1, 0], y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("file", ["text.h5", "text_weights.h5", "text.onnx"])
def test_a_text_model_of_keras_2_and_by_tf2onnx(file: str) -> None:
    assert bring(FILES.parent / "keras2" / file, "--vocabulary", "letters.txt") == 0
    x, y = kept("text", "keras2")
    np.testing.assert_allclose(np.exp(outputs(brought(), x)[:, :, 0]), y, atol=1e-5, rtol=0)


def of_weights(change: Callable[[Any], None]) -> Path:
    shutil.copy(FILES / "series.weights.h5", "changed.weights.h5")
    with h5py.File("changed.weights.h5", "r+") as file:
        change(file)
    return Path("changed.weights.h5")


def put(file: Any, array: Any, key: str = "layers/lstm/cell/vars/1") -> None:
    del file[key]
    file[key] = array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: put(f, np.full((6, 24), np.nan, "f")), "vars/1 holds a number that is not finite"),
        (lambda f: put(f, np.zeros((6, 23), "f")), "lstm.recurrent_kernel is [6, 23], must be [6, 24]"),
        (lambda f: put(f, np.zeros((5, 20), "f")), "lstm.kernel is [3, 24], must be [3, 20]"),
        (lambda f: put(f, np.zeros((6, 24), "i1")), "layer lstm (LSTM) has arrays [[3, 24], [24]], of which"),
        (lambda f: put(f, h5py.ExternalLink("other.h5", "/x")), "truncated, damaged or no Keras file"),
        (lambda f: put(f, np.zeros((5, 2), "f"), "layers/dense/vars/0"), "dense.kernel [5, 2] transposed ta"),
        (lambda f: f.move("layers/lstm", "layers/bidirectional"), "layer lstm (Bidirectional): it reads the"),
        (lambda f: f.copy("layers/dense", "layers/dense_1"), "several Dense layers, and a file of weights a"),
        (lambda f: f.pop("layers"), "the weights hold no group of layers"),
    ],
)  # fmt: skip
def test_weights_that_dont_fit_are_named(
    change: Callable[[Any], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(of_weights(change), message, capsys)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file(form: str, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (FILES / f"series.{form}").read_bytes()
    Path(f"cut.{form}").write_bytes(whole[: int(len(whole) * share)])
    refused(Path(f"cut.{form}"), f"cut.{form}: truncated, damaged or no Keras file", capsys)


def test_garbage_and_other_archives(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.h5").write_bytes(b"garbage")
    refused(Path("x.h5"), "x.h5: truncated, damaged or no Keras file", capsys)
    with zipfile.ZipFile("x.keras", "w") as archive:
        archive.writestr("readme", "no model")
    refused(Path("x.keras"), "x.keras: a zip archive without config.json", capsys)


def test_without_h5py_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return own(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(FILES / "series.h5", "a Keras file needs h5py: pip install 'cellstate[import]'", capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocabulary", "letters.txt", "--leads", "2"], "a text model has a vocabulary in place of signal"),
        ([], "an embedding of 5 tokens makes it a text model: name them with --vocabulary FILE"),
        (["--head", "next"], "--key, --lstm, --head, --embedding, --ignore and --residual are for torch che"),
        (["--vocabulary", "letters.txt", "--output", "nothing"], "--output nothing: there is no such layer"),
    ],
)  # fmt: skip
def test_flags_that_dont_go_with_the_file(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(FILES / "text.keras", message, capsys, *flags)


def refused(file: Path, message: str, capsys: pytest.CaptureFixture[str], *flags: str) -> None:
    assert bring(file, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("brought").exists()
