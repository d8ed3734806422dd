"""Running services for these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.bundles import random_bundle
from model import bundle as bundles
from model.bundle import Bundle
from service.settings import SHIPPED_BUNDLES
from tests.service.serving import Service, save_bundles, serving


@pytest.fixture(scope="package")
def local_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One process with made models, near enough to the reference to see a single step too many."""
    with serving(save_bundles(tmp_path_factory.mktemp("bundles")), precision="fp32") as service:
        yield service


@pytest.fixture(scope="package")
def kept_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same with a store in a file."""
    store = f"sqlite:{tmp_path_factory.mktemp('store') / 'sessions.db'}"
    with serving(save_bundles(tmp_path_factory.mktemp("bundles")), precision="fp32", store=store) as service:
        yield service


@pytest.fixture(scope="package", params=["local", "kept", pytest.param("ray", marks=pytest.mark.ray)])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A service in one process, one with a store, and one on Ray behind its front door."""
    if request.param == "kept":
        kept: Service = request.getfixturevalue("kept_service")
        return kept
    if request.param == "local":
        local: Service = request.getfixturevalue("local_service")
        return local
    on_ray = request.getfixturevalue("ray_service")
    directory = tmp_path_factory.mktemp("same")
    return Service(on_ray.url, {name: _bundle(name, directory) for name in on_ray.models})


def _bundle(name: str, directory: Path) -> Bundle:
    """The bundle that the service on Ray has under this name: a shipped one, or a made one."""
    if (SHIPPED_BUNDLES / name).exists():
        return bundles.load(SHIPPED_BUNDLES / name)
    sizes = {"alpha": (2, 16, 3), "beta": (1, 8, 2)}[name]
    return random_bundle(directory / name, *sizes, name=name)
