"""A traced request is one tree of spans that says where its time went; no request waits for who reads it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from websockets.sync.client import connect

from service.asked import MOST_PARTS, Trace, read_traceparent
from service.launch import Refused, check_traces
from service.settings import SettingError, Settings, read
from service.tracing import BATCH, QUEUE, Tracer, endpoint
from tests.api.serving import SERIES, Served, save_bundles, serving
from tests.service.collecting import Collector, Span, collecting

INPUTS = [[10.0, 0.5]]
ROUTE = "/v1/models/{model}/sessions/{session_id}/steps"
WAY = ["receive", "queue", "tick", "commit", "reply"]
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept(SpanExporter):
    """Keeps the spans as a collector would see them; waits, if it is told to."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.go_on.wait()
        for span in spans:
            assert span.context is not None
            assert span.start_time is not None
            assert span.end_time is not None
            self.spans.append(
                Span(
                    span.name,
                    f"{span.context.trace_id:032x}",
                    f"{span.context.span_id:016x}",
                    "" if span.parent is None else f"{span.parent.span_id:016x}",
                    span.kind.value,
                    span.start_time,
                    span.end_time,
                    span.status.status_code.value == 2,
                    dict(span.attributes or {}),
                    dict(span.resource.attributes),
                )
            )
        return SpanExportResult.SUCCESS

    def until(self, requests: int, tracer: Tracer) -> None:
        """So many requests have been told whole: the spans of one may come behind its answer."""
        deadline = time.monotonic() + 20
        while sum(span.kind == 1 for span in self.spans) < requests:
            assert time.monotonic() < deadline, self.spans
            tracer.flush()
        tracer.close()


@contextmanager
def traced(served: Served, ratio: float = 1.0) -> Iterator[tuple[Kept, Tracer]]:
    """The application's requests are traced meanwhile."""
    kept = Kept()
    tracer = Tracer(kept, ratio, service__name="cellstate")
    site = served.application.api.site
    managers = [m for e in site.endpoints.values() for m in e.manager.managers]
    for manager in managers:
        manager.traced = True
    site.watch.tracer = tracer
    try:
        yield kept, tracer
    finally:
        site.watch.tracer = None
        for manager in managers:
            manager.traced = False
        kept.go_on.set()
        tracer.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(save_bundles(tmp_path_factory.mktemp("bundles"))) as where:
        yield where


