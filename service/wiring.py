"""Builds the application from settings: bundles to engines to sessions to one ASGI callable."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import platform
import secrets
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from model import bundle as bundles
from model.bundle import Bundle, Lineage, lineages
from service.api.access import Access
from service.api.app import Api
from service.api.endpoint import ModelEndpoint
from service.api.messages import Intake
from service.api.openapi import openapi_json
from service.api.pages import docs_page
from service.api.peers import Peers
from service.api.routes import Site
from service.api.watch import Watch
from service.asgi import Receive, Scope, Send
from service.certificates import authorities
from service.client.redaction import guard
from service.engine.engine import Engine
from service.metrics import Exposition, Process, Source
from service.pulse import Pulse
from service.sessions.counters import RequestCounters
from service.sessions.custody import Upkeep
from service.sessions.manager import SessionManager
from service.sessions.register import Limits
from service.sessions.shared import SharedManager, Unsafe
from service.sessions.store import MemoryStore
from service.sessions.stores import open_store
from service.sessions.versions import Versions
from service.settings import SettingError, Settings, retention

log = logging.getLogger("cellstate")

#: Objects made and kept before the collector looks at the young ones; Python's default is 700.
GC_ALLOCATIONS = 20_000


#: Largest bodies that may be read at a time
BODIES = 8


class Application:
    """One ASGI 3 callable for the models it was built with: http, websocket, lifespan."""

    def __init__(self, settings: Settings, loaded: Sequence[Lineage]) -> None:
        self.settings = settings
        self._models = loaded
        self._endpoints: dict[str, ModelEndpoint] = {}
        self._started = False
        self._stopping: asyncio.Task[None] | None = None
        self._direct_url = ""
        self.replica = secrets.token_hex(4)  # the name of this process among others
        self.requests = RequestCounters()
        self._pulse = Pulse()
        self._exposition: Exposition | None = None
        self.access = Access(settings.keys)
        guard("uvicorn.error", "uvicorn.asgi", "websockets.server")
        site = Site(
            endpoints=self._endpoints,
            ready=lambda: self.ready,
            metrics=self._metrics,
            replica=lambda: self.replica,
            counters=self.requests,
            openapi=lambda models: openapi_json(self._endpoints.values() if models else ()),
            docs=lambda models: docs_page(self._endpoints.values() if models else ()),
            access=self.access,
            watch=Watch(settings.slow_ms / 1000 or float("inf"), each=settings.access_log == "on"),
        )
        intake = Intake(
            requests=2 * settings.max_requests,  # by both ways in
            body=settings.max_body_bytes,
            bodies=BODIES * settings.max_body_bytes,
            timeout_s=settings.request_timeout_s,
        )
        self.api = Api(site, intake, self.requests)
        self.access.on_change = self.api.streams.recheck

    @property
    def direct_url(self) -> str:
        """Where this process is reached past the front door: by the other replicas, and by clients, who are
        told of it unless the setting `direct` is off. Empty if it can't be."""
        return self._direct_url

    @direct_url.setter
    def direct_url(self, url: str) -> None:
        self._direct_url = url
        for endpoint in self._endpoints.values():
            endpoint.direct_url = self._told_url

    @property
    def _told_url(self) -> str:
        return self._direct_url if self.settings.direct == "on" else ""

    @property
    def managers(self) -> list[SessionManager]:
        """Of every version of every model; after `startup`."""
        return [m for endpoint in self._endpoints.values() for m in endpoint.manager.managers]

    @property
    def ready(self) -> bool:
        """Whether it can take traffic: everything is loaded and warm, and it is not stopping."""
        return self._started and self._stopping is None

    @property
    def stopping(self) -> bool:
        """Whether it takes nothing new any more."""
        return self._stopping is not None

    def expect(self) -> None:
        """A request is on its way to one of the engines."""
        for endpoint in self._endpoints.values():
            endpoint.manager.expect()

    async def startup(self) -> None:
        """Makes the engines, warms them, and begins. Once, on the loop that will serve."""
        if self._started:
            return
        began, device = time.monotonic(), choose_device(self.settings)
        if device.type == "cpu":
            torch.set_num_threads(self.settings.threads)
        for lineage in self._models:
            endpoint = make_endpoint(self.settings, lineage, device)
            endpoint.direct_url = self._told_url
            await endpoint.manager.start(self._direct_url)
            endpoint.manager.limit_namespaces(self.access.session_limit)
            self._endpoints[endpoint.bundle.name] = endpoint
        sources = [
            Source(manager.bundle.name, manager.bundle.version, manager, endpoint.manager.lease_of(manager))
            for endpoint in self._endpoints.values()
            for manager in endpoint.manager.managers
        ]
        self._pulse.start()
        self._exposition = Exposition(sources, self.requests, self._process(device), self.access.counted)
        if self.settings.traces:
            self._trace(sources)
        # What is here now stays: the collector need not walk torch and Ray each time sessions pile up. And
        # what a request leaves behind goes by its reference count, so the collector need not look so often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS)
        await self.access.watch()
        self._started = True
        log.info(
            "ready",
            extra={
                "event": "ready",
                "versions": [f"{source.model} {source.version}" for source in sources],
                "device": str(device),
                "precision": self.settings.precision,
                "store": self.settings.store.partition(":")[0],
                "url": self._direct_url,
                "seconds": round(time.monotonic() - began, 3),
            },
        )

    def _trace(self, sources: Sequence[Source]) -> None:
        """Raises SettingError if that can't be done here."""
        from service.tracing import open_tracer  # a sixth of a second that most can do without

        self.api.site.watch.tracer = open_tracer(
            self.settings.traces,
            self.settings.trace_ratio,
            service__name="cellstate",
            service__instance__id=self.replica,
            cellstate__versions=", ".join(f"{source.model} {source.version}" for source in sources),
        )
        for source in sources:
            source.manager.traced = True

    async def shutdown(self) -> None:
        """Takes no new work, lets running requests end (`drain_s`), closes streams and engines."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self.access.close()
        began = time.monotonic()
        managers = [endpoint.manager for endpoint in self._endpoints.values()]
        streams = {"event": "drain", "streams": len(self.api.streams)}
        log.info("draining: running requests may end", extra=streams)
        drained = await asyncio.gather(*(m.drain(self.settings.drain_s) for m in managers))
        if not all(drained):
            cut = {"event": "drain_cut", "seconds": self.settings.drain_s}
            log.warning("requests were still running after %g s", self.settings.drain_s, extra=cut)
        await asyncio.gather(*(manager.leave() for manager in managers))
        for manager in managers:
            manager.close()
        for endpoint in self._endpoints.values():  # replies that are being written; then streams may close
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(endpoint.turns.rest(), self.settings.drain_s)
        await self.api.streams.stop()
        for manager in managers:
            await manager.stop()
        for endpoint in self._endpoints.values():
            if endpoint.peers is not None:
                await endpoint.peers.close()
        self._pulse.stop()
        tracer = self.api.site.watch.tracer
        if tracer is not None:
            await asyncio.to_thread(tracer.close)
        log.info("stopped", extra={"event": "stopped", "seconds": round(time.monotonic() - began, 3)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self.api.http(scope, receive, send)
        elif kind == "websocket":
            await self.api.websocket(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.startup()
                except Exception as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.shutdown()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _process(self, device: torch.device) -> Process:
        build = {
            "version": own_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": device.type,
            "precision": self.settings.precision,
            "store": self.settings.store.partition(":")[0],
        }
        gpu = partial(gpu_memory, device) if device.type == "cuda" else None
        return Process(build, lambda: self.ready, lambda: self.stopping, self._pulse.lag, gpu)

    def _metrics(self) -> tuple[bytes, str]:
        if self._exposition is None:
            return b"", "text/plain"
        return self._exposition.render()


def build(settings: Settings, paths: Sequence[Path]) -> Application:
    """The application for the bundles at those paths. Raises BundleError, SettingError or KeysError."""
    models = lineages([bundles.load(path) for path in paths])
    choose_device(settings)
    return Application(settings, models)


def make_endpoint(settings: Settings, lineage: Lineage, device: torch.device) -> ModelEndpoint:
    """One model's engines, sessions and endpoint, warm."""
    durability = settings.durability
    if durability == "auto":
        durability = "none" if settings.store == "memory:" else "journal"
    limits = Limits(
        sessions=settings.max_sessions,
        host_sessions=settings.host_sessions,
        queue=settings.max_queue,
        ttl_s=settings.ttl_s,
        replay_window=settings.replay_window,
        durability=durability,
        wait_s=settings.max_wait_ms / 1e3,
    )
    newest, older = lineage[0], lineage[1:]
    if settings.store == "memory:" or settings.upgrade != "pin":
        for bundle in older:
            about = {"event": "version_left_out", "model": bundle.name, "version": bundle.version}
            log.info("no session stays on an older version: it is not loaded", extra=about)
        older = ()
    engine = make_engine(settings, newest, device)
    if settings.store == "memory:":
        return ModelEndpoint(Versions([SessionManager(newest, engine, MemoryStore(), limits)]), settings)
    store = open_store(
        settings.store_address, newest.name, settings.lease_s, fence=settings.unsafe != "fence"
    )
    peers = Peers(
        newest.name,
        lambda: store.secret,
        newest.version,
        authorities(settings) if settings.tls_cert else True,
    )
    specs = {bundle.digest: bundle.spec for bundle in lineage}
    upkeep = Upkeep(settings.replay_window, retention(settings, newest.name), settings.upgrade, specs)
    unsafe = Unsafe(fence=settings.unsafe == "fence", window=settings.unsafe == "window")
    first = SharedManager(newest, engine, store, limits, upkeep, peers.release, unsafe=unsafe)
    managers = [first]
    for bundle in older:
        engine = make_engine(settings, bundle, device)
        managers.append(
            SharedManager(bundle, engine, store, limits, upkeep, peers.release, unsafe=unsafe, beside=first)
        )
    return ModelEndpoint(Versions(managers), settings, peers)


def make_engine(settings: Settings, bundle: Bundle, device: torch.device) -> Engine:
    """The engine of one version of a model, warm."""
    engine = Engine(
        bundle.network(),
        slots=settings.slots,
        max_batch=settings.max_batch,
        quantum=settings.quantum,
        tick_steps=settings.tick_steps,
        tick_ms=settings.tick_ms,
        device=device,
        precision=settings.precision,
        threads=settings.threads,
    )
    engine.runner.warm(min(settings.max_batch, settings.slots))
    return engine


def gpu_memory(device: torch.device) -> dict[str, float]:
    """Bytes: what this process's tensors take, what torch keeps for them, and what all processes leave."""
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }


def own_version() -> str:
    """Of this distribution; 0 if it is not installed."""
    try:
        return version("cellstate")
    except PackageNotFoundError:
        return "0"


def choose_device(settings: Settings) -> torch.device:
    """The device asked for; `auto` is CUDA if there is one. Raises SettingError for one that is not there."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        raise SettingError(f"device: {settings.device!r} is not a device such as cpu or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device: {settings.device!r} is not cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"device: there is no {settings.device} on this machine")
    return device
