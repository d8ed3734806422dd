"""The service that is measured: one of our own, started and stopped whatever happens, or one that runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from loadtests import hosts
from loadtests.bundles import random_bundle
from loadtests.chaos import tree
from loadtests.chaos.subject import free_port
from loadtests.door import Failed, wait_ready
from loadtests.observing.processes import listening
from model.bundle import Bundle, find, load
from service import processes

START_S, STOP_S = 180.0, 60.0
LAYERS, HIDDEN = 2, 256


class NoService(Exception):
    """There is nothing to measure; the message says why."""


@dataclass(frozen=True, slots=True)
class Subject:
    """url: where load is sent. door: where its metrics are. root: the topmost of its processes, if known.
    bundle: what the model is, for the reference; None if it is not known here."""

    url: str
    door: str
    model: str
    inputs: int
    facts: Mapping[str, Any]
    root: int | None
    ours: bool
    settings: Mapping[str, str] = field(default_factory=dict)
    bundle: Bundle | None = None


@contextlib.contextmanager
def started(settings: Mapping[str, str], *, local: bool, say: Any) -> Iterator[tuple[str, int, Path]]:
    """`cellstate serve` with these settings, on a free port; a model of random weights and a store of its own
    unless they say otherwise. Its address, process and bundles. Raises NoService."""
    with tempfile.TemporaryDirectory(prefix="cellstate-load-") as directory:
        given = {"store": "sqlite:", "port": str(free_port()), **settings}
        if given["store"] == "sqlite:":
            given["store"] = f"sqlite:{directory}/sessions.db"
        if "models" not in given:
            random_bundle(Path(directory) / "models" / "lstm", LAYERS, HIDDEN, name="lstm")
            given["models"] = f"{directory}/models"
        command = [sys.executable, "-m", "service.cli", "serve", *(["--local"] if local else [])]
        command += [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
        log = Path(directory) / "service.log"
        say(
            f"starting a service: {'one process' if local else 'Ray'},"
            f" store {settings.get('store', 'sqlite:')}"
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Should this process be killed, the service is still asked to stop
                preexec_fn=partial(processes.end_with_parent, signal.SIGTERM),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, _paths()))},
            )
        try:
            url = f"http://127.0.0.1:{given['port']}"
            _wait_ready(url, process, log)
            yield url, process.pid, Path(given["models"])
        finally:
            _stop(process)


def _paths() -> list[str]:
    return [str(Path(__file__).resolve().parents[1]), os.getenv("PYTHONPATH", "")]


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        wait_ready(url, process, START_S)
    except Failed as error:
        raise NoService(f"{error}: {log.read_text(errors='replace')[-1000:].strip()}") from None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asked once; what is left after a minute is killed, with all below it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            tree.kill_all(process.pid)
            process.wait()
        except BaseException:  # a second Ctrl-C while it stops
            tree.kill_all(process.pid)
            process.wait()
            raise


@contextlib.contextmanager
def subject(
    url: str | None,
    *,
    settings: Mapping[str, str],
    local: bool = False,
    model: str = "",
    direct: bool = False,
    key: str = "",
    say: Any = print,
) -> Iterator[Subject]:
    """What is measured: the service at `url`, or one that is started. Raises NoService, Foreign."""
    if url is not None:
        door = hosts.check(url)
        yield _look(door, model, direct, key, listening(httpx.URL(door).port or 80), None, {})
        return
    with started(settings, local=local, say=say) as (door, pid, models):
        yield _look(door, model, direct, key, pid, models, dict(settings))


def _look(
    door: str,
    model: str,
    direct: bool,
    key: str,
    root: int | None,
    models: Path | None,
    settings: Mapping[str, str],
) -> Subject:
    """Asks the service what it serves, and where."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(trust_env=False, headers=headers, timeout=30.0) as client:
        try:
            found = client.get(f"{door}/v1/models").raise_for_status().json()["models"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise NoService(f"{door}/v1/models: {error}") from None
        series = [m for m in found if m["task"] == "series" and model in ("", m["name"])]
        if not series:
            raise NoService(f"no series model {model} at {door}")
        facts = {
            name: series[0][name] for name in ("name", "version", "digest", "architecture", "parameters")
        }
        url = door
        if direct:
            path = f"{door}/v1/models/{facts['name']}/sessions"
            opened = client.post(path, json={}).raise_for_status().json()
            client.delete(f"{path}/{opened['session_id']}")
            if not opened.get("direct_url"):
                raise NoService("the service's replicas have no address of their own (direct_url)")
            url = hosts.check(opened["direct_url"])
    bundles = [load(path) for path in find(models)] if models else []
    bundle = next((b for b in bundles if b.digest == facts["digest"]), None)
    inputs = len(series[0]["inputs"])
    return Subject(url, door, facts["name"], inputs, facts, root, models is not None, settings, bundle)
