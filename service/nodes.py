"""The nodes of the Ray cluster: one replica on each of them, and whether a store is in reach of them all."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from service.autoscaling import count
from service.settings import SettingError, Settings

#: Of a node's custom resource a replica takes so little that any number of models has room on it.
SHARE = 0.0001
#: Seconds for which a node must be gone before its replica is: while Ray's head starts anew, the others join
#: it one by one.
GONE_S = 10.0
#: Seconds for which an answer of Ray's is good: Serve asks its policies ten times as often.
FRESH_S = 1.0
MOST = 100_000


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


def each_node(resource: str) -> dict[str, Any]:
    """The options of a deployment with one replica on each node, or on those that carry the resource."""
    policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]
        policy_function=f"{__name__}:{EachNode.__name__}", policy_kwargs={"resource": resource}
    )
    return {
        "max_replicas_per_node": 1,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=1, max_replicas=MOST, upscale_delay_s=0, downscale_delay_s=GONE_S, policy=policy
        ),
    }


def check_store(settings: Settings) -> None:
    """Raises SettingError if the store is a file and the cluster has several machines."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    machines = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    if settings.store.startswith("sqlite:") and len(machines) > 1:
        raise SettingError(
            f"store: {settings.store} is a file, and this cluster has {len(machines)} machines, each with"
            " files of its own; give a redis:// that all of them reach"
        )
