"""A real Prometheus, with the configuration and the rules that we ship."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SHIPPED = DEPLOY / "prometheus"
DOOR = "http://head:8000"
START_S = 60.0


class Prometheus:
    """Asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Raises AssertionError with what it says if it failed."""
        reply = self._http.get(f"/api/v1/{path}", params=parameters).json()
        assert reply["status"] == "success", f"{parameters}: {reply}"
        return reply["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant vector, now."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def value(self, expression: str) -> float:
        """Of an expression with one value; 0 if it has none."""
        found = self.query(expression)
        assert len(found) < 2, found
        return found[0][1] if found else 0.0

    def targets(self) -> set[str]:
        """The replicas that are scraped, and answer."""
        active = self.get("targets", state="active")["activeTargets"]
        return {t["labels"]["replica"] for t in active if "replica" in t["labels"] and t["health"] == "up"}

    def scraped_since(self, moment: datetime) -> bool:
        """Whether all that is known of every target was asked for after this moment."""
        active = self.get("targets", state="active")["activeTargets"]
        return all(datetime.fromisoformat(target["lastScrape"]) > moment for target in active)


def configured(directory: Path, url: str, own: int) -> Path:
    """The shipped configuration in a directory, for a service at `url`; all that it does, each second."""
    shutil.copytree(SHIPPED, directory / "prometheus")
    path = directory / "prometheus" / "prometheus.yml"
    text = path.read_text()
    replaced = (
        (DOOR, url),
        ("localhost:9090", f"127.0.0.1:{own}"),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("refresh_interval: 5s", "refresh_interval: 1s"),
    )
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    for rules in (directory / "prometheus" / "rules").iterdir():
        rules.write_text(rules.read_text().replace("interval: 15s", "interval: 1s"))
    return path


@contextmanager
def prometheus(directory: Path, url: str) -> Iterator[Prometheus]:
    """One that watches the service at `url`. Skips the test where it is not installed."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={configured(directory, url, port)}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        eventually(lambda: server.get("status/buildinfo") is not None, START_S)
        yield server
    finally:
        server.close()
        process.terminate()
        process.wait(30)


def eventually(true: Callable[[], bool], seconds: float, what: Callable[[], object] = lambda: "") -> None:
    """Waits until it is true; no answer is not."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (httpx.HTTPError, ValueError):
            pass
        assert time.monotonic() < end, f"it never came true: {what()}"
        time.sleep(0.1)
