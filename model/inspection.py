"""`cellstate inspect`: what a bundle is, as facts, and as a page for the terminal."""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from model.bundle import Bundle

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
BARS = "▁▂▃▄▅▆▇█"
#: Edges of the bars of time constants, in steps: three a power of ten, from 0.1 to 1,000.
EDGES = [10 ** (k / 3) for k in range(-3, 10)]


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command."""
    from model.commands import guarded

    command = subparsers.add_parser("inspect", help="what a bundle is")
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    command.add_argument("--json", action="store_true", help="the same facts as JSON")
    command.set_defaults(func=guarded(run))


def run(args: argparse.Namespace) -> int:
    """Prints the facts. Raises BundleError."""
    from model import bundle as bundles

    bundle = bundles.load(args.bundle)
    found = facts(bundle, args.bundle)
    if args.json:
        print(json.dumps(_finite(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(lines(found)))
    return 0


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for; a manifest may hold it."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def facts(bundle: Bundle, directory: Path) -> dict[str, Any]:
    """All that `inspect` shows, as JSON holds it. Sizes in bytes, time constants in steps."""
    arch = bundle.spec.architecture
    return {
        "name": bundle.name,
        "version": bundle.version,
        "task": arch.task,
        "description": bundle.description,
        "sha256": bundle.digest,
        "architecture": {**asdict(arch), "parameters": arch.parameters},
        "state_bytes": 2 * arch.num_layers * arch.hidden_size * 4,
        "inputs": [asdict(s) for s in bundle.spec.inputs],
        "outputs": [asdict(s) for s in bundle.spec.outputs],
        "vocabulary": bundle.spec.vocabulary,
        **({} if bundle.spec.rules is None else {"rules": asdict(bundle.spec.rules)}),
        **({} if bundle.spec.calendar is None else {"calendar": asdict(bundle.spec.calendar)}),
        "tensors": _tensors(directory),
        "bundle_bytes": sum(path.stat().st_size for path in directory.iterdir() if path.is_file()),
        "forget_bias": [_forget_bias(bundle.weights[f"lstm.bias_l{k}"]) for k in range(arch.num_layers)],
        "quality": dict(bundle.quality),
        "training": dict(bundle.training),
    }


def _tensors(directory: Path) -> list[dict[str, Any]]:
    """Every tensor of the weights file as it is stored, in the order of their names."""
    from model.bundle import WEIGHTS

    with (directory / WEIGHTS).open("rb") as file:  # `load` has checked it
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [
        {
            "name": name,
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "bytes": entry["data_offsets"][1] - entry["data_offsets"][0],
        }
        for name, entry in sorted(header.items())
        if name != "__metadata__"
    ]


def _forget_bias(bias: Tensor) -> dict[str, Any]:
    """Time constants -1 / ln sigmoid(b_f), from a layer's bias [4H]: what the forget gates do without input
    and with h = 0."""
    import torch

    from model.explain.units import bias_time_constants, quantiles

    tau = bias_time_constants(bias)
    counts = torch.bincount(
        torch.bucketize(tau, torch.tensor(EDGES, dtype=tau.dtype)), minlength=len(EDGES) + 1
    )
    shown = ("least", "10%", "median", "90%", "most")
    return {**dict(zip(shown, quantiles(tau, QUANTILES), strict=True)), "counts": counts.tolist()}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The facts for a terminal."""
    arch = found["architecture"]
    yield f"{found['name']}  version {found['version']}  ({found['task']})"
    if found["description"]:
        yield found["description"]
    yield ""
    layers = "1 layer" if arch["num_layers"] == 1 else f"{arch['num_layers']} layers"
    yield f"LSTM         {layers} of {arch['hidden_size']}, {arch['parameters']:,} parameters"
    yield (
        f"state        {found['state_bytes']:,} bytes a session (h and c, float32); "
        f"a thousand sessions {_size(1000 * found['state_bytes'])}"
    )
    yield f"on disk      {_size(found['bundle_bytes'])}"
    yield f"SHA-256      {found['sha256']}"
    yield from _what_goes_in(found)
    yield from _forget_lines(found["forget_bias"])
    yield from _tensor_lines(found["tensors"])
    yield from _quality_lines(found["quality"])
    yield ""
    yield "training" if found["training"] else "training     not known"
    yield from _nested(found["training"])


