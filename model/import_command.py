"""`cellstate import`: a trained LSTM of torch, Keras or ONNX becomes a bundle. Heavy imports wait."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import ConversionError

if TYPE_CHECKING:
    from model.convert.importing import Imported, Wish

DESCRIPTION = """\
Reads a trained network of LSTM layers and a linear head, and writes it as a bundle: a torch checkpoint
(.pt of a state dict, .safetensors), a Keras model (.keras, .h5, .weights.h5) or an ONNX graph (.onnx). No
code in it is run. Both networks then run on the same random input; only if they agree is it written.
"""


def register(subparsers: argparse._SubParsersAction[Any]) -> argparse.ArgumentParser:
    """Adds the command, without its `func`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "import", help="make a bundle of a trained torch, Keras or ONNX model", description=DESCRIPTION
    )
    add = command.add_argument
    add("file", type=Path, metavar="FILE", help="the checkpoint or model")
    add("--name", required=True, help="the model's name, as it stands in its URL")
    add("--version", default="1", help="the model's version")
    add("--description", default="", help="one sentence for the manifest")
    add("--out", type=Path, metavar="DIR", help="where the bundle goes (default: bundles/NAME)")
    add(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the stored weights"
    )
    add(
        "--leads",
        type=int,
        default=0,
        help="steps ahead that the head's rows stand for, lead by lead (default: 1)",
    )
    series = command.add_argument_group("signals of a series model")
    add = series.add_argument
    add(
        "--signals",
        type=Path,
        metavar="JSON",
        help="file with inputs and outputs: name, unit, mean, std of each",
    )
    add(
        "--inputs",
        type=_names,
        default=(),
        metavar="A,B",
        help="names, in the network's order (default: x0, x1, ...)",
    )
    add("--outputs", type=_names, default=(), metavar="A,B", help="likewise (default: y0, y1, ...)")
    add("--unit", action="append", default=[], metavar="NAME=UNIT", help="may be repeated")
    add(
        "--mean",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="of a signal in training (default: 0)",
    )
    add("--std", action="append", default=[], metavar="NAME=NUMBER", help="likewise (default: 1)")
    add = command.add_argument_group("text model").add_argument
    add("--vocabulary", type=Path, metavar="FILE", help="its characters by token: text, or JSON")
    add = command.add_argument_group("torch checkpoint, where its shapes leave a doubt").add_argument
    add("--key", default="", help="where in the file the state dict is")
    add("--lstm", type=_names, default=(), metavar="A,B", help="LSTM modules by name, in the order they run")
    add("--head", default="", metavar="NAME", help="the linear layer on the LSTM's output")
    add("--embedding", default="", metavar="NAME", help="the embedding of the tokens")
    add("--ignore", type=_names, default=(), metavar="A,B", help="modules that the forward pass doesn't use")
    add(
        "--residual", action="store_true", help="the forward pass adds the present value to the head's output"
    )
    add = command.add_argument_group("Keras model or ONNX graph").add_argument
    add("--output", default="", metavar="NAME", help="which output, if there are several (Keras: a layer)")
    return command


def run(args: argparse.Namespace) -> int:
    """Raises ModelError."""
    from model import bundle as bundles
    from model.convert.importing import read, write

    bundles.check_name(args.name)
    out: Path = args.out or Path("bundles") / args.name
    imported = read(args.file, _wish(args))
    _show(args.file, imported)
    label = bundles.Bundle(args.name, args.version, imported.spec, imported.weights, args.description)
    try:
        saved = write(imported, args.file, label, out, args.dtype, _command(args))
    except OSError as error:
        raise ConversionError(f"{out}: {error.strerror}") from error
    print(f"saved {out}  SHA-256 {saved.digest}")
    return 0


def _wish(args: argparse.Namespace) -> Wish:
    from model.convert.importing import Wish
    from model.convert.signals import Meanings
    from model.convert.torch_file import Names

    return Wish(
        key=args.key,
        names=Names(args.lstm, args.head, args.embedding, args.ignore),
        output=args.output,
        leads=args.leads,
        residual=args.residual,
        meanings=Meanings(
            args.signals,
            args.inputs,
            args.outputs,
            _pairs("unit", args.unit) or None,
            _numbers("mean", args.mean) or None,
            _numbers("std", args.std) or None,
        ),
        vocabulary=args.vocabulary,
        dtype=args.dtype,
    )


def _show(path: Path, imported: Imported) -> None:
    """What was found, tensor by tensor, what was taken for granted, and the check."""
    arch = imported.spec.architecture
    print(f"{path.name}: {imported.kind}")
    for name, shape in arch.shapes().items():
        print(f"  {f'{name} {list(shape)}':32} from {imported.origins[name]}")
    what = (
        "characters"
        if arch.task == "text"
        else f"input(s), {arch.output_size} output(s) x {arch.leads} lead(s)"
    )
    size = arch.output_size if arch.task == "text" else arch.input_size
    layers = f"{arch.num_layers} layer(s) of {arch.hidden_size}"
    print(f"{arch.task} model: {size} {what}, {layers}, {arch.parameters:,} weights")
    for note in imported.notes:
        print(f"note: {note}")
    print(
        f"checked on random input against {imported.checked_by}: outputs up to {imported.scale:.3g}, "
        f"largest difference {imported.difference:.2g}"
    )


def _command(args: argparse.Namespace) -> str:
    """The command that makes it again. Of files only the name: a manifest travels."""
    words = ["cellstate", "import", args.file.name]
    for name, value in vars(args).items():
        if name in ("file", "out", "func") or not value:
            continue
        flag = f"--{name}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [word for entry in value for word in (flag, entry)]
        elif isinstance(value, tuple):
            words += [flag, ",".join(value)]
        else:
            words += [flag, value.name if isinstance(value, Path) else str(value)]
    return shlex.join(words)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _pairs(flag: str, entries: list[str]) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ConversionError(f"--{flag} must be NAME=..., not {entry!r}")
        pairs[name] = value
    return pairs


def _numbers(flag: str, entries: list[str]) -> dict[str, float]:
    numbers = {}
    for name, value in _pairs(flag, entries).items():
        try:
            numbers[name] = float(value)
        except ValueError as error:
            raise ConversionError(f"--{flag} {name}={value}: {value!r} is not a number") from error
    return numbers
