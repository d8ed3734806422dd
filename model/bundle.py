"""Bundles: one trained model on disk, `manifest.json` and `weights.safetensors`.

The manifest names the SHA-256 of the weights; both are checked before a tensor is looked at. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from model.calendar import Calendar
from model.config import Architecture, ModelSpec, Signal
from model.errors import (
    BundleConflict,
    BundleDigestMismatch,
    BundleMalformed,
    BundleMissing,
    BundleShapeMismatch,
    BundleTruncated,
    BundleVersionUnknown,
)
from model.network import Network
from model.storage import Unreadable, decode, encode
from model.versions import order
from model.watch.rules import Rules

FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Bundle:
    """One model, ready to use. `weights` are float32 by the names of `Architecture.shapes`."""

    name: str
    version: str
    spec: ModelSpec
    weights: Mapping[str, Tensor]
    description: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""  # SHA-256 of the weights file, hexadecimal; empty before it is saved

    def network(self) -> Network:
        """The network with these weights, in evaluation mode."""
        network = Network(self.spec.network)
        network.load_state_dict(dict(self.weights))
        return network.eval()


def save(bundle: Bundle, directory: Path, dtype: str = "float32") -> Bundle:
    """Writes the bundle, weights first, each file whole or not at all. Returns it as a reader will see it.

    dtype: of `storage.DTYPES`. With "float16" the file is half the size, with "int8" a quarter, and the model
    *is* the rounded weights.
    """
    check_name(bundle.name)
    _check_weights(bundle.spec.architecture, bundle.weights, directory)
    blob = save_tensors(encode(bundle.weights, dtype))
    arch = bundle.spec.architecture
    manifest = {
        "format": FORMAT,
        "name": bundle.name,
        "version": bundle.version,
        "task": arch.task,
        "description": bundle.description,
        "architecture": {"cell": "lstm", **asdict(arch), "parameters": arch.parameters},
        "inputs": [asdict(s) for s in bundle.spec.inputs],
        "outputs": [asdict(s) for s in bundle.spec.outputs],
        "vocabulary": bundle.spec.vocabulary,
        **({} if bundle.spec.rules is None else {"rules": asdict(bundle.spec.rules)}),
        **({} if bundle.spec.calendar is None else {"calendar": asdict(bundle.spec.calendar)}),
        "training": bundle.training,
        "quality": bundle.quality,
        "weights": {"file": WEIGHTS, "dtype": dtype, "sha256": hashlib.sha256(blob).hexdigest()},
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / WEIGHTS, blob)
    write_whole(directory / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    return load(directory)


def load(directory: Path) -> Bundle:
    """Reads and checks a bundle. Raises a `BundleError` that says which file is wrong, and how."""
    manifest = _read_manifest(directory)
    try:
        spec = _spec(manifest)
        name, version = _text(manifest, "name"), _text(manifest, "version")
        description = _text(manifest, "description", "")
        training, quality = _table(manifest, "training", {}), _table(manifest, "quality", {})
        entry = _table(manifest, "weights")
        expected, file = _text(entry, "sha256"), _text(entry, "file")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleMalformed(f"{directory / MANIFEST}: {what}") from error
    if not NAME_PATTERN.fullmatch(name):
        raise BundleMalformed(f"{directory / MANIFEST}: name must match {NAME_PATTERN.pattern}, not {name!r}")
    if file != WEIGHTS:  # a path of the manifest's choosing could lead anywhere
        raise BundleMalformed(f"{directory / MANIFEST}: weights.file must be {WEIGHTS!r}, not {file!r}")
    stored, digest = _read_weights(directory / WEIGHTS, expected)
    try:
        weights = decode(stored)
    except Unreadable as error:
        raise BundleShapeMismatch(f"{directory / WEIGHTS}: {error}") from error
    _check_weights(spec.architecture, weights, directory)
    return Bundle(
        name=name,
        version=version,
        spec=spec,
        weights=weights,
        description=description,
        training=training,
        quality=quality,
        digest=digest,
    )


#: The versions of one model, the newest first
Lineage = tuple[Bundle, ...]


def lineages(bundles: Iterable[Bundle]) -> list[Lineage]:
    """Bundles by model, in the order of their names' first appearance. Raises BundleConflict if two versions
    of a model are not told apart by their version or by their weights, or are of another task."""
    models: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        models.setdefault(bundle.name, []).append(bundle)
    for name, versions in models.items():
        versions.sort(key=lambda bundle: order(bundle.version), reverse=True)
        for newer, older in pairwise(versions):
            if order(newer.version) == order(older.version):
                raise BundleConflict(f"two bundles are named {name!r} and are of version {newer.version!r}")
            if newer.spec.architecture.task != older.spec.architecture.task:
                raise BundleConflict(f"the versions of {name!r} are of two tasks: give one another name")
        digests = [bundle.digest for bundle in versions]
        if len(set(digests)) < len(digests):
            raise BundleConflict(f"two versions of {name!r} have the same weights, digest {digests[0]}")
    return [tuple(versions) for versions in models.values()]


def check_name(name: str) -> None:
    """Raises BundleMalformed for a name that can't stand in a URL."""
    if not NAME_PATTERN.fullmatch(name):
        raise BundleMalformed(f"a model's name must match {NAME_PATTERN.pattern}, not {name!r}")


