"""What a foreign model's numbers mean: signals by flags or from a JSON file, characters from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.config import Signal
from model.errors import ConversionError

IDENTITY = "no means and deviations were given: clients send and get what the network itself takes and gives"


@dataclass(frozen=True)
class Meanings:
    """As the user gives them. file: a JSON object of `inputs` and `outputs`, which takes the place of the
    rest."""

    file: Path | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    units: Mapping[str, str] | None = None
    means: Mapping[str, float] | None = None
    stds: Mapping[str, float] | None = None


def signals(
    meanings: Meanings, inputs: int, outputs: int
) -> tuple[tuple[Signal, ...], tuple[Signal, ...], list[str]]:
    """Inputs, outputs, and notes on what was taken for granted. Raises ConversionError."""
    if meanings.file is not None:
        given = (meanings.inputs, meanings.outputs, meanings.units, meanings.means, meanings.stds)
        if any(given):
            raise ConversionError(f"{meanings.file} names the signals: leave the flags that do so too")
        read, written = _from_file(meanings.file)
    else:
        read, written = _from_flags(meanings, inputs, outputs)
    for what, found, size in (("inputs", read, inputs), ("outputs", written, outputs)):
        if len(found) != size:
            raise ConversionError(f"{len(found)} {what} are named, the network has {size}")
        for s in found:
            if not (math.isfinite(s.mean) and math.isfinite(s.std) and s.std > 0):
                raise ConversionError(
                    f"{what}: {s.name!r} needs a finite mean and a std above 0, not {s.std!r}"
                )
    notes = []
    if all((s.mean, s.std) == (0, 1) for s in (*read, *written)):
        notes.append(IDENTITY)
    if inputs == outputs and {s.name for s in read} != {s.name for s in written}:
        notes.append(
            "if the outputs are the next step's inputs, name them alike: `horizon` then runs on them"
        )
    return read, written, notes


def _from_flags(
    meanings: Meanings, inputs: int, outputs: int
) -> tuple[tuple[Signal, ...], tuple[Signal, ...]]:
    names = meanings.inputs or tuple(f"x{k}" for k in range(inputs))
    written = meanings.outputs or tuple(f"y{k}" for k in range(outputs))
    tables: dict[str, Mapping[str, Any]] = {
        "unit": meanings.units or {},
        "mean": meanings.means or {},
        "std": meanings.stds or {},
    }
    for what, table in tables.items():
        unknown = [name for name in table if name not in (*names, *written)]
        if unknown:
            raise ConversionError(
                f"--{what} {unknown[0]}=...: there is no such signal; there is {[*names, *written]}"
            )

    def signal(name: str) -> Signal:
        found = Signal(name)
        for what, table in tables.items():
            if name in table:
                found = replace(found, **{what: table[name]})
        return found

    return tuple(map(signal, names)), tuple(map(signal, written))


def _from_file(path: Path) -> tuple[tuple[Signal, ...], tuple[Signal, ...]]:
    table = _json(path)
    if not isinstance(table, dict) or not {"inputs", "outputs"} >= set(table) >= {"inputs"}:
        raise ConversionError(f'{path}: must be an object {{"inputs": [...], "outputs": [...]}}')
    inputs = _entries(table["inputs"], {}, path)
    known = {signal.name: signal for signal in inputs}
    return inputs, _entries(table.get("outputs", []), known, path)


def _entries(entries: Any, known: Mapping[str, Signal], path: Path) -> tuple[Signal, ...]:
    """A list of names, or of objects with name, unit, mean, std. A name alone may be that of an input."""
    if not isinstance(entries, list):
        raise ConversionError(f"{path}: must hold lists of signals, not {entries!r}")
    found = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(known.get(entry, Signal(entry)))
            continue
        if not isinstance(entry, dict) or not {"name"} <= set(entry) <= {"name", "unit", "mean", "std"}:
            raise ConversionError(f"{path}: a signal has name, unit, mean and std; this is {entry!r}")
        texts = [entry["name"], entry.get("unit", "")]
        numbers = [entry.get("mean", 0.0), entry.get("std", 1.0)]
        if not all(isinstance(t, str) for t in texts) or not all(_is_number(n) for n in numbers):
            raise ConversionError(
                f"{path}: name and unit are texts, mean and std are numbers; this is {entry!r}"
            )
        found.append(Signal(texts[0], texts[1], float(numbers[0]), float(numbers[1])))
    return tuple(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def vocabulary(path: Path, size: int) -> str:
    """The characters by their token. The file is a JSON string, list of characters, or object of character to
    token; any other file is the characters themselves. Raises ConversionError."""
    if path.suffix == ".json":
        characters = _characters(_json(path), path)
    else:
        characters = _read(path)
        if len(characters) == size + 1 and characters.endswith("\n"):
            characters = characters[:-1]  # an editor's
    if len(characters) != size or len(set(characters)) != size:
        raise ConversionError(
            f"{path}: has {len(characters)} characters, {len(set(characters))} of them different; the "
            f"network has {size}"
        )
    return characters


def _characters(value: Any, path: Path) -> str:
    if isinstance(value, dict):
        pairs: Sequence[tuple[Any, Any]] = sorted(((v, k) for k, v in value.items() if isinstance(v, int)))
        if len(pairs) != len(value) or [v for v, _ in pairs] != list(range(len(pairs))):
            raise ConversionError(f"{path}: must give the characters tokens from 0 on, each once")
        value = [k for _, k in pairs]
    if isinstance(value, list):
        for token, character in enumerate(value):
            if not isinstance(character, str) or len(character) != 1:
                raise ConversionError(
                    f"{path}: token {token} is {character!r}, must be one character: words and padding have "
                    "no place in a text model"
                )
        value = "".join(value)
    if not isinstance(value, str):
        raise ConversionError(
            f"{path}: must be a string, a list of characters, or an object of character to token"
        )
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not JSON: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: not UTF-8 text") from error
