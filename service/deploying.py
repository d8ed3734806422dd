"""`cellstate deploy`: a new version of a model for a service that runs, without an end to its sessions."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from model.bundle import Bundle, lineages, load
from model.errors import BundleError
from service import running
from service.settings import Settings

if TYPE_CHECKING:
    from service.deployments import Served


class Refused(Exception):
    """It can't be deployed; the service is as it was."""


def main(paths: Sequence[Path], port: int, address: str) -> int:
    """Deploys the bundles, waits until they serve, and says what became of the sessions. 2 with a line on
    stderr if they can't be deployed, 1 if it failed."""
    try:
        bundles = [(path.absolute(), load(path)) for path in paths]
        names = {bundle.name for _, bundle in bundles}
        if not address:
            about = running.find(port)
            os.environ.update(about.environment)  # before Ray is imported
    except (BundleError, running.NotRunning) as error:
        return _told(error, 2)
    from service import deployments, launch

    try:
        if address:
            deployments.connect(address)
        else:
            deployments.join(about.address)
        plans = {name: _plan(deployments.served(name), bundles, name) for name in sorted(names)}
        for name, (settings, served) in plans.items():
            began = time.monotonic()
            print(f"deploying {name}: {', '.join(_says(bundle) for _, bundle in served)}", flush=True)
            deployments.deploy_model(settings, name, [path for path, _ in served])
            print(f"{name}: done after {time.monotonic() - began:.1f} s; {_sessions(settings, name)}")
    except (Refused, BundleError, ConnectionError, deployments.NotServed) as error:
        return _told(error, 2)
    except RuntimeError as error:
        return _told(launch.reason(error), 1)
    finally:
        deployments.disconnect()
    return 0


def _plan(
    now: Served, bundles: Sequence[tuple[Path, Bundle]], name: str
) -> tuple[Settings, list[tuple[Path, Bundle]]]:
    """The model's settings, and what it is to serve: the versions it has and the new ones, the newest first.
    Raises Refused or BundleError."""
    settings = now.settings
    if settings.store == "memory:":
        raise Refused(
            f"{name}: its sessions are in memory alone (store memory:) and would be lost; restart the"
            " service, or run it with a store"
        )
    served = [(path, load(path)) for path in now.bundles]
    known = {bundle.digest for _, bundle in served}
    new = [(path, bundle) for path, bundle in bundles if bundle.name == name and bundle.digest not in known]
    if not new:
        raise Refused(f"{name}: these weights are served already")
    by_digest = {bundle.digest: path for path, bundle in (*served, *new)}
    (lineage,) = lineages(bundle for _, bundle in (*served, *new))
    if lineage[0].digest in known:
        raise Refused(
            f"{name}: version {lineage[0].version} is served already and is newer: versions only go up (to go"
            " back, give the older weights a new version)"
        )
    return settings, [(by_digest[bundle.digest], bundle) for bundle in lineage]


def _says(bundle: Bundle) -> str:
    return f"version {bundle.version} ({bundle.digest[:12]})"


def _sessions(settings: Settings, name: str) -> str:
    """How many sessions are held on which version, as far as that can be asked."""
    try:
        facts = httpx.get(f"{settings.url}/v1/models/{name}", trust_env=False).raise_for_status().json()
    except httpx.HTTPError:
        return f"its sessions by version: GET /v1/models/{name}"
    held = (f"{sum(v['sessions'].values())} on version {v['version']}" for v in facts["versions"])
    return f"sessions come when they are asked for, {settings.upgrade}; now here: {', '.join(held)}"


def _told(error: object, code: int) -> int:
    print(f"cellstate: {error}", file=sys.stderr)
    return code
