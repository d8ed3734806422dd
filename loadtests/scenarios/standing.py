"""The standing scenarios: what each sends unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from loadtests.generator.arrivals import Burst
from loadtests.scenarios.requests import Bulk, Chunks, Churn, Mixed, Steps
from loadtests.scenarios.streams import Streams
from loadtests.scenarios.traffic import Plan, Traffic

TRAFFIC: dict[str, type[Traffic]] = {
    "steps": Steps,
    "streams": Streams,
    "bulk": Bulk,
    "chunks": Chunks,
    "mixed": Mixed,
    "churn": Churn,
}


def make(plan: Plan) -> Traffic:
    """A sender's traffic."""
    return TRAFFIC[plan.traffic](plan)


@dataclass(frozen=True, slots=True)
class Scenario:
    """rate: requests a second (of `churn`: sessions). unit: what one is."""

    name: str
    about: str
    traffic: str
    rate: float
    sessions: int = 512
    steps: int = 1
    seconds: float = 20.0
    unit: str = "requests"
    burst: Burst | None = None


STANDING = {
    scenario.name: scenario
    for scenario in (
        Scenario("steps", "single steps, a request each", "steps", 400),
        Scenario("streams", "single steps over WebSockets", "streams", 2000, sessions=64, unit="messages"),
        Scenario("bulk", "one request steps 256 sessions", "bulk", 20, sessions=4096),
        Scenario("chunks", "64 steps a request", "chunks", 150, steps=64),
        Scenario("mixed", "steps, chunks, forecasts, bulk, facts, whole sequences", "mixed", 200, 1024),
        Scenario(
            "churn", "sessions that are opened, stepped 8 times and ended", "churn", 30, unit="sessions"
        ),
        Scenario("idle", "1,000 active sessions alone, then beside 99,000 idle ones", "steps", 300, 100_000),
        Scenario(
            "burst", "five times the rate for a second of every five", "steps", 120, 1024,
            burst=Burst(5.0, 5.0, 1.0),
        ),
        Scenario(
            "soak", "churn at half of what is reached; does anything grow?", "churn", 0.0,
            seconds=1800.0, unit="sessions",
        ),
        Scenario("door", "wrk, in a closed loop: the raw door", "steps", 1.0, sessions=1024),
    )
}  # fmt: skip
#: What `all` runs; the soak on demand
ALL = ("steps", "streams", "bulk", "chunks", "mixed", "churn", "idle", "burst", "door")
