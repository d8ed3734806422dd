"""Where to send what: the door, or a replica's own address for as long as that works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

HEADER = "cellstate-direct-url"


class Addresses:
    """The door, and the direct addresses that failed and are left alone until some time has passed."""

    def __init__(self, door: str, *, direct: bool, rest_s: float, clock: Callable[[], float]) -> None:
        parts = urlsplit(door)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the address must be http://host:port or https://..., not {door!r}")
        self.door = door.rstrip("/")
        self._direct, self._rest_s, self._clock = direct, rest_s, clock
        self._secure = parts.scheme == "https"
        self._resting: dict[str, float] = {}

    def usable(self, url: object) -> str:
        """A direct address as it was told; empty if it is none, or the door itself, or would carry the key
        and the data in the clear where the door does not."""
        if not self._direct or not isinstance(url, str):
            return ""
        url = url.rstrip("/")
        schemes = ("https",) if self._secure else ("http", "https")
        return url if url != self.door and urlsplit(url).scheme in schemes else ""

    def pick(self, direct: str) -> str:
        """The direct address, or the door if there is none or it failed a moment ago."""
        if not direct:
            return self.door
        until = self._resting.get(direct)
        if until is not None:
            if self._clock() < until:
                return self.door
            self._resting.pop(direct, None)
        return direct

    def failed(self, direct: str) -> None:
        """Leaves a direct address alone for some time."""
        self._resting[direct] = self._clock() + self._rest_s


class Route:
    """The way to one session. direct: its replica's own address; empty: only the door is known."""

    def __init__(self, addresses: Addresses, direct: object = "") -> None:
        self._addresses = addresses
        self._picked = addresses.door
        self.direct = addresses.usable(direct)

    def pick(self) -> str:
        self._picked = self._addresses.pick(self.direct)
        return self._picked

    @property
    def at_door(self) -> bool:
        """Whether what was picked last is the door."""
        return self._picked == self._addresses.door

    def failed(self) -> None:
        """What was picked last did not work."""
        if not self.at_door:
            self._addresses.failed(self._picked)

    def learn(self, headers: Mapping[str, str]) -> None:
        """From a response: the session may have moved."""
        told = headers.get(HEADER)
        if told is not None:
            self.direct = self._addresses.usable(told)
