"""The stack of docker-compose.yml under a name of its own, by `docker compose` or `docker-compose`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
PROJECT = "cellstate-verify"
#: Services whose images come from a registry: the variable that names another image, and the default one
FOREIGN = {"prometheus": "PROMETHEUS_IMAGE", "grafana": "GRAFANA_IMAGE"}


class Failed(Exception):
    """The run can't go on; the message says why."""


class Absent(Exception):
    """There is no engine here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Published:
    """A port of a container on this machine."""

    container: str
    host: str
    port: int


class Stack:
    """environment: for the file's variables."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._compose = _compose()
        outside = {name: value for name, value in os.environ.items() if not name.startswith("CELLSTATE_")}
        self._environment = {**outside, **environment, "COMPOSE_PROJECT_NAME": PROJECT}
        self.services: list[str] = []

    @property
    def command(self) -> str:
        return " ".join(self._compose)

    def choose(self) -> str:
        """Decides which services to start: all whose images can be had. Says what is left out."""
        config = self._run("config", "--services").split()
        left_out = [name for name in FOREIGN if name in config and not self._has_image(name)]
        self.services = sorted(name for name in config if name not in left_out)
        return "; ".join(f"{name} is left out: its image can't be had here" for name in left_out)

    def build(self) -> None:
        self._run("build", "head", limit_s=3600)

    def up(self, workers: int) -> None:
        self._run("up", "--detach", "--scale", f"worker={workers}", *self.services, limit_s=900)

    def down(self, *, volumes: bool = False) -> None:
        self._run("down", "--remove-orphans", *(["--volumes"] if volumes else []), limit_s=300)

    def logs(self) -> str:
        return self._run("logs", "--no-color", "--tail=200")

    def containers(self, service: str) -> list[str]:
        """The running ones' ids."""
        wanted = [
            f"label=com.docker.compose.project={PROJECT}",
            f"label=com.docker.compose.service={service}",
        ]
        return docker("ps", "--quiet", *(part for label in wanted for part in ("--filter", label))).split()

    def published(self) -> list[Published]:
        """Every port of every container that is open on this machine."""
        found = []
        for service in self.services:
            for container in self.containers(service):
                ports = json.loads(
                    docker("inspect", "--format", "{{json .NetworkSettings.Ports}}", container)
                )
                found += [
                    Published(service, each["HostIp"], int(each["HostPort"]))
                    for bound in ports.values()
                    for each in bound or ()
                ]
        return found

    def network(self, name: str) -> str:
        return f"{PROJECT}_{name}"

    def _has_image(self, service: str) -> bool:
        text = (TOP / "docker-compose.yml").read_text()
        default = text.split(f"${{{FOREIGN[service]}:-", 1)[1].split("}", 1)[0]
        image = self._environment.get(FOREIGN[service]) or default
        stand_in = f"{image.rpartition(':')[0]}:latest"
        for candidate in (image, stand_in):
            if _succeeds("docker", "image", "inspect", candidate):
                self._environment[FOREIGN[service]] = candidate
                return True
        return _succeeds("docker", "pull", "--quiet", image)

    def _run(self, *arguments: str, limit_s: float = 120) -> str:
        return _output([*self._compose, *arguments], self._environment, limit_s)


def docker(*arguments: str, limit_s: float = 120) -> str:
    """What `docker` says. Raises Failed."""
    return _output(["docker", *arguments], dict(os.environ), limit_s)


def _compose() -> list[str]:
    """The command. Raises Absent."""
    if shutil.which("docker") is None:
        raise Absent("no `docker` here")
    if not _succeeds("docker", "info"):
        raise Absent("`docker info` fails: no engine runs here, or not for this user")
    if _succeeds("docker", "compose", "version"):
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise Absent("neither `docker compose` nor `docker-compose` here")


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=600, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _output(command: Sequence[str], environment: dict[str, str], limit_s: float) -> str:
    try:
        done = subprocess.run(
            command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}: not done after {limit_s:.0f} s") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()[-2000:] or done.stdout.strip()[-2000:]}")
    return done.stdout
