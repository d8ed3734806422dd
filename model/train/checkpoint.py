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
