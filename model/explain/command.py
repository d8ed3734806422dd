"""`cellstate explain`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import ExplainError


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command."""
    from model.commands import guarded

    command = subparsers.add_parser(
        "explain",
        help="a page of pictures: what happens inside a bundle's LSTM",
        description="Writes one HTML page that works offline: gradients by distance, gates and cells over an "
        "input, time constants and saturation, measured on this bundle.",
    )
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    command.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="the input to look at: a CSV file or a text as for training (default: the model writes a text; "
        "a series runs over synthetic input)",
    )
    command.add_argument(
        "--out", type=Path, default=Path("explain.html"), metavar="FILE", help="(default: %(default)s)"
    )
    command.set_defaults(func=guarded(run))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The steps of one sequence are products too small to be shared: a second thread gains nothing, and where
    something else has the cores the two wait for each other at each (216 s in place of 5 were seen)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(args: argparse.Namespace) -> int:
    """Makes the page. Raises ExplainError, BundleError, DataError."""
    try:
        import matplotlib  # noqa: F401  (asked for before the work, not after it)
    except ImportError as error:
        raise ExplainError("explain needs matplotlib: pip install 'cellstate[train]'") from error
    from model import bundle as bundles
    from model.bundle import write_whole
    from model.explain.page import page
    from model.explain.story import tell

    if not args.out.absolute().parent.is_dir() or args.out.is_dir():
        raise ExplainError(f"{args.out}: not a file in a directory that exists")
    with _one_thread():
        story = tell(
            bundles.load(args.bundle), args.data, lambda line: print(line, file=sys.stderr, flush=True)
        )
    text = page(story).encode("utf-8")
    try:
        write_whole(args.out, text)
    except OSError as error:
        raise ExplainError(f"{args.out}: {error.strerror or error}") from error
    print(f"saved {args.out} ({len(text) / 1e6:.1f} MB)")
    return 0
