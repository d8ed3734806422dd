"""Replicas on the nodes of a Ray cluster: how many, where, and whether all of them reach their store."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from service.autoscaling import ByOccupancy, count
from service.occupancy import OCCUPANCY
from service.settings import SettingError, Settings

#: Of a node's custom resource a replica takes so little that any number of models has room on it.
SHARE = 0.0001
#: Seconds for which a node must be gone before its replica is: while Ray's head starts anew, the others join
#: it one by one.
GONE_S = 10.0
#: Seconds for which an answer of Ray's is good: Serve asks its policies ten times as often.
FRESH_S = 1.0
MOST = 100_000
#: Seconds of a replica's reports that count, as their mean. It makes one in a fifth of that, and sends them
#: every 10 s.
LOOK_BACK_S = 20.0


class EachNode:
    """Serve's autoscaling policy, in its controller: as many replicas as there are nodes. That no two are on
    one node is the scheduler's business (`max_replicas_per_node`)."""

    def __init__(self, resource: str = "") -> None:
        self._resource, self._count, self._asked = resource, 0, float("-inf")

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        now = time.monotonic()
        if now - self._asked >= FRESH_S:
            try:
                self._count, self._asked = count(ray.nodes(), self._resource), now  # type: ignore[no-untyped-call]
            except Exception:  # noqa: BLE001  Ray's head is away: all stays as it is
                return context.target_num_replicas, {}
        return max(1, self._count), {}


def scale(settings: Settings) -> dict[str, Any]:
    """How many replicas, as a deployment's options say it."""
    if isinstance(settings.replicas, str):
        policy = _policy(EachNode, resource=settings.node_resource)
        config = AutoscalingConfig(
            min_replicas=1, max_replicas=MOST, upscale_delay_s=0, downscale_delay_s=GONE_S, policy=policy
        )
        return {"max_replicas_per_node": 1, "autoscaling_config": config}
    if not settings.max_replicas:
        return {"num_replicas": settings.replicas}
    config = AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=settings.max_replicas,
        upscale_delay_s=settings.scale_out_s,
        downscale_delay_s=settings.scale_in_s,
        look_back_period_s=LOOK_BACK_S,
        policy=_policy(ByOccupancy, metric=OCCUPANCY, target=settings.target_occupancy),
    )
    return {"autoscaling_config": config}


def _policy(policy: type, **arguments: Any) -> AutoscalingPolicy:
    path = f"{policy.__module__}:{policy.__name__}"
    return AutoscalingPolicy(policy_function=path, policy_kwargs=arguments)  # type: ignore[no-untyped-call]


def actor(settings: Settings) -> dict[str, Any]:
    """What a replica takes from its node, as Ray's options of an actor say it."""
    options: dict[str, Any] = {"num_cpus": settings.num_cpus, "num_gpus": 0}
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    # Of a device that is asked for, the node may be yet to come.
    if settings.device.startswith("cuda") or (settings.device == "auto" and resources.get("GPU", 0) > 0):
        options["num_gpus"] = settings.num_gpus
    if settings.node_resource:
        options["resources"] = {settings.node_resource: SHARE}
    return options


def start_tries() -> int:
    """How often replicas may fail to start before a deploy is given up (Serve: at most three times for each
    that there is to be). On one machine, what failed twice will fail again; of several, one may die in the
    meantime, and what was to start there counts as failed."""
    return 20 if len(_machines()) > 1 else 2


def _machines() -> set[str]:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeManagerAddress"] for node in nodes if node["Alive"]}


def check_store(settings: Settings) -> None:
    """Raises SettingError if the store is a file and the cluster has several machines."""
    machines = _machines()
    if settings.store.startswith("sqlite:") and len(machines) > 1:
        raise SettingError(
            f"store: {settings.store} is a file, and this cluster has {len(machines)} machines, each with"
            " files of its own; give a redis:// that all of them reach"
        )