def post(served: Served, path: str, body: Any, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{served.url}/v1/models/{SERIES}{path}"
    return httpx.post(url, json=body, headers=names, trust_env=False, timeout=20)


def tree(spans: list[Span]) -> tuple[Span, list[Span]]:
    """The root and its children, in order; each within the root, and all of one trace."""
    (root,) = [span for span in spans if span.kind == 1]
    children = sorted((s for s in spans if s is not root), key=lambda s: (s.start, s.end))
    assert {span.trace_id for span in spans} == {root.trace_id}
    assert {span.parent_id for span in children} == {root.span_id}
    assert all(root.start <= span.start <= span.end <= root.end for span in children)
    assert len({span.span_id for span in spans}) == len(spans)
    return root, children


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (SAMPLED.encode(), (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)),
        (SAMPLED[:-1].encode() + b"0", (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, False)),
        (
            b"cc" + SAMPLED[2:].encode() + b"-later",
            (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True),
        ),
        (b"ff" + SAMPLED[2:].encode(), None),
        (SAMPLED.encode() + b"-more", None),
        (SAMPLED.upper().encode(), None),
        (b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", None),
        (b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_w3c_says(header: bytes | None, found: tuple[int, int, bool] | None) -> None:
    assert read_traceparent(header) == found


def test_a_request_is_one_tree_along_its_way(served: Served) -> None:
    with traced(served) as (kept, tracer):
        post(served, "/sessions/one/steps", {"step": 0, "inputs": INPUTS * 3}, x_request_id="mine")
        kept.until(1, tracer)
    root, children = tree(kept.spans)
    assert root.name == f"POST {ROUTE}"
    assert root.parent_id == ""
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "cellstate.model": SERIES,
        "cellstate.session_id": "one",
        "cellstate.request_id": "mine",
    }
    assert [span.name for span in children] == WAY
    assert children[2].attributes == {"cellstate.batch": 1, "cellstate.steps": 3}
    assert root.resource["service.name"] == "cellstate"
    # One after the other, without a gap at the ends
    assert children[0].start == root.start
    assert children[-1].end == root.end
    assert all(a.end <= b.start for a, b in itertools.pairwise(children))


def test_the_batch_is_all_that_was_in_the_tick(served: Served) -> None:
    requests = [{"session_id": f"b{n}", "step": 0, "inputs": INPUTS} for n in range(5)]
    with traced(served) as (kept, tracer):
        post(served, "/steps", {"requests": requests})
        kept.until(1, tracer)
    _, children = tree(kept.spans)
    (tick,) = [span for span in children if span.name == "tick"]
    assert tick.attributes == {"cellstate.batch": 5, "cellstate.steps": 5, "cellstate.requests": 5}
    (commit,) = [span for span in children if span.name == "commit"]
    assert commit.attributes["cellstate.requests"] == 5


def test_each_message_of_a_stream_is_a_tree(served: Served) -> None:
    path = f"{served.ws}/v1/models/{SERIES}/sessions/ws/stream"
    with traced(served) as (kept, tracer):
        with connect(path, additional_headers={"traceparent": SAMPLED, "x-request-id": "s"}) as stream:
            for step in range(2):
                stream.send(f'{{"step": {step}, "inputs": [[10.0, 0.5]]}}')
                stream.recv()
        kept.until(2, tracer)
    roots = [span for span in kept.spans if span.kind == 1]
    assert {span.parent_id for span in roots} == {SAMPLED[36:52]}
    for root in roots:
        tree([root, *(span for span in kept.spans if span.parent_id == root.span_id)])
    assert len(roots) == 2
    assert len(kept.spans) == 2 * (1 + len(WAY))


def test_the_client_says_whether_it_is_sampled(served: Served) -> None:
    body = {"inputs": INPUTS}
    with traced(served, ratio=0.0) as (kept, tracer):
        post(served, "/predict", body)
        post(served, "/predict", body, traceparent=SAMPLED[:-1] + "0")
        post(served, "/predict", body, traceparent=SAMPLED)
        kept.until(1, tracer)
    root, _ = tree(kept.spans)
    assert (root.trace_id, root.parent_id) == (SAMPLED[3:35], SAMPLED[36:52])


def test_of_many_requests_the_ratio_is_traced() -> None:
    tracer = Tracer(Kept(), 0.25)
    drawn = sum(tracer.begin({}) is not None for _ in range(4000))
    tracer.close()
    assert 800 < drawn < 1200


def test_what_fails_is_an_error_if_it_is_the_services(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("a bug")

    with traced(served) as (kept, tracer):
        post(served, "/sessions/none/steps", {"step": 4, "inputs": INPUTS})
        monkeypatch.setattr(served.application.api.site.endpoint(SERIES), "facts", broken)
        httpx.get(f"{served.url}/v1/models/{SERIES}", trust_env=False)
        kept.until(2, tracer)
    told = {span.attributes["http.response.status_code"]: span.error for span in kept.spans if span.kind == 1}
    assert told == {404: False, 503: True}


def test_a_request_that_is_passed_on_is_one_trace(tmp_path: Path) -> None:
    bundles, store = save_bundles(tmp_path / "bundles"), f"sqlite:{tmp_path / 'sessions.db'}"
    with serving(bundles, store=store) as one, serving(bundles, store=store) as other:
        step = {"session_id": "p", "step": 0, "inputs": INPUTS}
        post(other, "/steps", {"requests": [step]})
        with traced(one) as (asked, first), traced(other, ratio=0.0) as (owner, second):
            found = post(one, "/steps", {"requests": [{**step, "step": 1}]}).json()["results"][0]
            assert found["next_step"] == 2
            asked.until(1, first)
            owner.until(1, second)
    (passed,) = [span for span in asked.spans if span.name == "pass on"]
    (root,) = [span for span in owner.spans if span.kind == 1]
    assert (root.trace_id, root.parent_id) == (passed.trace_id, passed.span_id)
    assert passed.start <= root.start <= root.end <= passed.end
    assert passed.kind == 2
    assert [s.name for s in sorted(owner.spans, key=lambda s: s.start) if s is not root] == WAY
    (commit,) = [span for span in owner.spans if span.name == "commit"]
    assert commit.attributes["cellstate.store"] == "sqlite"
    assert commit.attributes["cellstate.bytes"] > 16


def test_a_session_that_is_restored_says_what_that_took(tmp_path: Path) -> None:
    bundles, store = save_bundles(tmp_path / "bundles"), f"sqlite:{tmp_path / 'sessions.db'}"
    with serving(bundles, store=store) as served:
        post(served, "/sessions/r/steps", {"step": 0, "inputs": INPUTS * 7})
    with serving(bundles, store=store) as served, traced(served) as (kept, tracer):
        assert post(served, "/sessions/r/steps", {"step": 7, "inputs": INPUTS}).status_code == 200
        kept.until(1, tracer)
    _, children = tree(kept.spans)
    names = [span.name for span in children]
    assert names == ["receive", "claim", "restore", *WAY[1:]]


def test_a_request_of_very_many_parts_is_told_in_some() -> None:
    trace = Trace(1, 0)
    for n in range(MOST_PARTS + 10):
        trace.add("restore", n, n + 1)
    assert (len(trace.parts), trace.dropped) == (MOST_PARTS, 10)


def test_a_reader_that_hangs_costs_spans_and_no_request(served: Served) -> None:
    with traced(served) as (kept, tracer):
        kept.go_on.clear()
        for step in range(20):
            assert post(served, "/sessions/h/steps", {"step": step, "inputs": INPUTS}).status_code == 200
        for _ in range(QUEUE * 2):
            tracer.end(Trace(1, 0), "many", 0.0, 1.0, 200, {})
        kept.go_on.set()
        tracer.close()
    assert QUEUE <= len(kept.spans) <= QUEUE + 2 * BATCH


def test_a_collectors_url_needs_no_path() -> None:
    assert (
        endpoint("http://localhost:4318")
        == endpoint("http://localhost:4318/")
        == "http://localhost:4318/v1/traces"
    )
    assert endpoint("https://example.org/otlp/v1/traces") == "https://example.org/otlp/v1/traces"


@pytest.mark.parametrize(
    "given", [{"traces": "localhost:4318"}, {"trace_ratio": "1.5"}, {"trace_ratio": "-1"}]
)
def test_a_bad_setting_says_so(given: dict[str, str | None]) -> None:
    with pytest.raises(SettingError, match=next(iter(given))):
        read(given, {})


def test_without_the_exporter_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_traces(Settings())
    monkeypatch.setattr("service.launch.find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'cellstate\[traces\]'"):
        check_traces(Settings(traces="http://localhost:4318"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs cellstate[traces]")
    with collecting() as collector:
        yield collector


def test_the_whole_service_sends_its_traces_to_a_collector(collector: Collector, tmp_path: Path) -> None:
    with serving(save_bundles(tmp_path), traces=collector.url) as served:
        post(served, "/sessions/e/steps", {"step": 0, "inputs": INPUTS}, traceparent=SAMPLED)
        spans = collector.until(1 + len(WAY))
    root = next(span for span in spans if span.kind == 2)  # SERVER on the wire
    assert {span.name for span in spans} == {root.name, *WAY}
    assert root.parent_id == SAMPLED[36:52]
    assert {span.parent_id for span in spans if span is not root} == {root.span_id}
    assert root.resource["service.name"] == "cellstate"
    assert root.resource["cellstate.versions"] == "letters 1, narrow 1, waves 1"


def test_a_collector_that_is_away_is_nobodys_concern(collector: Collector, tmp_path: Path) -> None:
    gone = "http://127.0.0.1:9"  # nothing listens at discard
    with serving(save_bundles(tmp_path), traces=gone) as served:
        for step in range(5):
            assert post(served, "/sessions/e/steps", {"step": step, "inputs": INPUTS}).status_code == 200
