"""A bundle comes back as it was saved, and each way it can be wrong has its own error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import bundle as bundles
from model.bundle import MANIFEST, WEIGHTS
from model.errors import (
    BundleDigestMismatch,
    BundleError,
    BundleMalformed,
    BundleMissing,
    BundleShapeMismatch,
    BundleTruncated,
    BundleVersionUnknown,
)
from model.storage import DTYPES, rounded
from tests.model.making import make_bundle, make_prepared, make_spec

SHIPPED = Path(bundles.__file__).parent / "bundles"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    bundles.save(make_bundle(), tmp_path / "tiny")
    return tmp_path / "tiny"


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    edit(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest))


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Other weights under a digest that fits them."""
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS)
    sign(directory)


def sign(directory: Path) -> None:
    digest = sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    edit_manifest(directory, lambda m: m["weights"].update(sha256=digest))


@pytest.mark.parametrize("task", ["series", "text"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_comes_back_as_it_was_saved(tmp_path: Path, task: str, dtype: str) -> None:
    bundle = replace(
        make_bundle(make_spec(task)), training={"seed": 3}, quality={"table": {"model": {"mse_1": 0.5}}}
    )
    stored = bundles.save(bundle, tmp_path / "b", dtype)
    loaded = bundles.load(tmp_path / "b")
    assert (loaded.name, loaded.version, loaded.spec) == (bundle.name, bundle.version, bundle.spec)
    assert (loaded.training, loaded.quality) == (bundle.training, bundle.quality)
    assert loaded.description == bundle.description
    assert loaded.digest == stored.digest == sha256((tmp_path / "b" / WEIGHTS).read_bytes()).hexdigest()
    for name, tensor in bundle.weights.items():
        assert torch.equal(loaded.weights[name], rounded({name: tensor}, dtype)[name])
        assert loaded.weights[name].dtype == torch.float32


def test_its_network_computes_what_was_saved(tmp_path: Path) -> None:
    bundle = make_bundle()
    x = make_prepared(bundle.spec, 6, 2)
    loaded = bundles.save(bundle, tmp_path)
    assert not loaded.network().training
    assert torch.equal(loaded.network()(x)[0], bundle.network()(x)[0])


@pytest.mark.parametrize(("dtype", "share"), [("float16", 0.52), ("int8", 0.29)])
def test_rounded_weights_take_a_part_of_the_room(tmp_path: Path, dtype: str, share: float) -> None:
    bundle = make_bundle(make_spec(hidden=64))
    sizes = []
    for stored in ("float32", dtype):
        bundles.save(bundle, tmp_path / stored, stored)
        sizes.append((tmp_path / stored / WEIGHTS).stat().st_size)
    assert sizes[1] < share * sizes[0]


def test_saving_what_was_loaded_changes_nothing(tmp_path: Path) -> None:
    once = bundles.save(make_bundle(make_spec("text")), tmp_path / "once", "int8")
    assert bundles.save(once, tmp_path / "again", "int8").digest == once.digest


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    bundles.save(make_bundle(seed=0), tmp_path)
    bundles.save(make_bundle(seed=1), tmp_path)
    assert torch.equal(bundles.load(tmp_path).weights["head.bias"], make_bundle(seed=1).weights["head.bias"])
    assert {p.name for p in tmp_path.iterdir()} == {MANIFEST, WEIGHTS}


def test_nothing_in_the_file_is_pickled(saved: Path) -> None:
    blob = (saved / WEIGHTS).read_bytes()
    assert json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "../up", "a/b", ".hidden", "x" * 65])
def test_a_name_that_cant_stand_in_a_url_is_refused(tmp_path: Path, name: str, saved: Path) -> None:
    with pytest.raises(BundleMalformed, match="name must match"):
        bundles.save(make_bundle(name=name), tmp_path / "other")
    edit_manifest(saved, lambda m: m.update(name=name))
    with pytest.raises(BundleMalformed, match="name must match"):
        bundles.load(saved)


def test_wrong_weights_are_not_saved(tmp_path: Path) -> None:
    bundle = make_bundle()
    broken = {**bundle.weights, "head.bias": torch.zeros(1)}
    with pytest.raises(BundleShapeMismatch, match=r"head.bias is \[1\], must be \[6\]"):
        bundles.save(replace(bundle, weights=broken), tmp_path / "b")
    assert not (tmp_path / "b").exists()


