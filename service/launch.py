"""The service on a Ray of its own: `cellstate serve` runs this below its supervisor.

Everything Ray and HAProxy read from the environment must be there before Ray's first process starts, so Ray
is imported only after it is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
import threading
import time
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import httpx

from model.bundle import Bundle, find, lineages, load
from model.errors import BundleError
from service import certificates, front_door, listener, log_sink, processes, running, supervisor
from service.settings import ENVIRONMENT_PREFIX, Settings

#: Seconds the front door may take to lead to the models once they are ready.
DOOR_S = 30.0


class Refused(Exception):
    """The service can't start, and the reason is the user's to change."""


#: For a shell that has the key in a variable
KEY = ' -H "authorization: Bearer $KEY"'

#: What to serve, by the models' names: the versions, newest first, and where each is
Found = dict[str, list[tuple[Path, Bundle]]]


def bundles(settings: Settings) -> Found:
    """The bundles to serve. Raises Refused."""
    try:
        found = [(path, load(path)) for place in places(settings) for path in find(place)]
        models = lineages(bundle for _, bundle in found)
    except BundleError as error:
        raise Refused(str(error)) from error
    if not found:
        raise Refused(f"models: no bundle in {settings.models}; `cellstate train` makes one")
    where = {(bundle.name, bundle.digest): path for path, bundle in found}
    return {versions[0].name: [(where[b.name, b.digest], b) for b in versions] for versions in models}


def places(settings: Settings) -> list[Path]:
    """The directories of bundles."""
    return [Path(place) for place in settings.models.split(os.pathsep)]


def paths(found: Found) -> dict[str, list[Path]]:
    """The same without the bundles."""
    return {name: [path for path, _ in versions] for name, versions in found.items()}


def check_port(settings: Settings) -> None:
    """Raises Refused when the front door's port can't be had."""
    try:
        listener.bind(settings.host, [settings.port]).close()
    except listener.PortTaken as error:
        raise Refused(f"{error}; choose another by --port or --host") from error


def check_traces(settings: Settings) -> None:
    """Raises Refused when traces are wanted and what sends them is not installed."""
    if not settings.traces:
        return
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:  # a package above it
        found = None
    if found is None:
        raise Refused("traces: the exporter is not installed; pip install 'cellstate[traces]'")


def environment(directory: Path) -> dict[str, str]:
    """What the processes of a Ray of our own must find in their environment."""
    fallback = listener.bind("127.0.0.1", [0])
    fallback_port = fallback.getsockname()[1]
    fallback.close()
    return {
        **front_door.environment(directory),
        # Unused, but Serve starts it, and a second service on this machine would meet it.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        # Ray's own ports are open on all interfaces; without this token they do nothing.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",  # the files have it
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def settings_of_door(settings: Settings) -> dict[str, str]:
    """What the front door's process, which Serve starts, must find in its environment."""
    return {
        f"{ENVIRONMENT_PREFIX}{name.upper()}": str(getattr(settings, name)) for name in front_door.SETTINGS
    }


def first_request(bundle: Bundle, base_url: str, *, keyed: bool = False) -> str:
    """A command that opens a session of this model and steps it."""
    body: dict[str, object] = {"step": 0}
    if bundle.spec.architecture.task == "text":
        sample = "".join(c for c in "To be, or not to be" if c in bundle.spec.vocabulary)
        body["text"] = sample or bundle.spec.vocabulary[:8].replace("'", "")
        # The log-probabilities of every character after every character would fill the terminal
        body |= {"generate": {"length": 80, "temperature": 0.5}, "return": []}
    else:
        body["inputs"] = [[float(f"{signal_.mean:.3g}") for signal_ in bundle.spec.inputs]]
    return (
        f"curl -s {base_url}/v1/models/{bundle.name}/sessions/demo/steps"
        f" -H 'content-type: application/json'{KEY if keyed else ''} -d '{json.dumps(body)}'"
    )


def banner(settings: Settings, served: Found, seconds: float) -> str:
    """What the user reads when the service is ready."""
    lines = [f"ready after {seconds:.1f} s: {settings.url} (also /docs, /metrics); Ctrl-C stops it", ""]
    lines += [
        "A first request:",
        *(f"  {first_request(v[0][1], settings.url, keyed=bool(settings.keys))}" for v in served.values()),
    ]
    return "\n".join(lines)


def wait_for_door(settings: Settings) -> None:
    """Returns when the front door leads to every model: it learns of a replica after the replica is ready.
    Raises TimeoutError."""
    deadline = time.monotonic() + DOOR_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            # Not verified: the certificate need not name this machine, and nothing is told it
            ready = httpx.get(f"{settings.url}/readyz", trust_env=False, verify=False)  # noqa: S501
            if ready.status_code == HTTPStatus.OK:
                return
        time.sleep(0.1)
    raise TimeoutError(f"the front door at {settings.url} did not lead to the models within {DOOR_S:g} s")


def main(arguments: list[str]) -> int:
    """Starts Ray, deploys, waits for SIGTERM, stops. 2 with a line on stderr when it can't start."""
    began = time.monotonic()
    processes.adopt_orphans()
    processes.end_with_parent(signal.SIGTERM)
    settings, directory, parent = Settings(**json.loads(arguments[0])), Path(arguments[1]), int(arguments[2])
    end_at_once = partial(_end_at_once, directory, parent)
    signal.signal(signal.SIGTERM, end_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.WATCHED)
    if os.getppid() != parent:
        return 1  # the supervisor died before its death could reach us
    try:
        check_port(settings)
        check_traces(settings)
        served = bundles(settings)
        settings = log_sink.shown_here(settings, directory)
        needed = environment(directory)
        certificates.place(settings, directory)
        for name, value in needed.items():
            os.environ.setdefault(name, value)
        os.environ.update(settings_of_door(settings))
        from service import deployments

        print(f"starting Ray {deployments.RAY_VERSION} and {len(served)} model(s): {', '.join(served)}")
        sys.stdout.flush()
        deployments.start(directory, settings)
        # Ray installs a handler of its own meanwhile.
        signal.signal(signal.SIGTERM, end_at_once)
        deployments.deploy(settings, paths(served))
        wait_for_door(settings)
        about = running.Running(os.getpid(), deployments.address(), {n: os.environ[n] for n in needed})
        running.announce(settings.port, directory, about)
    except Refused as error:
        print(f"cellstate: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 (whatever Ray raises: the user gets its reason, not our stack)
        print(f"cellstate: the service did not start: {reason(error)}", file=sys.stderr)
        return 1
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    print(banner(settings, served, time.monotonic() - began), flush=True)
    stop.wait()
    running.withdraw(settings.port, directory)
    # While it stops, Ray reports its own actors' deaths as errors.
    with (directory / "stop.log").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    deployments.stop(settings)
    _leave(directory, parent)
    return 0


def reason(error: Exception) -> str:
    """What is worth reading of an error that came through Ray: its own message, without the tracebacks."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    raised = [match for line in lines if (match := re.match(r"(?:[A-Za-z_]\w*\.)+[A-Z]\w*: (.*)", line))]
    if raised:
        return raised[-1][1].strip()
    return (lines or [type(error).__name__])[-1].strip()


def _end_at_once(directory: Path, parent: int, number: int, frame: FrameType | None) -> None:
    # Nothing is served yet, and no state of Ray's start-up is one to go on from.
    _leave(directory, parent)
    os._exit(0)


def _leave(directory: Path, parent: int) -> None:
    # What the supervisor does, in case it was killed.
    processes.end_descendants()
    if os.getppid() != parent:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
