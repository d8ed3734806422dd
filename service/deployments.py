"""Ray Serve: one application for each model, one for the rest. Thin, and the only place that knows Ray."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.serve.schema import LoggingConfig

from service import listener, logs, metrics_merge, nodes, shortcut
from service.api.access import Access
from service.api.cluster import Cluster, Facts, Replica
from service.api.guard import Guard
from service.asgi import ASGI
from service.certificates import authorities
from service.listener import Listener
from service.metrics import Exposition, Process
from service.mount import Mount
from service.occupancy import Occupancy
from service.pulse import Pulse
from service.settings import SettingError, Settings, direct_port_range, read

if TYPE_CHECKING:
    from service.wiring import Application

ROOT, PREFIX = "cellstate", "model-"
HEARTBEAT_S = 2.0
#: A replica that was silent for this long is gone.
SILENCE_S = 7.0
#: Under which the cluster keeps what a model runs with
_KEPT = b"cellstate:model:"
#: and how many replicas it was told to have: settings of no concern to a replica, as they are without scaling
_SCALE = b"cellstate:scale:"
_UNSCALED: dict[str, Any] = {
    f.name: f.default
    for f in fields(Settings)
    if f.name in ("replicas", "max_replicas", "target_occupancy", "scale_out_s", "scale_in_s")
}
RAY_VERSION = ray.__version__


class NotDeployed(RuntimeError):
    """An application can't start; the message is what Serve and its replicas say."""


class NotServed(RuntimeError):
    """There is no such model."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a model's replicas run with. bundles: paths of its versions."""

    settings: Settings
    bundles: tuple[Path, ...]


@serve.ingress()
class ModelReplica:
    """One replica of one model: application, engine, and a port of its own."""

    async def __init__(self, settings: Settings, bundles: Sequence[Path], model: str) -> None:  # type: ignore[misc]
        from service.wiring import build  # torch: a second and 200 MB that the root's process can do without

        replica = serve.get_replica_context().replica_id.unique_id
        logs.configure(settings.log_level, settings.log_format, settings.log_to, model=model, replica=replica)
        nodes.check_store(settings)
        self._application: Application = build(settings, bundles)
        socket = listener.bind(settings.host, direct_port_range(settings))
        self._application.direct_url = listener.url(socket, _direct_host(settings), settings.scheme)
        self._application.replica = replica
        await self._application.startup()
        self._occupancy = Occupancy(self._application.managers)
        self._listener = Listener(
            self._application, socket, settings, self._application.requests.refused, self._application.expect
        )
        self._listener.open()
        self._prefix = f"/v1/models/{model}"
        shortcut.serve(Mount(self._application, self._prefix))
        entry = Replica(model=model, replica=replica, url=self._application.direct_url)
        _keep(model, Served(settings, tuple(bundles)))
        self._heartbeat = asyncio.get_running_loop().create_task(_announce(entry))

    def __serve_build_asgi_app__(self) -> ASGI:
        return Mount(self._application, self._prefix)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's controller gets to see of this replica; asked for if replicas are scaled."""
        return self._occupancy.read()

    async def check_health(self) -> None:
        """Raises when the replica must be replaced. That the loop runs this at all is half of the answer."""
        if self._heartbeat.done():
            self._heartbeat.result()

    async def __del__(self) -> None:
        if not hasattr(self, "_heartbeat"):
            return  # the constructor failed
        self._heartbeat.cancel()
        await self._application.shutdown()
        await self._listener.close()


