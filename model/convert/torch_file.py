"""A checkpoint on disk, saved by torch.save or as safetensors: read without running what is in it, and
mapped.

A state dict says nothing of how its modules are called, so they are told apart by their shapes, and what
can't be told apart is asked for.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from model.convert.foreign import Affine, Array, Foreign, Layer, Probe, told
from model.convert.torch_state import RECURRENT, read_embedding, read_linear, read_lstm
from model.errors import ConversionError

StateDict = dict[str, Tensor]
HOW = "save the state dict alone: torch.save(model.state_dict(), 'model.pt')"
WITHOUT = "a state dict tells no activations: the head is taken to be linear, on the LSTM's own output"
#: Keys that training loops keep the state dict under, beside the optimiser's
KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
#: What belongs to a torch.nn.LSTM or LSTMCell itself
OWN = re.compile(r"(weight_(ih|hh|hr)|bias_(ih|hh))(_l\d+)?")
#: What torch.load raises for bytes that are no checkpoint
DAMAGED = (
    RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ImportError, OverflowError, MemoryError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """Modules by name, where the user says: lstm in the order they run; ignore: not part of the forward
    pass."""

    lstm: tuple[str, ...] = ()
    head: str = ""
    embedding: str = ""
    ignore: tuple[str, ...] = ()


def read(path: Path, key: str, names: Names) -> Foreign:
    """The network in a checkpoint. key: where the state dict is, if the file holds more; dotted.
    Raises ConversionError."""
    return find(_unwrapped(_loaded(path), key, path), names)


def find(state: StateDict, names: Names) -> Foreign:
    """The LSTM, head and embedding of a state dict. Raises ConversionError that names what can't be told."""
    modules = names.lstm or _recurrent(state)
    layers = [layer for module in modules for layer in read_lstm(state, module)]
    used = {k for k in state if _is_own(k, modules) or _in_any(k, names.ignore)}
    last = layers[-1]
    gives = last.hidden_size if last.projection is None else len(last.projection)
    rest = {k: tensor for k, tensor in state.items() if k not in used}
    matrices = [k.removesuffix(".weight") for k, t in rest.items() if k.endswith(".weight") and t.dim() == 2]
    embedding, head = _told_apart(rest, matrices, names, layers[0].weight_ih.shape[1], gives)
    used |= {f"{m}.{part}" for m in (head, embedding) if m for part in ("weight", "bias")}
    for k in rest:
        if k not in used:
            raise ConversionError(_no_place(k, state[k]))
    stages: list[Layer | Affine] = [*layers]
    if head:
        stages.append(read_linear(state, head))
    table = read_embedding(state, embedding) if embedding else None
    return Foreign(
        kind="torch state dict",
        checked_by="torch.nn.LSTM in float64 with the file's own tensors",
        stages=tuple(stages),
        probe=lambda mean, std: [_probe(state, modules, head, embedding, mean, std)],
        embedding=table,
        embedding_source="" if table is None else told(f"{embedding}.weight", table),
        notes=(WITHOUT,),
    )


