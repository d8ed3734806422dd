"""Prometheus: the only user of prometheus_client. All below counts in plain numbers; here they get names.

Labels are `model`, `version` and what is bounded by the code; never a session id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.sessions.counters import Counters, Histogram, KeyCounters, RequestCounters
from service.sessions.manager import SessionManager

CounterValue = Callable[[Counters], float]
ReasonValues = Callable[[Counters], Counter[str]]


@dataclass(slots=True, frozen=True)
class Source:
    """The numbers of one version of a model."""

    model: str
    version: str
    manager: SessionManager


class Exposition:
    """What /metrics says of one process."""

    def __init__(
        self,
        sources: Sequence[Source],
        requests: RequestCounters,
        keys: Callable[[], KeyCounters | None] = lambda: None,
    ) -> None:
        self._sources, self._requests, self._keys = sources, requests, keys
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        yield from self._request_metrics()
        yield from self._key_metrics()
        yield from self._session_metrics()
        yield from self._engine_metrics()

    def _request_metrics(self) -> Iterator[Metric]:
        answered = CounterMetricFamily(
            "cellstate_requests", "HTTP requests answered.", labels=["model", "route", "status"]
        )
        for (model, route, status), count in self._requests.answered.items():
            answered.add_metric([model, route, str(status)], count)
        yield answered
        yield _histogram(
            "cellstate_request_seconds",
            "From the request's arrival to its response.",
            ["model", "route"],
            (([model, route], h) for (model, route), h in self._requests.seconds.items()),
        )

    def _key_metrics(self) -> Iterator[Metric]:
        counted = self._keys()
        if counted is None:
            return
        requests = CounterMetricFamily(
            "cellstate_key_requests",
            "Requests of a key, and messages of its streams; each request of a bulk one.",
            labels=["key"],
        )
        for name, count in counted.requests.items():
            requests.add_metric([name], count)
        rejected = CounterMetricFamily(
            "cellstate_key_rejected", "Requests of a key that it may not make.", labels=["key", "reason"]
        )
        for (name, reason), count in counted.rejected.items():
            rejected.add_metric([name, reason], count)
        refused = CounterMetricFamily(
            "cellstate_unauthorized", "Requests without a known key.", labels=["reason"]
        )
        for reason, count in counted.refused.items():
            refused.add_metric([reason], count)
        yield from (requests, rejected, refused)

    def _session_metrics(self) -> Iterator[Metric]:
        open_now = GaugeMetricFamily(
            "cellstate_sessions",
            "Open sessions by the place of their state.",
            labels=["model", "version", "place"],
        )
        for source in self._sources:
            for place, count in source.manager.places().items():
                open_now.add_metric([source.model, source.version, place], count)
        yield open_now
        yield self._counter("cellstate_steps", "Steps committed.", lambda c: c.steps)
        yield self._counter("cellstate_sessions_opened", "Sessions opened.", lambda c: c.opened)
        yield self._counter(
            "cellstate_deduplicated_steps", "Steps answered from the replay window.", lambda c: c.deduplicated
        )
        yield self._by_reason("cellstate_sessions_ended", "Sessions that ended.", lambda c: c.ended)
        yield self._by_reason(
            "cellstate_conflicts", "Requests whose step did not follow.", lambda c: c.conflicts
        )
        yield self._by_reason("cellstate_rejected", "Requests not taken.", lambda c: c.rejected)
        yield self._by_reason("cellstate_lost", "Requests for sessions that are gone.", lambda c: c.lost)
        yield self._by_reason(
            "cellstate_takeovers", "Sessions taken from another owner.", lambda c: c.takeovers
        )

    def _engine_metrics(self) -> Iterator[Metric]:
        slots = GaugeMetricFamily(
            "cellstate_slots", "Rows of the state pool.", labels=["model", "version", "state"]
        )
        moved = CounterMetricFamily(
            "cellstate_evictions",
            "States moved a tier down: spilled to the host, parked in the store.",
            labels=["model", "version", "reason"],
        )
        back = CounterMetricFamily(
            "cellstate_restores",
            "States moved a tier up, when they were wanted.",
            labels=["model", "version", "reason"],
        )
        info = GaugeMetricFamily(
            "cellstate_model_info", "1 for each model.", labels=["model", "version", "digest"]
        )
        running = GaugeMetricFamily(
            "cellstate_running_requests", "Requests being stepped.", labels=["model", "version"]
        )
        for source in self._sources:
            engine, labels = source.manager.engine, [source.model, source.version]
            slots.add_metric([*labels, "free"], engine.slots.free)
            slots.add_metric([*labels, "taken"], engine.slots.slots - engine.slots.free)
            counters = source.manager.counters
            moved.add_metric([*labels, "slots"], engine.evicted - engine.spilled_ahead)
            moved.add_metric([*labels, "ahead"], engine.spilled_ahead)
            moved.add_metric([*labels, "host_sessions"], counters.parked)
            back.add_metric([*labels, "stepped"], engine.restored)
            back.add_metric([*labels, "fetched"], counters.fetched)
            info.add_metric([*labels, source.manager.bundle.digest], 1)
            running.add_metric(labels, engine.running)
        yield from (slots, moved, back, info, running)
        for name, help, attribute in (
            (
                "cellstate_queue_seconds",
                "From a request's submission to the tick that starts it.",
                "queue_seconds",
            ),
            ("cellstate_tick_seconds", "One turn of the engine.", "tick_seconds"),
            ("cellstate_batch_size", "Sessions stepped in one tick.", "batch_size"),
            ("cellstate_commit_seconds", "One group commit to the store.", "commit_seconds"),
        ):
            parts = (([s.model, s.version], getattr(s.manager.counters, attribute)) for s in self._sources)
            yield _histogram(name, help, ["model", "version"], parts)
        yield self._counter("cellstate_commit_bytes", "Bytes given to the store.", lambda c: c.commit_bytes)

    def _counter(self, name: str, help: str, value: CounterValue) -> Metric:
        family = CounterMetricFamily(name, help, labels=["model", "version"])
        for source in self._sources:
            family.add_metric([source.model, source.version], value(source.manager.counters))
        return family

    def _by_reason(self, name: str, help: str, value: ReasonValues) -> Metric:
        family = CounterMetricFamily(name, help, labels=["model", "version", "reason"])
        for source in self._sources:
            for reason, count in value(source.manager.counters).items():
                family.add_metric([source.model, source.version, reason], count)
        return family


def _histogram(
    name: str, help: str, labels: Sequence[str], parts: Iterable[tuple[list[str], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(name, help, labels=labels)
    for values, histogram in parts:
        cumulative, buckets = 0, []
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            cumulative += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), cumulative))
        family.add_metric(values, buckets, histogram.total)
    return family
