"""`cellstate keys`: makes, lists and takes away the keys of a service; a running one learns of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.settings import SettingError, read

if TYPE_CHECKING:
    from service.keys import Key

DESCRIPTION = """\
Keys for `Authorization: Bearer KEY`. They are kept in the file that the setting `keys` names, by their
SHA-256; the key itself is shown once, when it is made. A service that uses the file notices a change in a
second. Each key has sessions of its own; one with `--namespace` of another key shares that one's.
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `keys`, with add, list and remove."""
    keys = commands.add_parser(
        "keys",
        help="make and take away the keys of a service",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = keys.add_subparsers(title="what", metavar="WHAT", required=True)
    add = _subject(what, "add", _add, "make a key, and print it: on stdout and nowhere else")
    add.add_argument("name", metavar="NAME", help="lower-case letters, digits and . _ -")
    add.add_argument("--role", default="client", help="client, or operator: for metrics alone")
    add.add_argument("--namespace", metavar="NAME", help="whose sessions it uses (default: its own)")
    add.add_argument("--models", metavar="NAMES", help="the only ones it is for, with , between")
    add.add_argument("--sessions", type=int, metavar="N", help="most open ones of a model, in each replica")
    add.add_argument("--requests-per-second", type=float, metavar="R", help="to each replica")
    add.add_argument("--burst", type=int, metavar="N", help="at once (default: a second's)")
    add.add_argument("--body-bytes", type=int, metavar="B", help="largest body")
    _subject(what, "list", _list, "the keys, without what could be used")
    remove = _subject(what, "remove", _remove, "take a key away; its sessions stay for one of its namespace")
    remove.add_argument("name", metavar="NAME")


def _subject(
    what: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace, Path], None],
    help: str,
) -> argparse.ArgumentParser:
    subject = what.add_parser(name, help=help)
    subject.add_argument("--keys", metavar="FILE", help="(default: the setting `keys`)")
    subject.set_defaults(func=_guarded(run))
    return subject


def _guarded(run: Callable[[argparse.Namespace, Path], None]) -> Callable[[argparse.Namespace], int]:
    def guard(args: argparse.Namespace) -> int:
        from service.keys import KeysError

        try:
            path = read({"keys": args.keys}).keys
            if not path:
                raise SettingError("keys: which file? Say --keys FILE, or set CELLSTATE_KEYS")
            run(args, Path(path))
        except (KeysError, SettingError) as error:
            print(f"cellstate: {error}", file=sys.stderr)
            return 2
        return 0

    return guard


def _add(args: argparse.Namespace, path: Path) -> None:
    from service import keys

    drawn = keys.draw()
    wanted: dict[str, Any] = {
        "name": args.name,
        "sha256": keys.digest(drawn.encode()).hex(),
        "created": keys.now(),
        "role": args.role,
        "namespace": args.namespace,
        "models": None if args.models is None else [name for name in args.models.split(",") if name],
        "sessions": args.sessions,
        "requests_per_second": args.requests_per_second,
        "burst": args.burst,
        "body_bytes": args.body_bytes,
    }
    keys.add(path, keys.make(wanted))
    print(drawn, flush=True)
    print(f"key {args.name} is in {path}; it is not shown again", file=sys.stderr)


def _list(args: argparse.Namespace, path: Path) -> None:
    from service import keys

    for key in keys.load(path):
        print("  ".join([key.name, key.role, key.created or "-", *_limits(key)]))


def _limits(key: Key) -> list[str]:
    told = {
        "namespace": key.namespace,
        "models": None if key.models is None else ",".join(key.models),
        "sessions": key.sessions,
        "requests_per_second": key.requests_per_second,
        "burst": key.burst,
        "body_bytes": key.body_bytes,
    }
    return [f"{name}={value}" for name, value in told.items() if value is not None]


def _remove(args: argparse.Namespace, path: Path) -> None:
    from service import keys

    keys.load(path)  # of a file that is not there nothing is made
    keys.remove(path, args.name)
    print(f"key {args.name} is no more; a service that uses {path} knows in a second", file=sys.stderr)
