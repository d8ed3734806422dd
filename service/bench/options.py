"""What `cellstate bench engine` is asked to measure, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("fp32", "bf16", "int8")
LARGEST = 16384  # of any count: a typing error must not exhaust the memory


class Refused(Exception):
    """An option can't be used; the message says which and why."""


class Wrong(Exception):
    """A contestant computes something else: its time means nothing."""


@dataclass(frozen=True, slots=True)
class Options:
    """seconds: of each cell of a table. steps: of a chunk. json: a path, "-" for stdout, "" for none."""

    hidden: tuple[int, ...]
    layers: int
    inputs: int
    batch: tuple[int, ...]
    precision: tuple[str, ...]
    threads: int
    device: str
    seconds: float
    chunks: bool
    sessions: tuple[int, ...]
    steps: int
    profile: bool
    json: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, as text: `read` checks them."""
    add = parser.add_argument
    add("--hidden", default="256,512", metavar="N,N", help="hidden sizes (default: %(default)s)")
    add("--layers", default="2", metavar="N", help="LSTM layers (default: %(default)s)")
    add("--inputs", default="8", metavar="N", help="inputs, and outputs (default: %(default)s)")
    add("--batch", default="1,4,16,64,256", metavar="N,N", help="sessions in a tick (default: %(default)s)")
    add("--precision", default="fp32,bf16,int8", metavar="P,P", help="of our weights (default: %(default)s)")
    add("--threads", default="1", metavar="N", help="of every contestant (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--seconds", default="2", metavar="S", help="for each cell of a table (default: %(default)s)")
    add("--chunks", action="store_true", help="also whole sequences, of equal and of ragged lengths")
    add("--sessions", default="1,8,64", metavar="N,N", help="of --chunks (default: %(default)s)")
    add("--steps", default="512", metavar="N", help="of a session of --chunks (default: %(default)s)")
    add("--profile", action="store_true", help="also what a tick costs around the model's arithmetic")
    add("--json", default="", metavar="PATH", help="write machine, options and every row; - for stdout")


def read(args: argparse.Namespace) -> Options:
    """Raises Refused."""
    return Options(
        hidden=_counts("hidden", args.hidden),
        layers=_count("layers", args.layers),
        inputs=_count("inputs", args.inputs),
        batch=_counts("batch", args.batch),
        precision=_precisions(args.precision),
        threads=_count("threads", args.threads),
        device=_device(args.device),
        seconds=_seconds(args.seconds),
        chunks=args.chunks,
        sessions=_counts("sessions", args.sessions),
        steps=_count("steps", args.steps),
        profile=args.profile,
        json=_path(args.json),
    )


def _count(name: str, text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise Refused(f"--{name}: {text!r} is not a whole number") from None
    if not 1 <= count <= LARGEST:
        raise Refused(f"--{name}: {count} is not from 1 to {LARGEST}")
    return count


def _counts(name: str, text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(name, part) for part in text.split(",")))


def _precisions(text: str) -> tuple[str, ...]:
    for part in (parts := text.split(",")):
        if part not in PRECISIONS:
            raise Refused(f"--precision: {part!r} is not one of {', '.join(PRECISIONS)}")
    return tuple(dict.fromkeys(parts))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise Refused(f"--seconds: {text!r} is not a number") from None
    if not 0 < seconds <= 600:
        raise Refused(f"--seconds: {text} is not above 0 and at most 600")
    return seconds


def _device(text: str) -> str:
    if text.partition(":")[0] not in ("cpu", "cuda"):
        raise Refused(f"--device: {text!r} is not cpu, cuda or cuda:N")
    if text == "cpu":
        return text  # torch need not be asked
    from model.errors import TrainingError
    from model.train.jobs import pick_device

    try:
        return str(pick_device(text))
    except TrainingError as error:
        raise Refused(f"--device: {error}") from error


def _path(text: str) -> str:
    if text not in ("", "-") and (Path(text).is_dir() or not Path(text).absolute().parent.is_dir()):
        raise Refused(f"--json: {text} can't be written: no such directory, or it is one")
    return text
