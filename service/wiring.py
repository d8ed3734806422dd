"""Builds the application from settings: bundles to engines to sessions to one ASGI callable."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from model import bundle as bundles
from model.bundle import Bundle
from service.api.app import Api
from service.api.endpoint import ModelEndpoint
from service.api.openapi import openapi_json
from service.api.pages import docs_page
from service.api.peers import Peers
from service.api.routes import Site
from service.asgi import Receive, Scope, Send
from service.engine.engine import Engine
from service.metrics import Exposition, Source
from service.sessions.counters import RequestCounters
from service.sessions.custody import Upkeep
from service.sessions.manager import SessionManager
from service.sessions.register import Limits
from service.sessions.shared import SharedManager, Unsafe
from service.sessions.store import MemoryStore
from service.sessions.stores import open_store
from service.settings import SettingError, Settings

log = logging.getLogger("cellstate")

#: Objects made and kept before the collector looks at the young ones; Python's default is 700.
GC_ALLOCATIONS = 20_000


class Application:
    """One ASGI 3 callable for the bundles it was built with: http, websocket, lifespan."""

    def __init__(self, settings: Settings, loaded: Sequence[Bundle]) -> None:
        self.settings = settings
        self._bundles = loaded
        self._endpoints: dict[str, ModelEndpoint] = {}
        self._started = False
        self._stopping: asyncio.Task[None] | None = None
        self._direct_url = ""
        self.requests = RequestCounters()
        self._exposition: Exposition | None = None
        site = Site(
            endpoints=self._endpoints,
            ready=lambda: self.ready,
            metrics=self._metrics,
            openapi=lambda: openapi_json(self._endpoints.values()),
            docs=lambda: docs_page(self._endpoints.values()),
        )
        self.api = Api(site, settings.max_body_bytes, self.requests)

    @property
    def direct_url(self) -> str:
        """Where clients can reach this process past the front door; empty if they can't."""
        return self._direct_url

    @direct_url.setter
    def direct_url(self, url: str) -> None:
        self._direct_url = url
        for endpoint in self._endpoints.values():
            endpoint.direct_url = url

    @property
    def ready(self) -> bool:
        """Whether it can take traffic: everything is loaded and warm, and it is not stopping."""
        return self._started and self._stopping is None

    async def startup(self) -> None:
        """Makes the engines, warms them, and begins. Once, on the loop that will serve."""
        if self._started:
            return
        device = choose_device(self.settings)
        if device.type == "cpu":
            torch.set_num_threads(self.settings.threads)
        for bundle in self._bundles:
            endpoint = make_endpoint(self.settings, bundle, device)
            endpoint.direct_url = self._direct_url
            if isinstance(endpoint.manager, SharedManager):
                await endpoint.manager.start(self._direct_url)
            self._endpoints[bundle.name] = endpoint
        sources = [Source(e.bundle.name, e.bundle.version, e.manager) for e in self._endpoints.values()]
        self._exposition = Exposition(sources, self.requests)
        # What is here now stays: the collector need not walk torch and Ray each time sessions pile up. And
        # what a request leaves behind goes by its reference count, so the collector need not look so often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS)
        self._started = True

    async def shutdown(self) -> None:
        """Takes no new work, lets running requests end (`drain_s`), closes streams and engines."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        managers = [endpoint.manager for endpoint in self._endpoints.values()]
        shared = [manager for manager in managers if isinstance(manager, SharedManager)]
        drained = await asyncio.gather(*(m.drain(self.settings.drain_s) for m in managers))
        if not all(drained):
            log.warning("requests were still running after %g s", self.settings.drain_s)
        await asyncio.gather(*(manager.leave() for manager in shared))
        for manager in managers:
            manager.close()
        for endpoint in self._endpoints.values():  # replies that are being written; then streams may close
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(endpoint.turns.rest(), self.settings.drain_s)
        await self.api.streams.stop()
        for manager in shared:
            await manager.stop()
        for endpoint in self._endpoints.values():
            if endpoint.peers is not None:
                await endpoint.peers.close()

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

    def _metrics(self) -> tuple[bytes, str]:
        if self._exposition is None:
            return b"", "text/plain"
        return self._exposition.render()


def build(settings: Settings, paths: Sequence[Path]) -> Application:
    """The application for the bundles at those paths. Raises BundleError or SettingError."""
    loaded = [bundles.load(path) for path in paths]
    names = [b.name for b in loaded]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(f"models: two bundles are named {name!r}")
    choose_device(settings)
    return Application(settings, loaded)


def make_endpoint(settings: Settings, bundle: Bundle, device: torch.device) -> ModelEndpoint:
    """One model's engine, sessions and endpoint, warm."""
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
    )
    if settings.store == "memory:":
        return ModelEndpoint(bundle, SessionManager(bundle, engine, MemoryStore(), limits), settings)
    store = open_store(
        settings.store_address, bundle.name, settings.lease_s, fence=settings.unsafe != "fence"
    )
    peers = Peers(bundle.name, lambda: store.secret)
    upkeep = Upkeep(settings.replay_window, settings.history, settings.upgrade)
    unsafe = Unsafe(fence=settings.unsafe == "fence", window=settings.unsafe == "window")
    manager = SharedManager(bundle, engine, store, limits, upkeep, peers.release, unsafe=unsafe)
    return ModelEndpoint(bundle, manager, settings, peers)


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
