"""Looks at the service while it is under load: its own numbers, and what its processes take."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx

from loadtests.generator.clock import clock
from loadtests.observing.exposition import Exposition, scrape
from loadtests.observing.processes import usage

#: Most samples of a run; a longer one is looked at less often
MOST = 600
#: Values that are published as histograms: their mean between two samples
MEANS = {
    "batch_size": "cellstate_batch_size",
    "queue_s": "cellstate_queue_seconds",
    "tick_s": "cellstate_tick_seconds",
    "commit_s": "cellstate_commit_seconds",
}


class Sampler:
    """A thread, from `with` to its end. root: the process whose tree is looked at; None: no processes."""

    def __init__(self, url: str, model: str, root: int | None, seconds: float, *, key: str = "") -> None:
        self.url, self.model, self.root, self.key = url, model, root, key
        self.every_s = max(1.0, seconds / MOST)
        self.samples: list[dict[str, Any]] = []
        self.missed = 0
        self.pss = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._before: Exposition | None = None
        self.start = clock()

    def __enter__(self) -> Sampler:
        self.start = clock()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self.every_s, time.monotonic())
            try:
                self.samples.append(self._sample())
            except httpx.HTTPError:
                self.missed += 1

    def _sample(self) -> dict[str, Any]:
        at = clock()
        now = scrape(self.url, self.key)
        sample: dict[str, Any] = {"t": round(at - self.start, 3), **gauges(now, self.model)}
        if self._before is not None:
            sample |= means(self._before, now, self.model)
        self._before = now
        if self.root is not None:
            sample["processes"] = [each.to_json() for each in usage(self.root, pss=self.pss)]
        return sample


def gauges(now: Exposition, model: str) -> dict[str, Any]:
    """What is open, where, and waiting."""
    return {
        "sessions": now.by("cellstate_sessions", "place", model=model),
        "slots": now.by("cellstate_slots", "state", model=model),
        "running": now.sum("cellstate_running_requests", model=model),
    }


def means(before: Exposition, now: Exposition, model: str) -> dict[str, float | None]:
    """Between two samples; None where nothing was observed."""
    found: dict[str, float | None] = {}
    for name, metric in MEANS.items():
        count = now.sum(f"{metric}_count", model=model) - before.sum(f"{metric}_count", model=model)
        total = now.sum(f"{metric}_sum", model=model) - before.sum(f"{metric}_sum", model=model)
        found[name] = total / count if count > 0 else None
    return found