def _loaded(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return load_safetensors(path.read_bytes())
        if start[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise ConversionError(
                        f"{path}: a TorchScript archive holds code, which is not run; {HOW}, with "
                        "torch.jit.load(...) as the model"
                    )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConversionError(f"{path}: not safetensors: {error}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise ConversionError(
                f"{path}: holds an object ({found[1]}) that only running code could read; {HOW}"
            ) from error
        raise ConversionError(
            f"{path}: not a checkpoint that torch.load reads, or a pickle; {HOW}"
        ) from error
    except DAMAGED as error:
        raise ConversionError(
            f"{path}: truncated or damaged, torch.load says: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error


def _unwrapped(loaded: Any, key: str, path: Path) -> StateDict:
    """The state dict in what was loaded: itself, or what one of its keys holds."""
    for part in key.split(".") if key else ():
        if not isinstance(loaded, Mapping) or part not in loaded:
            raise ConversionError(f"{path}: there is no {part!r} of --key {key}; {_holds(loaded)}")
        loaded = loaded[part]
    if not isinstance(loaded, Mapping):
        raise ConversionError(f"{path}: holds a {type(loaded).__name__}, not a state dict; {HOW}")
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if any(RECURRENT.fullmatch(k) for k in tensors):
        return tensors
    inside = {
        str(k): v
        for k, v in loaded.items()
        if isinstance(v, Mapping) and any(RECURRENT.fullmatch(str(name)) for name in v)
    }
    chosen = [k for k in KEYS if k in inside] or list(inside)
    if len(chosen) == 1 or (chosen and chosen[0] in KEYS):
        return {str(k): v for k, v in inside[chosen[0]].items() if isinstance(v, Tensor)}
    if inside:
        raise ConversionError(f"{path}: holds several state dicts, {sorted(inside)}; say which with --key")
    raise ConversionError(f"{path}: there is no LSTM in it (no tensor ...weight_hh_l0); {_holds(loaded)}")


def _holds(loaded: Any) -> str:
    return f"it holds {sorted(map(str, loaded))[:8]}" if isinstance(loaded, Mapping) else "it holds no names"


def _recurrent(state: StateDict) -> tuple[str, ...]:
    """The one recurrent module."""
    found = list(dict.fromkeys(m["module"] or "" for k in state if (m := RECURRENT.fullmatch(k))))
    if not found:
        raise ConversionError(f"there is no LSTM in it (no tensor ...weight_hh_l0); {_holds(state)}")
    if len(found) > 1:
        for module in found:
            read_lstm(state, module)  # a GRU, or a second direction, is the better reason
        raise ConversionError(
            f"{len(found)} recurrent modules: {', '.join(found)}; if each reads the one before it, "
            f"give them in their order (--lstm {','.join(found)})"
        )
    return (found[0],)


def _told_apart(
    rest: StateDict, matrices: list[str], names: Names, reads: int, gives: int
) -> tuple[str, str]:
    """The names of embedding and head, "" for none: the one matrix without a bias that has the LSTM's inputs
    as its columns, and the one that has its outputs."""
    for what, name in (("--embedding", names.embedding), ("--head", names.head)):
        if name and name not in matrices:
            raise ConversionError(
                f"{what} {name}: there is no such matrix {name}.weight; there is {matrices}"
            )
    free = [m for m in matrices if m not in (names.embedding, names.head)]
    columns = {m: rest[f"{m}.weight"].shape[1] for m in matrices}
    tables = [m for m in free if f"{m}.bias" not in rest and columns[m] == reads]
    heads = [m for m in free if columns[m] == gives]
    embedding, head = names.embedding, names.head
    if not embedding and not head and len(tables) > 1:
        by_name = [m for m in tables if "emb" in m.rpartition(".")[2].lower()]
        tables = by_name if len(by_name) == 1 else tables
    if not embedding and len(tables) == 1 and (head or tables != heads):
        embedding = tables[0]
    heads = [m for m in heads if m != embedding]
    if not head and len(heads) == 1:
        head = heads[0]
    left = [m for m in free if m not in (embedding, head)]
    if (not head and len(heads) > 1) or (not embedding and len(tables) > 1 and len(left) > 0):
        raise ConversionError(
            f"which of {', '.join(left)} is the head on the LSTM's {gives} outputs, and which is the "
            f"embedding of its {reads} inputs? Say it with --head and --embedding; --ignore drops others"
        )
    return embedding, head


def _in_any(key: str, modules: Sequence[str]) -> bool:
    return any(key == m or key.startswith(f"{m}.") for m in modules)


def _is_own(key: str, modules: Sequence[str]) -> bool:
    """Whether it is a weight or bias of one of these LSTMs."""
    module, _, name = key.rpartition(".")
    return module in modules and OWN.fullmatch(name) is not None


def _no_place(key: str, tensor: Tensor) -> str:
    what = f"{told(key, tensor)} has no equivalent here"
    advice = "if the forward pass doesn't use it, leave it out with --ignore " + key.rpartition(".")[0]
    if "parametrizations" in key or key.endswith(("_raw", "_g", "_v", "_orig")):
        return f"{what}: take the weight's parametrisation away before saving (torch.nn.utils.parametrize)"
    if tensor.dim() <= 1:
        return f"{what} (a normalisation? LayerNorm and BatchNorm can't be folded in); {advice}"
    return f"{what}: a network here is [embedding], LSTM layers and one linear head; {advice}"


@torch.no_grad()
def _probe(
    state: StateDict, modules: Sequence[str], head: str, embedding: str, mean: Array, std: Array
) -> Probe:
    """torch's own modules, filled from the file, in float64 on random input."""
    T, B = 32, 3
    generator = torch.Generator().manual_seed(0)
    x: Tensor
    if embedding:
        x = torch.randint(0, len(state[f"{embedding}.weight"]), (T, B), generator=generator)
        h = nn.functional.embedding(x, state[f"{embedding}.weight"].double())
    else:
        x = torch.randn(T, B, len(mean), generator=generator) * torch.tensor(std) + torch.tensor(mean)
        h = x = x.float().double()
    for module in modules:
        h = _run(state, module, h)
    if head:
        bias = state.get(f"{head}.bias")
        h = nn.functional.linear(h, state[f"{head}.weight"].double(), None if bias is None else bias.double())
    return Probe(x.double().numpy(), h.double().numpy())


def _run(state: StateDict, module: str, x: Tensor) -> Tensor:
    """One recurrent module of the file on x [T, B, I]."""
    prefix = f"{module}." if module else ""
    own = {k[len(prefix) :]: v.double() for k, v in state.items() if _is_own(k, (module,))}
    bias = any(k.startswith("bias") for k in own)
    if "weight_ih" in own:
        cell = nn.LSTMCell(x.shape[-1], own["weight_hh"].shape[1], bias, dtype=torch.float64)
        _load(cell, own)
        h, c = torch.zeros(2, x.shape[1], cell.hidden_size, dtype=torch.float64)
        steps = []
        for row in x:
            h, c = cell(row, (h, c))
            steps.append(h)
        return torch.stack(steps)
    projection = own.get("weight_hr_l0")
    lstm = nn.LSTM(
        x.shape[-1],
        len(own["weight_ih_l0"]) // 4,
        sum(k.startswith("weight_ih_l") for k in own),
        bias,
        proj_size=0 if projection is None else len(projection),
        dtype=torch.float64,
    )
    _load(lstm, own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a projected one is slow
        y: Tensor = lstm(x)[0]
    return y


def _load(module: nn.Module, own: StateDict) -> None:
    """Fills a module; a bias that the file lacks is zero."""
    module.load_state_dict({k: own.get(k, torch.zeros_like(v)) for k, v in module.state_dict().items()})