def find(directory: Path) -> list[Path]:
    """The bundles below a directory (or the directory itself, if it is one), by name."""
    if (directory / MANIFEST).exists():
        return [directory]
    if not directory.is_dir():
        raise BundleMissing(f"{directory}: no such directory of bundles")
    return sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleMissing(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleMalformed(f"{path}: not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleMalformed(f"{path}: must be a JSON object")
    if manifest.get("format") != FORMAT:
        raise BundleVersionUnknown(
            f"{path}: format {manifest.get('format')!r}; this release reads format {FORMAT}"
        )
    return manifest


def _spec(manifest: dict[str, Any]) -> ModelSpec:
    arch = dict(_table(manifest, "architecture"))
    arch.pop("parameters", None)
    if arch.pop("cell", None) != "lstm":
        raise ValueError("architecture.cell must be 'lstm'")
    task = _text(manifest, "task")
    if arch.get("task") != task:
        raise ValueError(f"task is {task!r}, architecture.task {arch.get('task')!r}")
    return ModelSpec(
        architecture=Architecture(**arch),
        inputs=_signals(manifest, "inputs"),
        outputs=_signals(manifest, "outputs"),
        vocabulary=_text(manifest, "vocabulary"),
        rules=Rules(**_table(manifest, "rules")) if task == "watch" else None,
        calendar=Calendar(**_table(manifest, "calendar")) if "calendar" in manifest else None,
    )


def _signals(manifest: dict[str, Any], field_name: str) -> tuple[Signal, ...]:
    entries = manifest[field_name]
    if not isinstance(entries, list):
        raise TypeError(f"{field_name} must be a list, not {entries!r}")
    signals = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise TypeError(f"{field_name} must hold objects, not {entry!r}")
        name, unit = _text(entry, "name"), _text(entry, "unit")
        for number in (entry["mean"], entry["std"]):
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"mean and std of {name!r} must be finite numbers, not {number!r}")
        signals.append(Signal(name, unit, float(entry["mean"]), float(entry["std"])))
    return tuple(signals)


def _text(table: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = table[key] if default is None else table.get(key, default)
    if not isinstance(value, str):
        raise TypeError(f"{key} must be a string, not {value!r}")
    return value


def _table(table: Mapping[str, Any], key: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    value = table[key] if default is None else table.get(key, default)
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be an object, not {value!r}")
    return value


def _read_weights(path: Path, expected: str) -> tuple[dict[str, Tensor], str]:
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise BundleMissing(f"{path}: {error.strerror}") from error
    # Length first: a cut file is reported as cut, which says more than a digest that differs.
    header = int.from_bytes(blob[:8], "little") if len(blob) >= 8 else -1
    try:
        entries = json.loads(blob[8 : 8 + header]) if 0 <= header <= len(blob) - 8 else {}
        ends = [int(e["data_offsets"][1]) for n, e in entries.items() if n != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        ends = []
    if not ends or len(blob) < 8 + header + max(ends):
        raise BundleTruncated(f"{path}: the file is truncated or not safetensors ({len(blob)} bytes)")
    digest = hashlib.sha256(blob).hexdigest()
    if digest != expected:
        raise BundleDigestMismatch(f"{path}: SHA-256 is {digest}, the manifest says {expected}")
    try:
        return load_tensors(blob), digest
    except SafetensorError as error:
        raise BundleTruncated(f"{path}: not safetensors: {error}") from error


def _check_weights(arch: Architecture, weights: Mapping[str, Tensor], directory: Path) -> None:
    shapes = arch.shapes()
    where = directory / WEIGHTS
    for name, shape in shapes.items():
        if name not in weights:
            raise BundleShapeMismatch(f"{where}: tensor {name} is missing")
        tensor = weights[name]
        if tuple(tensor.shape) != shape:
            raise BundleShapeMismatch(f"{where}: {name} is {list(tensor.shape)}, must be {list(shape)}")
        if not torch.isfinite(tensor).all():
            raise BundleShapeMismatch(f"{where}: {name} holds a number that is not finite")
    surplus = sorted(set(weights) - set(shapes))
    if surplus:
        raise BundleShapeMismatch(f"{where}: unexpected tensor {surplus[0]}")


def write_whole(path: Path, data: bytes) -> None:
    """A file with these bytes: after a crash the old one or the new one is there, never a part."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
