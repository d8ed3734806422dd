"""The file of keys: who may use the service, as what, and how much of it.

The file has no key in it, only the SHA-256 of each. A key is 256 random bits that we draw ourselves, so there
is no dictionary to try against the digests, and a slow hash (bcrypt, argon2) would protect nothing: it is for
passwords that people choose, and would cost every request milliseconds.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

#: Of every key that we draw: those who look for keys in places where none should be find it by this
PREFIX = "cellstate_"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


class KeysError(ValueError):
    """The file of keys can't be used, or not changed like that. The message names the file and the place."""


class Key(BaseModel):
    """One key. Quotas are of each replica; None: no limit but the service's own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: str = ""
    #: client: sessions and predictions. operator: metrics, and the models' facts; no session
    role: Literal["client", "operator"] = "client"
    namespace: Name | None = Field(None, description="whose sessions; default those of the key's own name")
    models: list[str] | None = Field(None, description="None: all")
    sessions: int | None = Field(None, ge=0, description="most open ones of a model")
    requests_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(None, ge=1, description="requests at once; default what a second allows")
    body_bytes: int | None = Field(None, ge=1)

    @field_validator("requests_per_second", mode="before")
    @classmethod
    def _whole_too(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def of(self) -> str:
        """The namespace of its sessions."""
        return self.namespace or self.name


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1] = 1
    keys: list[Key] = []


def draw() -> str:
    """A new key."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def make(fields: dict[str, Any]) -> Key:
    """A key of those fields. Raises KeysError."""
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        raise KeysError(_first(error)) from None


def load(path: Path) -> list[Key]:
    """The keys in a file. Raises KeysError, with the reason."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except FileNotFoundError:
        raise KeysError(f"there is no {path}; `cellstate keys add NAME --keys {path}` makes it") from None
    except OSError as error:
        raise KeysError(f"{path} can't be read: {error.strerror}") from error
    if mode & stat.S_IWOTH:
        raise KeysError(f"{path} can be written by everybody on this machine; chmod 600 it")
    return parse(text, str(path))


def parse(text: bytes, where: str) -> list[Key]:
    """The keys in a file's text. Raises KeysError."""
    try:
        keys = _File.model_validate_json(text).keys
    except ValidationError as error:
        raise KeysError(f"{where}: {_first(error)}") from None
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        twice = next((key.name for n, key in enumerate(keys) if values[n] in values[:n]), None)
        if twice is not None:
            raise KeysError(f"{where}: key {twice} is there twice, by its {field}")
    return keys


def _first(error: ValidationError) -> str:
    """What is wrong, and where; never the value: it may be a key that was put in the wrong place."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    return f"{place + ': ' if place else ''}{first['msg']}"


def add(path: Path, key: Key) -> None:
    """Puts a key into the file, which is made if there is none. Raises KeysError if the name is taken."""
    with _changing(path) as keys:
        if any(known.name == key.name for known in keys):
            raise KeysError(f"{path}: there is a key {key.name} already; `cellstate keys remove` it first")
        keys.append(key)


def remove(path: Path, name: str) -> None:
    """Takes a key out of the file. Raises KeysError if it is not there."""
    with _changing(path) as keys:
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            there = ", ".join(key.name for key in keys) or "none"
            raise KeysError(f"{path}: there is no key {name}; there is {there}")
        keys[:] = kept


def now() -> str:
    """The time, for `created`: RFC 3339."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys, written back at the end; one writer at a time. Raises KeysError."""
    path = Path(os.path.realpath(path))  # a link stays one
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeysError(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        keys = load(path) if path.exists() else []
        yield keys
        try:
            _write(path, keys)
            os.fsync(directory)
        except OSError as error:
            raise KeysError(f"{path} can't be written: {error.strerror}") from error
    finally:
        os.close(directory)


def _write(path: Path, keys: list[Key]) -> None:
    """The whole file in one move: who reads it meets the old one or the new one."""
    text = json.dumps({"version": 1, "keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=2)
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(number, "w") as file:
            if path.exists():  # the service may run as another user than who adds a key for it
                was = path.stat()
                if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), was.st_uid, was.st_gid)
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