def _direct_host(settings: Settings) -> str:
    if settings.direct_host:
        return settings.direct_host
    if settings.host in ("0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    return settings.host


async def _announce(entry: Replica) -> None:
    """Tells the root application that this replica lives, for ever."""
    root = None
    while True:
        # The root application comes later than the first replica, and may restart.
        with contextlib.suppress(Exception):
            root = root or serve.get_app_handle(ROOT)
            await asyncio.wait_for(_register(root, entry), timeout=HEARTBEAT_S)
        await asyncio.sleep(HEARTBEAT_S)


def _describe(models: list[Facts]) -> tuple[bytes, bytes]:
    """The OpenAPI document and its page, for models given by their facts."""
    from service.api.openapi import document  # torch again, and seldom asked for
    from service.api.pages import page

    api = document(models)
    return json.dumps(api).encode(), page(api, models).encode()


async def _register(root: Any, entry: Replica) -> None:
    await root.register.remote(entry)


@serve.ingress()
class Root:
    """What belongs to no model: the list of models, the metrics of all replicas, health, the API's page."""

    async def __init__(self, models: Sequence[str], door: str, settings: Settings) -> None:  # type: ignore[misc]
        self._seen: dict[str, tuple[float, Replica]] = {}
        self._cluster = cluster = Cluster(
            models,
            self._replicas,
            metrics_merge.merge,
            _describe,
            door=door,
            own=lambda: self._exposition.render()[0],
            verify=authorities(settings) if settings.tls_cert else True,
        )
        self._pulse = Pulse()
        self._pulse.start()
        build = {"version": version("cellstate"), "python": platform.python_version(), "ray": RAY_VERSION}
        process = Process(build, lambda: cluster.ready, lag=self._pulse.lag, replicas=lambda: cluster.living)
        self._access = Access(settings.keys)
        await self._access.watch()
        self._exposition = Exposition([], cluster.requests, process, self._access.counted)
        self._guarded = Guard(cluster, self._access, cluster.paths)
        shortcut.serve(Mount(self._guarded, ""))

    def __serve_build_asgi_app__(self) -> ASGI:
        return Mount(self._guarded, "")

    async def register(self, entry: Replica) -> None:
        """A replica lives; it calls again before SILENCE_S is over."""
        self._seen[entry.replica] = (asyncio.get_running_loop().time(), entry)

    async def _replicas(self) -> list[Replica]:
        oldest = asyncio.get_running_loop().time() - SILENCE_S
        self._seen = {name: (at, entry) for name, (at, entry) in self._seen.items() if at >= oldest}
        return [entry for _, entry in self._seen.values()]

    async def __del__(self) -> None:
        if hasattr(self, "_guarded"):
            self._access.close()
            await self._cluster.close()


def model_application(settings: Settings, model: str, bundles: Sequence[Path]) -> serve.Application:
    """One model, to be run at /v1/models/<model>."""
    nodes.check_store(settings)
    # The count is Serve's business: with it among the arguments, scaling would replace every replica.
    bound = replace(settings, **_UNSCALED)
    _keep_scale(model, settings)
    decorate = serve.deployment(
        ray_actor_options=nodes.actor(settings), **nodes.scale(settings), **_options(settings)
    )
    deployment = decorate(ModelReplica)
    # Serve would take every deploy for new code, and replace the replicas of one that only scales.
    deployment._version = _fingerprint(bound, bundles)
    return deployment.bind(bound, list(bundles), model)


def _fingerprint(settings: Settings, bundles: Sequence[Path]) -> str:
    """Changes with what a replica is made from."""
    parts = [repr(settings), version("cellstate"), *(str(path) for path in bundles)]
    manifests = [(path / "manifest.json").read_bytes() for path in bundles]
    return hashlib.sha256(b"\0".join([*(part.encode() for part in parts), *manifests])).hexdigest()[:16]


def root_application(settings: Settings, models: Sequence[str]) -> serve.Application:
    """The rest, to be run at /."""
    decorate = serve.deployment(ray_actor_options={"num_cpus": 0}, **_options(settings))
    return decorate(Root).bind(list(models), settings.url, settings)


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "max_ongoing_requests": 1_000_000,  # the engine's own limits answer with 429; Ray's would just wait
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": shutdown_s(settings),
        "max_constructor_retry_count": nodes.start_tries(),
        "logging_config": _logging(settings),
    }


def shutdown_s(settings: Settings) -> float:
    """Seconds that a replica gets to end: Serve's deregistration, its drain, then ours; the last ones are for
    closing."""
    return 2 * settings.drain_s + 10.0


def _logging(settings: Settings) -> LoggingConfig:
    # Serve's own files: what it says of its progress is of use to who looks into Serve
    level = "DEBUG" if settings.log_level == "debug" else "WARNING"
    return LoggingConfig(enable_access_log=False, log_level=level)


def model(args: dict[str, str]) -> serve.Application:
    """For `serve deploy`: the application of one model. `args`: `model`, its name, and any settings."""
    settings, found = _found(args)
    name = args.get("model", "")
    if name not in found:
        raise SettingError(f"model: {name!r} is not among the bundles: {', '.join(found) or 'none'}")
    return model_application(settings, name, found[name])


def root(args: dict[str, str]) -> serve.Application:
    """For `serve deploy`: the root application. `args`: any settings; `models` names the bundles' place."""
    settings, found = _found(args)
    return root_application(settings, list(found))


