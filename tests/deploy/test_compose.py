"""The files that make containers: what they publish, what they pass on, what they must not say."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from service.settings import ENVIRONMENT_PREFIX, Settings, shown

TOP = Path(__file__).resolve().parents[2]
COMPOSE, GPU = TOP / "docker-compose.yml", TOP / "deploy" / "compose.gpu.yml"
FILES = [COMPOSE, GPU, TOP / "deploy" / "Dockerfile"]
PUBLISHED = {"head": 8000, "prometheus": 9090, "grafana": 3000}
#: Not for whoever starts the stack: the cluster is the one it starts, the ports are the containers' own
FIXED = {"address", "port", "direct_ports", "direct_host"}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """With the defaults of its variables."""
    text = re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", COMPOSE.read_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy/container/node.py, with no token in the environment."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what the node sets does not outlive the test
    spec = importlib.util.spec_from_file_location("node", TOP / "deploy" / "container" / "node.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_the_door_and_what_watches_it_are_published_and_on_loopback(
    services: dict[str, dict[str, Any]],
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PUBLISHED.items()}
    assert not {"network_mode", "expose", "privileged"} & {key for s in services.values() for key in s}


def test_the_store_is_reached_by_the_nodes_alone(services: dict[str, dict[str, Any]]) -> None:
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    assert networks["store"] == {"internal": True}
    assert {name for name, s in services.items() if "store" in s["networks"]} == {"head", "worker", "redis"}


def test_every_setting_can_be_given_and_nothing_else_is_called_one() -> None:
    known = {ENVIRONMENT_PREFIX + f.name.upper() for f in shown()}
    for file in FILES:
        named = set(re.findall(rf"\b{ENVIRONMENT_PREFIX}[A-Z_]+", file.read_text()))
        assert named <= known, f"{file.name}: no such setting"
    passed = set(yaml.safe_load(COMPOSE.read_text())["x-settings"])
    missing = known - passed - {ENVIRONMENT_PREFIX + name.upper() for name in FIXED}
    assert not missing, "docker-compose.yml, x-settings: a line for each of these"


def test_images_have_a_tag_that_stays(services: dict[str, dict[str, Any]]) -> None:
    built = {service["image"] for service in services.values() if "build" in service}
    for service in services.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert service["image"] in built or re.search(r"\d", tag), service["image"]


def test_no_secret_is_in_a_file() -> None:
    for file in FILES:
        for name, value in re.findall(
            r"([A-Z_]*(?:TOKEN|PASSWORD|SECRET|KEY)[A-Z_]*)[:=] *(\S*)", file.read_text()
        ):
            assert name.endswith("_PATH") or re.fullmatch(r"(\$\{[A-Z_]+:-\})?", value), (
                f"{file.name}: {name}"
            )


def test_every_container_has_as_little_as_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["mem_limit"], name
        assert service["logging"]["options"]["max-file"], name


def test_what_is_mounted_from_here_is_here_and_read_only(services: dict[str, dict[str, Any]]) -> None:
    mounts = [volume for service in services.values() for volume in service.get("volumes", ())]
    of_files = [volume.split(":") for volume in mounts if volume.startswith(".")]
    assert of_files
    for place, _, mode in of_files:
        assert (TOP / place).exists(), place
        assert mode == "ro", place


def test_a_stop_has_time_for_the_drain(services: dict[str, dict[str, Any]], node: ModuleType) -> None:
    # Ray Serve gives a replica this long: `deployments._options`
    assert (
        2 * Settings().drain_s + 10
        < node.DRAIN_S
        < int(services["worker"]["stop_grace_period"].removesuffix("s"))
    )


def test_the_dockerfile_builds_everywhere() -> None:
    text = (TOP / "deploy" / "Dockerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) (.*)", text, re.MULTILINE)
    assert not [line for name, line in instructions if name == "RUN" and ("--mount" in line or "<<" in line)]
    assert "http" not in text, "an index of packages is for whoever builds"
    assert [line for name, line in instructions if name == "USER"] == ["cellstate"]
    allowed = (TOP / ".dockerignore").read_text().splitlines()
    for name, line in instructions:
        if name == "COPY" and not line.startswith("--from"):
            for source in line.split()[:-1]:
                assert f"!{source}" in allowed, source
                assert (TOP / source).exists(), source


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, GPU]], ids=["cpu", "gpu"])
@pytest.mark.parametrize("command", [["docker", "compose"], ["docker-compose"]], ids="-".join)
def test_compose_takes_the_files(command: list[str], files: list[Path]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no {' '.join(command)} here")
    named = [part for file in files for part in ("-f", str(file))]
    done = subprocess.run([*command, *named, "config", "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_token_is_drawn_once_and_is_for_its_owner_alone(
    node: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    node.token(make=True)
    drawn = path.read_text()
    assert len(drawn) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    node.token(make=True)
    node.token(make=False)
    assert path.read_text() == drawn


def test_a_worker_without_a_token_says_so(
    node: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(node, "HEAD_S", 0.0)
    with pytest.raises(node.Failed, match="must share one"):
        node.token(make=False)


def test_a_token_that_is_given_is_taken(
    node: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    node.token(make=True)
    assert not list(tmp_path.iterdir())


def test_a_log_is_told_whole_also_when_it_is_rotated(
    node: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = object.__new__(node.Logs)  # without its thread
    follower._directory, follower._open = tmp_path, {}
    file = tmp_path / "replica.log"
    file.write_text("one\n")
    follower._tell(file)
    with file.open("a") as more:
        more.write("two\n:actor_name:Replica\n")
    file.rename(file.with_suffix(".log.1"))
    file.write_text("three\n")
    follower._tell(file)
    follower._tell(file)
    follower._open[file].close()
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
