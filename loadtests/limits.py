"""Most that a load test does, whatever is asked for: a slip must not fill a machine for a day."""

from __future__ import annotations

from dataclasses import dataclass


class TooMuch(ValueError):
    """More is asked for than there may be; the message has both numbers."""


@dataclass(frozen=True, slots=True)
class Cap:
    """least ≤ value ≤ most."""

    least: float
    most: float
    unit: str


CAPS = {
    "rate": Cap(0.1, 20_000, "requests a second"),
    "seconds": Cap(0.5, 7_200, "seconds"),
    "sessions": Cap(1, 1_000_000, "sessions"),
    "senders": Cap(1, 16, "processes"),
    "steps": Cap(1, 10_000, "steps a request"),
    "bulk": Cap(1, 2_048, "sessions a request"),
    "life": Cap(1, 10_000, "requests of a session"),
    "pause_ms": Cap(0, 60_000, "ms between two requests of a session"),
    "active": Cap(1, 100_000, "active sessions"),
    "factor": Cap(1, 100, "times the rate"),
}
#: Of one run: rate × seconds
MOST_REQUESTS = 20_000_000


def check(name: str, value: float) -> None:
    """Raises TooMuch."""
    cap = CAPS[name]
    if not cap.least <= value <= cap.most:
        raise TooMuch(f"--{name.replace('_', '-')} {value:g}: {cap.least:g} to {cap.most:,.0f} {cap.unit}")


def check_requests(rate: float, seconds: float) -> None:
    """Raises TooMuch."""
    if rate * seconds > MOST_REQUESTS:
        raise TooMuch(f"{rate * seconds:,.0f} requests in one run; {MOST_REQUESTS:,} at most")
