"""The leases of a SQLite store's replicas, by a clock that all processes of a machine share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def boot_clock() -> float:
    """Seconds since this machine started, the same for all its processes."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def boot_id() -> str:
    """Another after each start of the machine, where it tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(slots=True, frozen=True)
class Lease:
    """left_s: how long it holds still; fenced: it was taken from its replica for good."""

    address: str
    left_s: float
    fenced: bool


class Leases:
    """Each function runs inside its caller's transaction."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._boot = clock, boot_id()

    def grant(self, db: sqlite3.Connection, model: int, address: str, lease_s: float) -> int | None:
        """To a new replica. Returns its id."""
        return db.execute(
            "INSERT INTO replica (model, address, boot, until, lease_s) VALUES (?, ?, ?, ?, ?)",
            (model, address, self._boot, self._clock() + lease_s, lease_s),
        ).lastrowid

    def renew(self, db: sqlite3.Connection, replica: int | None, until: float) -> bool:
        """False if it was fenced."""
        found = db.execute("UPDATE replica SET until = ? WHERE id = ? AND NOT fenced", (until, replica))
        return found.rowcount == 1

    def of(self, db: sqlite3.Connection, replica: int) -> Lease:
        found = db.execute(
            "SELECT address, boot, until, lease_s, fenced FROM replica WHERE id = ?", (replica,)
        ).fetchone()
        if found is None:
            return Lease("", 0.0, fenced=True)
        address, boot, until, lease_s, fenced = found
        left_s = until - self._clock()
        if fenced or boot != self._boot or left_s > 2 * lease_s:  # of another boot, where no id tells
            left_s = 0.0
        return Lease(address, left_s, bool(fenced))
