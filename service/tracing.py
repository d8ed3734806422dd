"""OpenTelemetry: the only user of it. Requests leave their times in `service.asked.Trace`; when one is
answered, its spans are made here after the fact, and go to an OTLP/HTTP endpoint from a thread and a bounded
queue: an endpoint that is away costs spans, and no request anything.

The tree of one request, each span within its parent:

    POST /v1/models/{model}/sessions/{session_id}/steps    the request, as the replica saw it
    ├── receive     the body is read and checked
    ├── restore     the session is claimed in the store, and its state read or run again, if it was not here
    ├── queue       from submission to the first tick it is in
    ├── tick        that tick, or several, if the request is long; batch: sessions in the last of them
    ├── commit      until the store has the step
    ├── pass on     another replica is asked: its request hangs below this one
    └── reply       the reply is written
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from service.asked import PEER, TRACEPARENT, Part, Trace, new_span_id, read_traceparent
from service.settings import SettingError

SCOPE = InstrumentationScope("cellstate")
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
#: Spans that wait to be sent, at most; those beyond push out the oldest. Sent in so many, every so often.
QUEUE, BATCH, EVERY_S = 8192, 512, 1.0
EXPORT_S = 5.0  # until an endpoint that does not answer is given up
SERVER_ERROR = 500


class Tracer:
    """Of one process. ratio: of the requests whose clients do not say whether they are sampled. resource: who
    says it, with __ for the dots of the names."""

    def __init__(self, exporter: SpanExporter, ratio: float, **resource: str) -> None:
        self._ratio = ratio
        self._resource = Resource.create({name.replace("__", "."): v for name, v in resource.items() if v})
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE,
            schedule_delay_millis=EVERY_S * 1000,
            max_export_batch_size=BATCH,
            export_timeout_millis=EXPORT_S * 1000,
        )

    def begin(self, headers: Mapping[bytes, bytes]) -> Trace | None:
        """Whether a request is traced: as its client's traceparent says, else by chance."""
        given = read_traceparent(headers.get(TRACEPARENT))
        if given is not None:
            trace_id, parent_id, sampled = given
            return Trace(trace_id, parent_id) if sampled else None
        if PEER in headers:  # the replica that passed it on has drawn already
            return None
        if self._ratio < 1.0 and random.random() >= self._ratio:  # noqa: S311
            return None
        return Trace(random.getrandbits(128) or 1, 0)

    def end(
        self,
        trace: Trace,
        name: str,
        started: float,
        ended: float,
        status: int,
        attributes: Mapping[str, str | int | float | bool],
    ) -> None:
        """Makes the spans of a request that was answered. started, ended: on time.perf_counter."""
        offset = time.time_ns() - time.perf_counter_ns()
        parts = [p for p in trace.parts if p.start >= started and p.end <= ended]
        if parts:
            first, last = parts[0].start, max(part.end for part in parts)
            parts = [Part("receive", started, first), *parts, Part("reply", last, ended)]
        if trace.dropped:
            attributes = {**attributes, "cellstate.parts_dropped": trace.dropped}
        parent = self._context(trace, trace.parent_id, remote=True) if trace.parent_id else None
        own = self._context(trace, trace.span_id)
        for part in parts:
            kind = SpanKind.CLIENT if part.span_id else SpanKind.INTERNAL
            context = self._context(trace, part.span_id or new_span_id())
            told: dict[str, Any] = {f"cellstate.{key}": value for key, value in part.attributes.items()}
            if part.count > 1:
                told["cellstate.requests"] = part.count
            self._emit(part.name, context, own, kind, told, part.start, part.end, offset, Status())
        outcome = Status(StatusCode.ERROR if status >= SERVER_ERROR else StatusCode.UNSET)
        self._emit(name, own, parent, SpanKind.SERVER, attributes, started, ended, offset, outcome)

    def _context(self, trace: Trace, span_id: int, *, remote: bool = False) -> SpanContext:
        return SpanContext(trace.trace_id, span_id, remote, SAMPLED)

    def _emit(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        start: float,
        end: float,
        offset: int,
        status: Status,
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes,
                kind=kind,
                status=status,
                start_time=int(start * 1e9) + offset,
                end_time=int(end * 1e9) + offset,
                instrumentation_scope=SCOPE,
            )
        )

    def flush(self) -> None:
        """Sends what waits. Blocks, as `close` does."""
        self._processor.force_flush()

    def close(self) -> None:
        """Sends what waits, EXPORT_S at most. May block: not for an event loop."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def endpoint(url: str) -> str:
    """Where traces go: a URL without a path is a collector's, which takes them at /v1/traces."""
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1/traces"


def open_tracer(url: str, ratio: float, **resource: str) -> Tracer:
    """To an OTLP/HTTP endpoint. Headers such as a key: OTEL_EXPORTER_OTLP_HEADERS, which OpenTelemetry reads,
    as it does OTEL_RESOURCE_ATTRIBUTES. Raises SettingError if the exporter is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise SettingError(MISSING.format(error)) from error
    try:
        resource["service__version"] = version("cellstate")
    except PackageNotFoundError:
        pass  # run from its source
    return Tracer(OTLPSpanExporter(endpoint=endpoint(url), timeout=EXPORT_S), ratio, **resource)


MISSING = "traces: the exporter is not installed ({}): pip install 'cellstate[traces]'"