def _what_goes_in(found: Mapping[str, Any]) -> Iterator[str]:
    arch = found["architecture"]
    if found["task"] == "text":
        yield f"embedding    {arch['input_size']}"
        yield f"vocabulary   {len(found['vocabulary'])} characters: {_cut(repr(found['vocabulary']), 400)}"
        return
    if found["task"] == "watch":
        yield f"reads        {found['inputs'][0]['name']}, of any one series"
        yield f"says         {', '.join(signal['name'] for signal in found['outputs'])}"
        yield f"rules        {', '.join(f'{name} {value:g}' for name, value in found['rules'].items())}"
        return
    leads = "1 step" if arch["leads"] == 1 else f"{arch['leads']} steps"
    added = ", added to the present value" if arch["residual"] else ""
    rank = f", of {arch['rank']} functions of the lead" if arch["rank"] else ""
    yield f"leads        {leads} ahead at once{added}{rank}"
    if arch["quantiles"]:
        yield f"quantiles    {', '.join(f'{level:g}' for level in arch['quantiles'])}"
    if calendar := found.get("calendar"):
        told = ", ".join(calendar["features"])
        yield f"calendar     {told} of {found['inputs'][-1]['name']}; {calendar['spacing_s']:g} s a step"
    both = found["inputs"] == found["outputs"]
    for what in ("inputs",) if both else ("inputs", "outputs"):
        yield ""
        yield f"{'inputs, and the same outputs' if both else what}"
        yield from _table(
            ("name", "unit", "mean", "std"),
            [(s["name"], s["unit"] or "-", f"{s['mean']:.4g}", f"{s['std']:.4g}") for s in found[what]],
            left=2,
        )


def _forget_lines(layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield ""
    yield "forget gates: time constants by their bias alone, in steps"
    rows = []
    for k, entry in enumerate(layers):
        most = max(entry["counts"])
        bars = "".join(BARS[math.ceil(7 * n / most)] if n else " " for n in entry["counts"])
        rows.append((f"layer {k + 1}", f"|{bars}|", *(f"{entry[q]:.3g}" for q in list(entry)[:-1])))
    yield from _table(("", "0.1 to 1000", "least", "10 %", "median", "90 %", "most"), rows, left=2)


def _tensor_lines(tensors: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield ""
    yield "weights"
    rows = [
        (t["name"], " × ".join(map(str, t["shape"])) or "1", t["dtype"].lower(), f"{t['bytes']:,}")
        for t in tensors
    ]
    rows.append(("all", "", "", f"{sum(t['bytes'] for t in tensors):,}"))
    yield from _table(("tensor", "shape", "type", "bytes"), rows, left=1)


def _quality_lines(quality: Mapping[str, Any]) -> Iterator[str]:
    from model.evaluate import figures

    yield ""
    if not quality:
        yield "quality      not measured"
        return
    part, rows = quality.get("part"), quality.get("rows")
    if "benchmark" in quality:
        yield f"quality on the {quality['benchmark']}, {quality.get('streams')} streams"
    else:
        yield (
            "quality"
            + (f" on the {part} part" if part else "")
            + (f", rows {rows[0]} to {rows[-1]}" if isinstance(rows, list) and rows else "")
            + (f", {quality['sequences']} sequences" if "sequences" in quality else "")
        )
    list(figures(quality))  # raises BundleMalformed for a foreign form
    for group in ("table", "in_units"):
        entries: Mapping[str, Mapping[str, float]] = quality.get(group) or {}
        names = list(dict.fromkeys(name for entry in entries.values() for name in entry))
        if names:
            if group == "in_units":
                yield "  in units"
            cells = [
                (row, *(f"{entry[n]:.5g}" if n in entry else "-" for n in names))
                for row, entry in entries.items()
            ]
            yield from _table(("", *names), cells, left=1)


def _nested(table: Mapping[str, Any]) -> Iterator[str]:
    """Key and value; of tables in it one line each, of a list of tables the last."""
    for key, value in table.items():
        if isinstance(value, list) and value and isinstance(value[-1], Mapping):
            key, value = f"{key}, last of {len(value)}", value[-1]
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, ""))
            value = textwrap.fill(value, 84, subsequent_indent=" " * 24, break_long_words=False)
        yield f"  {key:21} {value}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> Iterator[str]:
    """Columns as wide as their widest cell, the first `left` of them flush left."""
    all_rows = [list(head), *map(list, rows)]
    widths = [max(len(row[k]) for row in all_rows) for k in range(len(head))]
    for row in all_rows:
        cells = (
            c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:g} bytes"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