# --- each way it can be wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS])
def test_a_missing_file_is_named(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(BundleMissing, match=file):
        bundles.load(saved)
    (saved / file).mkdir()
    with pytest.raises(BundleMissing, match=file):
        bundles.load(saved)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="nowhere"):
        bundles.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", '{"format": 1', "\x00\x01", "[" * 100_000, "[]", "3", "null"])
def test_a_manifest_that_is_no_json_object(saved: Path, text: str) -> None:
    (saved / MANIFEST).write_text(text)
    with pytest.raises(BundleMalformed, match=MANIFEST):
        bundles.load(saved)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_format(saved: Path, version: object) -> None:
    edit_manifest(saved, lambda m: m.update(format=version))
    with pytest.raises(BundleVersionUnknown, match="this release reads format 1"):
        bundles.load(saved)


REQUIRED = ["name", "version", "task", "architecture", "inputs", "outputs", "vocabulary", "weights"]


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_named(saved: Path, field: str) -> None:
    edit_manifest(saved, lambda m: m.pop(field))
    with pytest.raises(BundleMalformed, match=f"field '{field}' is missing"):
        bundles.load(saved)


@pytest.mark.parametrize("field", ["file", "sha256"])
def test_a_missing_field_of_the_weights_is_named(saved: Path, field: str) -> None:
    edit_manifest(saved, lambda m: m["weights"].pop(field))
    with pytest.raises(BundleMalformed, match=f"field '{field}' is missing"):
        bundles.load(saved)


@pytest.mark.parametrize("field", [*REQUIRED, "description", "training", "quality"])
@pytest.mark.parametrize("value", [None, 7, True, [7], 1.5])
def test_a_field_of_the_wrong_type_is_refused(saved: Path, field: str, value: object) -> None:
    edit_manifest(saved, lambda m: m.update({field: value}))
    with pytest.raises(BundleMalformed, match=MANIFEST):
        bundles.load(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["architecture"].update(hidden_size=0), "hidden_size must be a whole number"),
        (lambda m: m["architecture"].update(hidden_size=5.0), "hidden_size must be a whole number"),
        (lambda m: m["architecture"].update(num_layers=True), "num_layers must be a whole number"),
        (lambda m: m["architecture"].update(num_layers=10**9), "num_layers must be a whole number"),
        (lambda m: m["architecture"].update(residual="yes"), "residual must be true or false"),
        (lambda m: m["architecture"].update(cell="gru"), "cell must be 'lstm'"),
        (lambda m: m["architecture"].update(bidirectional=True), "bidirectional"),
        (lambda m: m["architecture"].pop("input_size"), "input_size"),
        (lambda m: m["architecture"].update(task="image"), "task is 'series', architecture.task 'image'"),
        (lambda m: m["architecture"].update(input_size=3), "2 inputs are named, the architecture has 3"),
        (lambda m: m["inputs"][0].update(std=0), "std of 's0' must be above 0"),
        (lambda m: m["inputs"][0].update(std=-1.0), "std of 's0' must be above 0"),
        (lambda m: m["inputs"][0].update(mean=float("nan")), "must be finite numbers, not nan"),
        (lambda m: m["inputs"][0].update(std=float("inf")), "must be finite numbers, not inf"),
        (lambda m: m["inputs"][0].update(mean="1.0"), "must be finite numbers, not '1.0'"),
        (lambda m: m["inputs"][0].update(mean=10**400), "too large"),
        (lambda m: m["inputs"][0].pop("unit"), "field 'unit' is missing"),
        (lambda m: m["inputs"][1].update(name="s0"), "name a signal twice"),
        (lambda m: m["inputs"].append("s9"), "inputs must hold objects"),
        (
            lambda m: m["weights"].update(file="../../etc/passwd"),
            "weights.file must be 'weights.safetensors'",
        ),
        (lambda m: m["weights"].update(file="/etc/passwd"), "weights.file must be 'weights.safetensors'"),
    ],
)
def test_a_wrong_value_is_named(saved: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_manifest(saved, edit)
    with pytest.raises(BundleMalformed, match=message):
        bundles.load(saved)


def test_a_vocabulary_must_fit_the_head(tmp_path: Path) -> None:
    bundles.save(make_bundle(make_spec("text")), tmp_path)
    edit_manifest(tmp_path, lambda m: m.update(vocabulary="abca"))
    with pytest.raises(BundleMalformed, match="names a character twice"):
        bundles.load(tmp_path)
    edit_manifest(tmp_path, lambda m: m.update(vocabulary="abcde"))
    with pytest.raises(BundleMalformed, match="has 5 characters, the head 4"):
        bundles.load(tmp_path)


def test_one_changed_byte_of_the_weights_is_noticed(saved: Path) -> None:
    blob = bytearray((saved / WEIGHTS).read_bytes())
    blob[-1] ^= 1
    (saved / WEIGHTS).write_bytes(blob)
    with pytest.raises(BundleDigestMismatch, match="SHA-256"):
        bundles.load(saved)


def test_weights_cut_anywhere_are_noticed(saved: Path) -> None:
    blob = (saved / WEIGHTS).read_bytes()
    for length in [*range(12), *range(12, len(blob), 37), len(blob) - 1]:
        (saved / WEIGHTS).write_bytes(blob[:length])
        with pytest.raises(BundleTruncated, match=f"{length} bytes"):
            bundles.load(saved)


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff" * 8,
        (10**18).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
        (20000).to_bytes(8, "little") + b"[" * 20000,
        b"PK\x03\x04 a zip, as torch.save writes",
    ],
)  # fmt: skip
def test_weights_that_are_no_safetensors(saved: Path, blob: bytes) -> None:
    (saved / WEIGHTS).write_bytes(blob)
    sign(saved)
    with pytest.raises(BundleTruncated, match="not safetensors"):
        bundles.load(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update({"head.bias": torch.zeros(7)}), r"head.bias is \[7\], must be \[6\]"),
        (lambda t: t.update({"head.weight": t["head.weight"].T.contiguous()}), r"head.weight is \[5, 6\]"),
        (lambda t: t.pop("lstm.weight_hh_l1"), "tensor lstm.weight_hh_l1 is missing"),
        (lambda t: t.update({"lstm.weight_ih_l2": torch.zeros(1)}), "unexpected tensor lstm.weight_ih_l2"),
        (lambda t: t["lstm.bias_l0"].fill_(float("nan")), "lstm.bias_l0 holds a number that is not finite"),
        (lambda t: t["lstm.bias_l0"].fill_(float("inf")), "lstm.bias_l0 holds a number that is not finite"),
        (lambda t: t.update({"head.bias": torch.zeros(6, dtype=torch.int32)}), "head.bias is torch.int32"),
        (lambda t: t.update({"head.bias": torch.zeros(6).double()}), "head.bias is torch.float64"),
    ],
)
def test_a_wrong_tensor_is_named(
    saved: Path, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    edit_weights(saved, edit)
    with pytest.raises(BundleShapeMismatch, match=message):
        bundles.load(saved)


INT8, SCALE = torch.int8, "head.weight.scale"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(SCALE), f"tensor {SCALE} is missing: head.weight is int8"),
        (lambda t: t.update({SCALE: torch.ones(5)}), rf"{SCALE} is torch.float32 \[5\], must be .* \[6\]"),
        (lambda t: t.update({SCALE: torch.ones(6).half()}), f"{SCALE} is torch.float16"),
        (lambda t: t[SCALE].fill_(float("nan")), "head.weight holds a number that is not finite"),
        (lambda t: t.update({"head.weight": torch.ones(6, 5)}), f"unexpected tensor {SCALE}"),
        (lambda t: t.update({"head.weight": torch.ones(6, 4, dtype=INT8)}), r"head.weight is \[6, 4\]"),
        (lambda t: t.update({"head.bias": torch.ones(6, dtype=INT8)}), "head.bias.scale is missing"),
        (
            lambda t: t.update({"head.bias": torch.ones(6, dtype=INT8), "head.bias.scale": torch.ones(6)}),
            r"head.bias is int8 and \[6\]: only matrices are",
        ),
        (lambda t: t.pop("lstm.weight_hh_l1"), "tensor lstm.weight_hh_l1.* is missing"),
    ],
)
def test_a_wrong_tensor_of_whole_numbers_is_named(
    tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    bundles.save(make_bundle(), tmp_path, "int8")
    edit_weights(tmp_path, edit)
    with pytest.raises(BundleShapeMismatch, match=message):
        bundles.load(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_bytes_only_a_bundle_error_comes_out(saved: Path, data: st.DataObject) -> None:
    """Some bytes of either file replaced: it loads, or a BundleError says why not."""
    for file in (MANIFEST, WEIGHTS):
        original = saved / f"{file}.original"
        if not original.exists():
            original.write_bytes((saved / file).read_bytes())
        (saved / file).write_bytes(original.read_bytes())
    file = data.draw(st.sampled_from([MANIFEST, WEIGHTS]))
    blob = bytearray((saved / file).read_bytes())
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    (saved / file).write_bytes(blob)
    if file == WEIGHTS:
        sign(saved)
    try:
        bundles.load(saved)
    except BundleError:
        pass


# --- finding them ---------------------------------------------------------------------------------------


def test_bundles_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        bundles.save(make_bundle(name=name), tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert [p.name for p in bundles.find(tmp_path)] == ["a", "b"]
    assert bundles.find(tmp_path / "a") == [tmp_path / "a"]
    assert bundles.find(tmp_path / "empty") == []
    with pytest.raises(BundleMissing):
        bundles.find(tmp_path / "nowhere")


def test_the_shipped_bundles_load_and_are_small() -> None:
    assert [p.name for p in bundles.find(SHIPPED)] == ["ett", "shakespeare", "watch"]
    for path in bundles.find(SHIPPED):
        bundle = bundles.load(path)
        assert bundle.name == path.name
        assert bundle.spec.closes_loop or bundle.spec.rules is not None
        assert bundle.training["command"].startswith("cellstate train ")
        assert sum(f.stat().st_size for f in path.iterdir()) <= 5_000_000
        assert "/" not in bundle.training["command"] + bundle.training["data"]["file"]
