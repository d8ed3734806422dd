"""Checkpoints: all that a training needs to go on as if it had never stopped.

`checkpoint.json` is plain facts and names a tensors file `checkpoint-<epoch>.safetensors`; it is replaced
last, in one step, so a kill at any moment leaves the older pair or the newer one. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from model.bundle import write_whole
from model.errors import TrainingError

FORMAT = 1
FACTS = "checkpoint.json"


def write(directory: Path, epoch: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replaces the checkpoint in a directory. tensors: any names; facts: anything JSON holds."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"checkpoint-{epoch:06d}.safetensors"
    # Cloned: a parameter and its average may share memory, which the format does not allow.
    blob = save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    write_whole(directory / name, blob)
    head = {"format": FORMAT, "tensors": name, "sha256": hashlib.sha256(blob).hexdigest()}
    write_whole(directory / FACTS, (json.dumps({**head, **facts}, indent=2) + "\n").encode())
    for old in directory.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts of the checkpoint in a directory. Raises TrainingError."""
    path = directory / FACTS
    try:
        facts = json.loads(path.read_bytes())
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise TrainingError(f"{path}: not a checkpoint of format {FORMAT}")
        name = str(facts["tensors"])
        if Path(name).name != name:  # a path of its choosing could lead anywhere
            raise TrainingError(f"{path}: {name!r} is not a file beside it")
        blob = (directory / name).read_bytes()
        if hashlib.sha256(blob).hexdigest() != facts["sha256"]:
            raise TrainingError(f"{directory / name}: is not the file that {FACTS} names")
        return load_tensors(blob), facts
    except OSError as error:
        raise TrainingError(f"nothing to resume: {error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{path}: can't be read: {error!r}") from error


def of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter, as tensors of a checkpoint."""
    states = optimizer.state_dict()["state"].items()
    return {f"adam/{index}/{key}": value for index, state in states for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts it back."""
    restored = optimizer.state_dict()
    restored["state"] = {}
    for key, tensor in tensors.items():
        if key.startswith("adam/"):
            _, index, name = key.split("/")
            restored["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(restored)


def check_same(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises TrainingError if a checkpoint's facts differ from this training's in any that this one names."""
    for key, value in json.loads(json.dumps(now)).items():  # as a checkpoint holds them: lists, no tuples
        if before.get(key) != value:
            difference = _difference(before.get(key), value)
            raise TrainingError(f"{directory}: the checkpoint was made with another {key}: {difference}")


def _difference(before: Any, now: Any) -> str:
    """Two facts, or the entries in which they differ if they are tables."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"{before!r}, now {now!r}"
    keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    return "; ".join(f"{k} {before.get(k)!r}, now {now.get(k)!r}" for k in keys)