def _found(args: dict[str, str]) -> tuple[Settings, dict[str, list[Path]]]:
    from service import launch

    settings = read({name: str(value) for name, value in args.items() if name != "model"})
    return settings, launch.paths(launch.bundles(settings))


# Of its own progress Serve tells at length, whatever level it was given.
logging.getLogger("ray.serve").setLevel(logging.WARNING)


def start(directory: Path, settings: Settings) -> None:
    """Starts Ray on this machine, for loopback alone, with its files below `directory`."""
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        _temp_dir=str(directory / "ray"),
        include_dashboard=False,
        # Ray would start idle workers for each CPU; and unless told otherwise, every actor here takes none
        num_cpus=os.cpu_count() if settings.num_cpus else 0,
        object_store_memory=80 * 1024 * 1024,  # nothing is put there
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def address() -> str:
    """Of the Ray that this process has joined."""
    return str(ray.get_runtime_context().gcs_address)


def connect(address: str) -> None:
    """Joins the Ray cluster there."""
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)


def join(address: str) -> None:
    """Joins a Ray that `start` started."""
    ray.init(address=address, _node_ip_address="127.0.0.1", logging_level=logging.ERROR, log_to_driver=False)


def disconnect() -> None:
    """Leaves it; what is deployed goes on."""
    ray.shutdown()


def served(model: str) -> Served:
    """What a model that is deployed runs with. Raises NotServed."""
    names = [name.removeprefix(PREFIX) for name in serve.status().applications if name != ROOT]
    found = _internal_kv_get(_KEPT + model.encode())
    if model not in names or found is None:
        raise NotServed(f"no model {model!r} is served there; there is {', '.join(names) or 'none'}")
    kept, scale = json.loads(found), json.loads(_internal_kv_get(_SCALE + model.encode()) or "{}")
    return Served(Settings(**kept["settings"] | scale), tuple(map(Path, kept["bundles"])))


def _keep(model: str, served: Served) -> None:
    # With the cluster, as whoever deploys the next version has neither the settings nor the list of bundles
    kept = {"settings": asdict(served.settings), "bundles": list(map(str, served.bundles))}
    _internal_kv_put(_KEPT + model.encode(), json.dumps(kept).encode())


def _keep_scale(model: str, settings: Settings) -> None:
    scale = {name: getattr(settings, name) for name in _UNSCALED}
    _internal_kv_put(_SCALE + model.encode(), json.dumps(scale).encode())


def deploy_model(settings: Settings, model: str, bundles: Sequence[Path]) -> None:
    """Replaces a model's replicas by ones with these bundles, and waits until they serve and the old ones are
    gone. Raises NotDeployed."""
    application = model_application(settings, model, bundles)
    try:
        serve.run(application, name=_name(model), route_prefix=f"/v1/models/{model}")
    except RuntimeError as error:
        raise NotDeployed(_failures() or str(error)) from error


def _name(model: str) -> str:
    return PREFIX + model


def deploy(settings: Settings, bundles: Mapping[str, Sequence[Path]]) -> None:
    """Runs every application and waits until they serve. Raises NotDeployed with the reason if one can't."""
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": settings.host, "port": settings.port},
        logging_config=_logging(settings),
    )
    targets = [
        serve.RunTarget(
            target=model_application(settings, name, paths),
            name=_name(name),
            route_prefix=f"/v1/models/{name}",
        )
        for name, paths in bundles.items()
    ]
    targets.append(
        serve.RunTarget(target=root_application(settings, list(bundles)), name=ROOT, route_prefix="/")
    )
    try:
        serve.run_many(targets)
    except RuntimeError as error:
        raise NotDeployed(_failures() or str(error)) from error


def _failures() -> str:
    """What the replicas that could not start said."""
    states = [d for a in serve.status().applications.values() for d in a.deployments.values()]
    return "\n".join(d.message for d in states if "FAILED" in d.status or "UNHEALTHY" in d.status)


def stop(settings: Settings) -> None:
    """Drains and ends what `start` and `deploy` started."""
    # The models first: Serve would end the front door at the same time, and with it the streams through it.
    for name in (name for name in serve.status().applications if name != ROOT):
        serve.delete(name, _blocking=False)
    deadline = time.monotonic() + shutdown_s(settings)
    while set(serve.status().applications) - {ROOT} and time.monotonic() < deadline:
        time.sleep(0.1)
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
