"""wrk: the raw door. A closed loop, in C: what the service can do when the sender costs next to nothing."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.generator.histogram import Histogram
from loadtests.scenarios import inputs

SCRIPTS = {False: Path(__file__).with_name("steps.lua"), True: Path(__file__).with_name("bulk.lua")}
#: wrk has this long to end behind its time
PATIENCE_S = 60


class WrkFailed(Exception):
    """It is not there, or said something that can't be read."""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one run. Latencies in seconds, as wrk corrects them itself for coordinated omission."""

    requests: int
    seconds: float
    errors: int
    latency: Histogram


def parse(printed: str) -> Found:
    """What the scripts print. Raises WrkFailed."""
    line = next((line for line in printed.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise WrkFailed(f"wrk printed no result: {printed.strip()[-500:]}")
    try:
        facts: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
        latency = Histogram()
        for microseconds, count in facts["latencies"]:
            latency.record(microseconds / 1e6, int(count))
        return Found(int(facts["requests"]), float(facts["seconds"]), int(facts["errors"]), latency)
    except (ValueError, KeyError, TypeError) as error:
        raise WrkFailed(f"wrk's result can't be read: {error!r}") from None


def run(
    url: str,
    model: str,
    width: int,
    prefix: str,
    sessions: int,
    connections: int,
    seconds: float,
    bulk: int = 0,
) -> Found:
    """Steps open sessions, `prefix` and a number each, in turn; bulk: so many of them with each request."""
    if not shutil.which("wrk"):
        raise WrkFailed("wrk is not installed (Debian: apt-get install wrk)")
    values = inputs.text(width, 0, 0, 1)[2:-2]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "--timeout", "10s"]
    command += ["-s", str(SCRIPTS[bulk > 0]), url, "--"]
    command += [f"/v1/models/{model}", str(sessions), prefix, values, str(bulk)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=math.ceil(seconds) + PATIENCE_S, check=False
    )
    if done.returncode:
        raise WrkFailed(f"wrk failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return parse(done.stdout)
