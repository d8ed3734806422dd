"""Prometheus: the only user of prometheus_client. All below counts in plain numbers; here they get names.

Labels are `model`, `version` and what is bounded by the code; never a session id. docs/operations.md has a
line on each metric.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.sessions.counters import REASONS, SECONDS, Counters, Histogram, KeyCounters, RequestCounters

if TYPE_CHECKING:  # torch: the front door's process has no use for it
    from service.sessions.lease import Lease
    from service.sessions.manager import SessionManager

#: name, help, value
COUNTERS: tuple[tuple[str, str, Callable[[Counters], float]], ...] = (
    ("cellstate_steps", "Steps committed.", lambda c: c.steps),
    ("cellstate_predicted_steps", "Steps of predictions, without a session.", lambda c: c.predicted),
    ("cellstate_engine_steps", "Steps the engine ran, whatever for.", lambda c: c.engine_steps),
    ("cellstate_replayed_steps", "Steps run again to restore sessions.", lambda c: c.replayed),
    ("cellstate_deduplicated_steps", "Steps answered from the replay window.", lambda c: c.deduplicated),
    ("cellstate_sessions_opened", "Sessions opened.", lambda c: c.opened),
    ("cellstate_sessions_released", "Sessions let go of for other replicas.", lambda c: c.released),
    ("cellstate_commit_bytes", "Bytes of records given to the store.", lambda c: c.commit_bytes),
    ("cellstate_snapshots", "Snapshots saved to the store.", lambda c: c.snapshots),
    ("cellstate_snapshot_bytes", "Bytes of snapshots saved to the store.", lambda c: c.snapshot_bytes),
)

#: name, help, attribute of Counters
BY_REASON: tuple[tuple[str, str, str], ...] = (
    ("cellstate_sessions_ended", "Sessions that ended.", "ended"),
    ("cellstate_conflicts", "Requests whose step did not follow.", "conflicts"),
    ("cellstate_rejected", "Requests not taken.", "rejected"),
    ("cellstate_lost", "Requests for sessions that are gone.", "lost"),
    ("cellstate_takeovers", "Sessions taken from another owner.", "takeovers"),
    ("cellstate_sessions_dropped", "Sessions to be read from the store again.", "dropped"),
    ("cellstate_sessions_upgraded", "Sessions of another version that went on here.", "upgraded"),
    ("cellstate_commit_failures", "Group commits that the store did not take.", "commit_failures"),
)

#: name, help, attribute of Counters
HISTOGRAMS: tuple[tuple[str, str, str], ...] = (
    ("cellstate_queue_seconds", "From a request's submission to the tick that starts it.", "queue_seconds"),
    ("cellstate_tick_seconds", "One turn of the engine.", "tick_seconds"),
    ("cellstate_batch_size", "Sessions stepped in one tick.", "batch_size"),
    ("cellstate_commit_seconds", "One group commit to the store.", "commit_seconds"),
)


@dataclass(slots=True, frozen=True)
class Source:
    """The numbers of one version of a model. lease: of the newest version, if there is a shared store."""

    model: str
    version: str
    manager: SessionManager
    lease: Lease | None = None


@dataclass(slots=True, frozen=True)
class Process:
    """The numbers of one process. build: what it is made of. gpu: bytes of its memory, by kind, if it has
    one. replicas: of each model, those that live; the front door knows."""

    build: Mapping[str, str]
    ready: Callable[[], bool]
    draining: Callable[[], bool] = lambda: False
    lag: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    gpu: Callable[[], Mapping[str, float]] | None = None
    replicas: Callable[[], Mapping[str, int]] | None = None


class Exposition:
    """What /metrics says of one process."""

    def __init__(
        self,
        sources: Sequence[Source],
        requests: RequestCounters,
        process: Process,
        keys: Callable[[], KeyCounters | None] = lambda: None,
    ) -> None:
        self._sources, self._requests, self._process, self._keys = sources, requests, process, keys
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        yield from self._process_metrics()
        yield from self._request_metrics()
        yield from self._key_metrics()
        yield from self._session_metrics()
        yield from self._engine_metrics()
        yield from self._store_metrics()

    def _process_metrics(self) -> Iterator[Metric]:
        p = self._process
        build = GaugeMetricFamily("cellstate_build_info", "1; the labels say what runs.", labels=[*p.build])
        build.add_metric([*p.build.values()], 1)
        yield build
        yield GaugeMetricFamily("cellstate_ready", "Whether it can take traffic.", p.ready())
        yield GaugeMetricFamily(
            "cellstate_draining", "Whether it is stopping and takes nothing new.", p.draining()
        )
        yield _histogram(
            "cellstate_event_loop_lag_seconds",
            "How late the event loop was, four times a second.",
            [],
            [([], p.lag)],
        )
        gpu = GaugeMetricFamily(
            "cellstate_gpu_memory_bytes", "Memory of the GPU this process is on.", labels=["kind"]
        )
        for kind, size in (p.gpu() if p.gpu is not None else {}).items():
            gpu.add_metric([kind], size)
        yield gpu
        replicas = GaugeMetricFamily("cellstate_replicas", "Replicas that live.", labels=["model"])
        for model, count in (p.replicas() if p.replicas is not None else {}).items():
            replicas.add_metric([model], count)
        yield replicas

    def _request_metrics(self) -> Iterator[Metric]:
        r = self._requests
        labels = ["model", "route", "status"]
        for name, help, counts in (
            ("cellstate_requests", "Requests of clients and messages of streams, answered.", r.answered()),
            ("cellstate_peer_requests", "Requests that other replicas passed on.", r.of_peers.items()),
        ):
            answered = CounterMetricFamily(name, help, labels=labels)
            for (model, route, status), count in counts:
                answered.add_metric([model, route, str(int(status))], count)
            yield answered
        refused = CounterMetricFamily(
            "cellstate_refused",
            "Requests and connections turned away before it was looked what they want.",
            labels=["reason"],
        )
        for reason, count in self._requests.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield _histogram(
            "cellstate_request_seconds",
            "From a request's or message's arrival to its answer.",
            labels[:2],
            (([model, route], h) for (model, route), h in r.seconds()),
        )
        items = CounterMetricFamily(
            "cellstate_bulk_items", "Requests within bulk bodies, answered.", labels=["model", "status"]
        )
        for (model, status), count in r.bulk_items.items():
            items.add_metric([model, str(int(status))], count)
        yield items
        yield _by_pair("cellstate_errors", "Problems told to clients.", "code", r.errors)
        opened = CounterMetricFamily("cellstate_streams_opened", "Streams opened.", labels=["model"])
        now = GaugeMetricFamily("cellstate_streams", "Streams that are open.", labels=["model"])
        models = {source.model: None for source in self._sources}
        for model in models:
            ended = sum(count for (of, _), count in r.streams_closed.items() if of == model)
            opened.add_metric([model], r.streams_opened[model])
            now.add_metric([model], r.streams_opened[model] - ended)
        yield opened
        yield now
        yield _by_pair("cellstate_streams_closed", "Streams that ended.", "code", r.streams_closed)

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
        info = self._gauge("cellstate_model_info", "1 for each model.", "digest")
        places = self._gauge("cellstate_sessions", "Open sessions by the place of their state.", "place")
        limits = self._gauge("cellstate_limit", "What this replica takes at most.", "of")
        flying = self._gauge("cellstate_in_flight_requests", "Requests accepted and not answered.")
        for source in self._sources:
            manager, labels = source.manager, [source.model, source.version]
            info.add_metric([*labels, manager.bundle.digest], 1)
            for place, count in manager.places().items():
                places.add_metric([*labels, place], count)
            for what, most in (
                ("sessions", manager.limits.sessions),
                ("host_sessions", manager.limits.host_sessions),
                ("requests", manager.limits.queue),
            ):
                limits.add_metric([*labels, what], most)
            flying.add_metric(labels, manager.in_flight)
        yield from (info, places, limits, flying)
        for name, help, value in COUNTERS:
            family = CounterMetricFamily(name, help, labels=["model", "version"])
            for source in self._sources:
                family.add_metric([source.model, source.version], value(source.manager.counters))
            yield family
        for name, help, attribute in BY_REASON:
            counts = (([s.model, s.version], getattr(s.manager.counters, attribute)) for s in self._sources)
            yield _reasons(name, help, ["model", "version"], attribute, counts)

    def _engine_metrics(self) -> Iterator[Metric]:
        slots = self._gauge("cellstate_slots", "Rows of the state pool.", "state")
        waiting = self._gauge("cellstate_waiting_requests", "Requests that wait for a tick.")
        running = self._gauge("cellstate_running_requests", "Requests being stepped.")
        labels = ["model", "version", "reason"]
        moved = CounterMetricFamily(
            "cellstate_evictions",
            "States moved a tier down: spilled to the host, parked in the store.",
            labels=labels,
        )
        back = CounterMetricFamily(
            "cellstate_restores", "States moved a tier up, when they were wanted.", labels=labels
        )
        for source in self._sources:
            engine, of = source.manager.engine, [source.model, source.version]
            slots.add_metric([*of, "free"], engine.slots.free)
            slots.add_metric([*of, "taken"], engine.slots.slots - engine.slots.free)
            waiting.add_metric(of, len(engine.scheduler))
            running.add_metric(of, engine.running)
            counters = source.manager.counters
            moved.add_metric([*of, "slots"], engine.evicted - engine.spilled_ahead)
            moved.add_metric([*of, "ahead"], engine.spilled_ahead)
            moved.add_metric([*of, "host_sessions"], counters.parked)
            back.add_metric([*of, "stepped"], engine.restored)
            back.add_metric([*of, "fetched"], counters.fetched)
            back.add_metric([*of, "claimed"], counters.claimed)
        yield from (slots, waiting, running, moved, back)
        for name, help, attribute in HISTOGRAMS:
            parts = (([s.model, s.version], getattr(s.manager.counters, attribute)) for s in self._sources)
            yield _histogram(name, help, ["model", "version"], parts)

    def _store_metrics(self) -> Iterator[Metric]:
        leases = [(source.model, source.lease) for source in self._sources if source.lease is not None]
        up = GaugeMetricFamily("cellstate_store_up", "Whether the shared store answers.", labels=["model"])
        left = GaugeMetricFamily(
            "cellstate_lease_remaining_seconds", "Until the lease runs out; 0: it has.", labels=["model"]
        )
        for model, lease in leases:
            up.add_metric([model], lease.store_up)
            left.add_metric([model], lease.remaining_s)
        yield from (up, left)
        losses = (([model], lease.losses) for model, lease in leases)
        yield _reasons("cellstate_lease_lost", "Leases that were lost.", ["model"], "lease_lost", losses)

    def _gauge(self, name: str, help: str, *more: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, help, labels=["model", "version", *more])


def _by_pair(name: str, help: str, label: str, counts: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(name, help, labels=["model", label])
    for pair, count in counts.items():
        family.add_metric([*pair], count)
    return family


def _reasons(
    name: str, help: str, labels: Sequence[str], kind: str, counts: Iterable[tuple[list[str], Counter[str]]]
) -> Metric:
    """Every reason that is known, also those that did not happen: a rate can't see a counter's birth."""
    family = CounterMetricFamily(name, help, labels=[*labels, "reason"])
    for values, happened in counts:
        for reason, count in {**dict.fromkeys(REASONS[kind], 0), **happened}.items():
            family.add_metric([*values, reason], count)
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
