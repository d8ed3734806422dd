"""Load is sent to this machine only: on another's it would be an attack."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit


class Foreign(ValueError):
    """The address is not this machine's, or is none; the message says which."""


def check(url: str) -> str:
    """The address without a slash at its end, if every address its host stands for is this machine's. Raises
    Foreign."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Foreign(f"{url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Foreign(f"the address must be http://host:port, not {url!r}")
    try:
        found = socket.getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Foreign(f"{host} can't be resolved: {error}") from None
    addresses = sorted({str(address[0]) for *_, address in found})
    foreign = [address for address in addresses if not is_local(address)]
    if foreign:
        raise Foreign(
            f"{url} is not on this machine ({', '.join(foreign)}); load for another's would be an attack"
        )
    return url.rstrip("/")


def is_local(address: str) -> bool:
    """Whether an IP address is one of this machine's: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
