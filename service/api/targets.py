"""Whom Prometheus should scrape, as its HTTP service discovery (`http_sd_configs`) reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.asgi import Scope

#: The path at which a process tells of itself alone; at the front door `/metrics` tells of all replicas.
OWN = "/metrics/process"


@dataclass(frozen=True, slots=True)
class Target:
    """One process. address: host:port. replica: its name, new at each start. models: what it serves. path: of
    its metrics, if that is not /metrics. scheme: http or https."""

    address: str
    replica: str
    models: Sequence[str] = ()
    path: str = ""
    scheme: str = "http"


def host(scope: Scope) -> str:
    """The address that a request was sent to, as its client knows it; empty if it does not say."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")


def scheme(scope: Scope) -> str:
    """http or https, as the request came in: to the front door first, if that ended the encryption."""
    said = next((value for name, value in scope["headers"] if name == b"x-forwarded-proto"), b"")
    return "https" if said == b"https" or scope.get("scheme") == "https" else "http"


def targets_json(targets: Iterable[Target]) -> bytes:
    """A target group for each. The label `replica` is on every sample; a model can't be one, as the samples
    have their own: it is there for relabelling, as __meta_cellstate_model."""
    groups = []
    for target in targets:
        labels = {"replica": target.replica, "__meta_cellstate_model": ",".join(target.models)}
        if target.path:
            labels["__metrics_path__"] = target.path
        if target.scheme != "http":
            labels["__scheme__"] = target.scheme
        groups.append({"targets": [target.address], "labels": labels})
    return json.dumps(groups).encode()
