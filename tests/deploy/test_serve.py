"""deploy/serve.yaml, as Ray Serve reads it."""

from __future__ import annotations

import pytest
from ray.serve.schema import ServeDeploySchema

from model.bundle import find, load
from service import deployments
from service.settings import SHIPPED_BUNDLES, read
from tests.deploy.manifests import DEPLOY, Manifest, documents


@pytest.fixture(scope="module")
def configuration() -> Manifest:
    (found,) = documents("serve.yaml")
    return found


def test_serve_takes_it(configuration: Manifest) -> None:
    ServeDeploySchema.model_validate(configuration)


def test_every_application_is_one_of_ours_with_settings_that_exist(configuration: Manifest) -> None:
    for application in configuration["applications"]:
        module, _, builder = application["import_path"].partition(":")
        assert module == deployments.__name__
        assert callable(getattr(deployments, builder))
        flags = {name: str(value) for name, value in application["args"].items() if name != "model"}
        read(flags, {})
        assert not set(flags) - set(read({}, {}).__slots__)


def test_every_shipped_model_is_served_where_clients_look_for_it(configuration: Manifest) -> None:
    names = {load(path).name for path in find(SHIPPED_BUNDLES)}
    by_name = {application["name"]: application for application in configuration["applications"]}
    assert set(by_name) == {deployments.ROOT, *(deployments.PREFIX + name for name in names)}
    for name in names:
        application = by_name[deployments.PREFIX + name]
        assert application["args"]["model"] == name
        assert application["route_prefix"] == f"/v1/models/{name}"
    assert by_name[deployments.ROOT]["route_prefix"] == "/"


def test_as_it_is_nothing_is_reachable_from_outside(configuration: Manifest) -> None:
    assert configuration["http_options"]["host"] == "127.0.0.1"
    assert read({}, {}).host == "127.0.0.1"
    assert all("host" not in application["args"] for application in configuration["applications"])


def test_the_settings_that_the_comments_name_exist() -> None:
    lines = (DEPLOY / "serve.yaml").read_text().splitlines()
    proposed = [
        line.strip()[2:] for line in lines if line.startswith("      # ") and line.strip()[2:3].isalpha()
    ]
    pairs = dict(
        line.split(": ", 1) for line in proposed if line.split(": ")[0] in ("host", "store", "replicas")
    )
    settings = read(pairs, {})
    assert (settings.host, settings.node_resource) == ("0.0.0.0", "cellstate")
    assert settings.store.startswith("redis://")
