"""Who asks: the key of a request, what it may do and how much of it. Off where no file of keys is set.

A key is known by the SHA-256 of what was sent, looked up in a table. How long the lookup takes tells nothing
that helps: it depends on digests, and to choose one is to find a preimage of SHA-256. So there is nothing
that a comparison in constant time would hide, and no key is kept in memory to make the next lookup quicker.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import Forbidden, QuotaExceeded, Unauthorized
from service.keys import Key, KeysError, digest, load
from service.sessions.counters import KeyCounters
from service.sessions.names import prefix_of

log = logging.getLogger("cellstate.api")

RELOAD_S = 1.0  # between two looks at the file
LONGEST_HEADER = 512  # bytes of an Authorization header that are read at all
CHALLENGE = (b"www-authenticate", b"Bearer")
#: The stream's own protocol. Browsers can't set a header, but they name protocols: `bearer.KEY` is one
PROTOCOL, BEARER = "cellstate", "bearer."
NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
UNLIMITED = 2**62

#: Whom each path is for, by its template. open: for everybody; page: too, but it tells of the models only to
#: who has a key; both: for every key. All else is for clients, and what begins with /metrics for operators.
RULES = {
    "/healthz": "open",
    "/readyz": "open",
    "/v1/models/{model}/handover": "open",  # it asks for another secret
    "/openapi.json": "page",
    "/docs": "page",
    "/v1/models/{model}": "both",
    "/v1/models": "both",
}


def rule_of(template: str) -> str:
    return RULES.get(template, "operator" if template.startswith("/metrics") else "client")


class Bucket:
    """Requests of a key: `rate` a second in the long run, `burst` at once. In one replica."""

    __slots__ = ("_at", "_clock", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._left, self._at = burst, clock()

    def set(self, rate: float, burst: float) -> None:
        """Other limits from now on; what was used stays used."""
        self._fill()
        self.rate, self.burst, self._left = rate, burst, min(self._left, burst)

    def take(self, wanted: int) -> int:
        """Takes as many as there are, `wanted` at most; how many."""
        self._fill()
        taken = max(0, min(wanted, int(self._left + 1e-9)))
        self._left -= taken
        return taken

    def reserve(self) -> float:
        """Takes one that may not be there yet: the seconds until it is."""
        self._fill()
        self._left -= 1
        return max(0.0, -self._left / self.rate)

    @property
    def wait_s(self) -> float:
        """Seconds until there is one."""
        return max(0.0, (1 - self._left) / self.rate)

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now


@dataclass(slots=True, eq=False)
class Identity:
    """Whom a request is of. key: None for everybody where there are no keys, for another replica, and for
    who asks without a key for what is open. prefix: of its sessions' names. peer: another replica passed the
    request on."""

    key: Key | None = None
    prefix: str = ""
    peer: bool = False
    trusted: bool = True  # sees what is served
    bucket: Bucket | None = None
    revoked: bool = False
    requests: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def namespace(self) -> str:
        return self.prefix[:-1]

    @property
    def body_bytes(self) -> int:
        return UNLIMITED if self.key is None or self.key.body_bytes is None else self.key.body_bytes

    def may_use(self, model: str) -> bool:
        return self.key is None or self.key.models is None or model in self.key.models

    def may_stream(self, model: str) -> bool:
        return self.may_use(model) and (self.key is None or self.key.role == "client")

    def check(self, rule: str, model: str) -> None:
        """Raises Forbidden unless the key is for a path with that rule, and for the model."""
        key = self.key
        if key is None:
            return
        if rule not in (key.role, "both"):
            self.rejected["role"] += 1
            raise Forbidden(f"the key is of role {key.role}; this is for {rule} keys")
        if model and key.models is not None and model not in key.models:
            self.rejected["model"] += 1
            raise Forbidden(f"the key is not for model {model[:80]!r}")

    def spend(self) -> None:
        """Counts one request. Raises QuotaExceeded."""
        self.requests += 1
        if self.bucket is not None and not self.bucket.take(1):
            self.rejected["rate"] += 1
            raise self.too_many()

    def spend_up_to(self, wanted: int) -> int:
        """Counts that many more: so many of them may be executed."""
        self.requests += wanted
        if self.bucket is None:
            return wanted
        taken = self.bucket.take(wanted)
        self.rejected["rate"] += wanted - taken
        return taken

    def pace(self) -> float:
        """Counts one message of a stream: the seconds it must wait."""
        self.requests += 1
        return 0.0 if self.bucket is None else self.bucket.reserve()

    def too_many(self) -> QuotaExceeded:
        assert self.bucket is not None  # noqa: S101
        return QuotaExceeded(
            f"the key may send {self.bucket.rate:g} requests a second",
            retry_after_s=max(1, math.ceil(self.bucket.wait_s)),
        )

    def _become(self, key: Key) -> None:
        self.key = key
        if key.requests_per_second is None:
            self.bucket = None
            return
        burst = float(key.burst or max(1, math.ceil(key.requests_per_second)))
        if self.bucket is None:
            self.bucket = Bucket(key.requests_per_second, burst)
        else:
            self.bucket.set(key.requests_per_second, burst)


#: Where there are no keys
EVERYBODY = Identity()
#: Where there are, for what needs none
NOBODY = Identity(trusted=False)


class Access:
    """The keys of one process. Without a path there are none, and everybody may do everything.

    on_change: told when keys were taken away or changed. Raises KeysError if the file can't be used."""

    def __init__(self, path: str = "") -> None:
        self.path = Path(path) if path else None
        self.refused: Counter[str] = Counter()  # requests without a known key
        self.on_change: Callable[[], None] = lambda: None
        self._by_digest: dict[bytes, Identity] = {}
        self._sessions: dict[str, int | None] = {}
        self._stamp: object = None
        self._bad = ""
        self._watch: asyncio.Task[None] | None = None
        if self.path is not None:
            self._stamp = _stamp(self.path)
            self._take(load(self.path))

    @property
    def on(self) -> bool:
        return self.path is not None

    def counted(self) -> KeyCounters | None:
        """What the keys did; None where there are none."""
        if not self.on:
            return None
        counted = KeyCounters(refused=self.refused)
        for identity in self._by_digest.values():
            assert identity.key is not None  # noqa: S101  those in the table have one
            counted.requests[identity.key.name] = identity.requests
            for reason, count in identity.rejected.items():
                counted.rejected[identity.key.name, reason] = count
        return counted

    def identify(self, headers: Mapping[bytes, bytes], protocols: tuple[str, ...] = ()) -> Identity:
        """Whose key it is. Raises Unauthorized."""
        header = headers.get(b"authorization")
        if header is not None:
            scheme, _, sent = header[:LONGEST_HEADER].partition(b" ")
            if scheme.lower() != b"bearer":
                sent = b""
            sent = sent.strip()
        else:
            sent = next((p[len(BEARER) :].encode() for p in protocols if p.startswith(BEARER)), b"")
        if sent:
            if (identity := self._by_digest.get(digest(sent))) is not None:
                return identity
            self.refused["unknown"] += 1
            raise Unauthorized("the key is not known here")
        self.refused["missing"] += 1
        raise Unauthorized("a key is needed: send it as `Authorization: Bearer KEY`")

    def session_limit(self, namespace: str) -> int | None:
        """The most sessions of a model that a namespace may have open here; of several keys the largest."""
        return self._sessions.get(namespace)

    # The file

    async def watch(self) -> None:
        """Begins to look at the file now and then. Once, on the loop that serves."""
        if self.path is not None and self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._look_on())

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_S)
            await self.look()

    async def look(self) -> None:
        """Reads the file if it has changed. A bad one leaves the keys as they are."""
        assert self.path is not None  # noqa: S101
        stamp = await asyncio.to_thread(_stamp, self.path)
        if stamp == self._stamp:
            return
        try:
            keys = await asyncio.to_thread(load, self.path)
        except KeysError as error:
            if self._bad != str(error):  # once, not every second
                log.error("the keys stay as they were: %s", error)
            self._bad = str(error)
            return
        self._stamp, self._bad = stamp, ""
        self._take(keys)
        log.info("%d keys from %s", len(keys), self.path)
        self.on_change()

    def _take(self, keys: list[Key]) -> None:
        before, now = self._by_digest, {}
        for key in keys:
            known = before.get(bytes.fromhex(key.sha256))
            if known is None or known.prefix != prefix_of(key.of):
                known = Identity(prefix=prefix_of(key.of))
            known._become(key)
            now[bytes.fromhex(key.sha256)] = known
        for sha256, identity in before.items():
            identity.revoked = now.get(sha256) is not identity
        limits: dict[str, int | None] = {}
        for key in keys:
            if key.role == "client":
                known_limit = limits.get(key.of, 0)
                none = known_limit is None or key.sessions is None
                limits[key.of] = None if none else max(known_limit or 0, key.sessions or 0)
        self._by_digest, self._sessions = now, limits


def _stamp(path: Path) -> object:
    """Changes with the file, however it is changed: rewritten, moved over, or a link turned."""
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev, found.st_mode
