"""deploy/kuberay.yaml: what can be held against this code, and its parts against each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from service import nodes
from service.deployments import shutdown_s
from service.front_door import COMMAND
from service.settings import ENVIRONMENT_PREFIX, Settings, read
from tests.deploy.manifests import Manifest, documents, parse

MANIFESTS = documents("kuberay.yaml")
SECRET, SECRET_KEYS = "cellstate", {"auth_token", "redis-password"}
#: What Kubernetes and KubeRay's RayService know, of the objects used here
KNOWN = {
    "pod": {
        "containers", "volumes", "securityContext", "terminationGracePeriodSeconds", "tolerations",
        "topologySpreadConstraints",
    },
    "container": {
        "name", "image", "command", "args", "env", "envFrom", "ports", "resources", "volumeMounts",
        "securityContext", "readinessProbe", "livenessProbe", "lifecycle",
    },
    "probe": {
        "httpGet", "exec", "tcpSocket", "initialDelaySeconds", "periodSeconds", "timeoutSeconds",
        "failureThreshold",
    },
    "RayService": {"excludeHeadPodFromServeSvc", "serveService", "serveConfigV2", "rayClusterConfig"},
    "cluster": {
        "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions",
        "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs",
    },
    "group": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}  # fmt: skip


def of(kind: str, name: str = "") -> Manifest:
    (found,) = [m for m in MANIFESTS if m["kind"] == kind and name in ("", m["metadata"]["name"])]
    return found


SPEC = of("RayService")["spec"]
CLUSTER = SPEC["rayClusterConfig"]
HEAD, (WORKERS,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
REDIS = of("StatefulSet")
GROUPS = pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "workers"])


def container(owner: Manifest) -> Manifest:
    (only,) = owner["template"]["spec"]["containers"]
    found: Manifest = only
    return found


def variables(owner: Manifest) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(owner)["env"]}


def environment(owner: Manifest) -> dict[str, str]:
    """The CELLSTATE_ variables of a container, with what it refers to filled in."""
    found: dict[str, str] = {}
    for source in container(owner)["envFrom"]:
        found |= of("ConfigMap", source["configMapRef"]["name"])["data"]
    found |= {name: value for name, value in variables(owner).items() if name.startswith(ENVIRONMENT_PREFIX)}
    return {name: value.replace("$(REDIS_PASSWORD)", "secret") for name, value in found.items()}


def settings(owner: Manifest) -> Settings:
    return read({}, environment(owner))


def test_every_object_is_of_the_kind_and_version_it_should_be() -> None:
    assert [(m["apiVersion"], m["kind"]) for m in MANIFESTS] == [
        ("v1", "ConfigMap"),
        ("ray.io/v1", "RayService"),
        ("policy/v1", "PodDisruptionBudget"),
        ("v1", "Service"),
        ("apps/v1", "StatefulSet"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
    ]


def test_no_field_is_misspelt() -> None:
    assert set(SPEC) <= KNOWN["RayService"]
    assert set(CLUSTER) <= KNOWN["cluster"]
    for owner in (HEAD, WORKERS, REDIS["spec"]):
        assert set(owner["template"]["spec"]) <= KNOWN["pod"]
        assert set(container(owner)) <= KNOWN["container"]
        for probe in ("readinessProbe", "livenessProbe"):
            assert set(container(owner)[probe]) <= KNOWN["probe"]
    for group in (HEAD, WORKERS):
        assert set(group) <= KNOWN["group"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_applications_are_those_of_serve_yaml() -> None:
    configuration = parse(SPEC["serveConfigV2"])
    ServeDeploySchema.model_validate(configuration)
    (local,) = documents("serve.yaml")
    assert configuration["applications"] == local["applications"]
    assert configuration["proxy_location"] == local["proxy_location"]


def test_head_and_workers_have_the_same_settings_and_all_of_them_exist() -> None:
    assert settings(HEAD) == settings(WORKERS)
    assert settings(HEAD).store == "redis://:secret@cellstate-redis:6379/0"


def test_doors_and_replicas_listen_where_the_service_finds_them() -> None:
    http = parse(SPEC["serveConfigV2"])["http_options"]
    assert http["host"] == settings(WORKERS).host == "0.0.0.0"
    (port,) = SPEC["serveService"]["spec"]["ports"]
    assert {"name": "serve", "containerPort": http["port"]} in container(WORKERS)["ports"]
    assert port["port"] == port["targetPort"] == http["port"] == settings(WORKERS).port


@GROUPS
def test_the_environment_of_the_front_door_is_made_by_its_own_command(
    group: Manifest, tmp_path: Path
) -> None:
    """A copy of its variables here would be one that ages: the container's own line is run instead."""
    shell, line = container(group)["command"], container(group)["args"][0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = {"PATH": path, "KUBERAY_GEN_RAY_START_CMD": "env", "TMPDIR": str(tmp_path)}
    printed = subprocess.run([*shell, line], env=run, capture_output=True, text=True, check=True).stdout
    told = subprocess.run(
        [Path(sys.executable).with_name(COMMAND), "--environment"],
        env=run,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = re.findall(r"^export (\w+)=", told, re.MULTILINE)
    assert "RAY_SERVE_ENABLE_HA_PROXY" in names
    assert not [name for name in names if f"\n{name}=" not in f"\n{printed}"]
    assert group["template"]["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}


@GROUPS
def test_ray_is_the_one_that_is_required(group: Manifest) -> None:
    assert CLUSTER["rayVersion"] == version("ray")
    assert container(group)["image"] == container(HEAD)["image"]


def test_a_pod_that_ends_is_given_the_time_that_its_replicas_take() -> None:
    replica_s = shutdown_s(settings(WORKERS))
    drain_s = float(variables(WORKERS)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    pre_stop = container(WORKERS)["lifecycle"]["preStop"]["exec"]["command"]
    assert pre_stop[0] == "sleep"
    assert replica_s < drain_s
    assert drain_s + float(pre_stop[1]) < WORKERS["template"]["spec"]["terminationGracePeriodSeconds"]


def test_probes_ask_what_is_there() -> None:
    dashboard, agent, door = 8265, 52365, settings(WORKERS).port
    assert container(WORKERS)["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": door}
    assert container(WORKERS)["livenessProbe"]["httpGet"] == {
        "path": "/api/local_raylet_healthz",
        "port": agent,
    }
    for probe in ("readinessProbe", "livenessProbe"):
        assert container(HEAD)[probe]["httpGet"] == {"path": "/api/gcs_healthz", "port": dashboard}
    assert HEAD["rayStartParams"]["dashboard-host"] == "0.0.0.0"  # the kubelet is another machine
    routes = ray_routes()
    assert {"/api/gcs_healthz", "/api/local_raylet_healthz"} <= routes


def ray_routes() -> set[str]:
    """The paths that Ray's dashboard and its agents serve."""
    import ray.dashboard

    modules = Path(ray.dashboard.__file__).parent.rglob("*.py")
    return {path for module in modules for path in re.findall(r'\.get\(\s*"(/[\w/]+)"', module.read_text())}


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy", "Service"])
def test_selectors_find_their_pods(kind: str) -> None:
    manifest = of(kind)
    labels = {name: owner["template"]["metadata"]["labels"] for name, owner in
              {"head": HEAD, "workers": WORKERS, "redis": REDIS["spec"]}.items()}  # fmt: skip

    def found(selector: Manifest) -> set[str]:
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    if kind == "PodDisruptionBudget":
        assert found(manifest["spec"]["selector"]["matchLabels"]) == {"workers"}
        assert manifest["spec"]["maxUnavailable"] < WORKERS["minReplicas"]
    elif kind == "Service":
        assert (
            found(manifest["spec"]["selector"])
            == found(REDIS["spec"]["selector"]["matchLabels"])
            == {"redis"}
        )
    else:
        assert found(manifest["spec"]["podSelector"]["matchLabels"]) == {"redis"}
        (rule,) = manifest["spec"]["ingress"]
        (allowed,) = rule["from"]
        assert found(allowed["podSelector"]["matchLabels"]) == {"head", "workers"}


def test_redis_is_one_that_keeps_what_it_acknowledged() -> None:
    (line,) = container(REDIS["spec"])["args"]
    for option in ("--appendonly yes", "--maxmemory-policy noeviction", '--requirepass "$REDIS_PASSWORD"'):
        assert option in line
    claimed = {claim["metadata"]["name"] for claim in REDIS["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container(REDIS["spec"])["volumeMounts"]} == claimed
    assert "--dir /data" in line


def test_secrets_are_references_and_their_keys_are_the_ones_that_are_made() -> None:
    assert not [m for m in MANIFESTS if m["kind"] == "Secret"]
    references = list(walk(MANIFESTS, "secretKeyRef"))
    assert {reference["name"] for reference in references} == {SECRET}
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": SECRET}  # KubeRay takes its auth_token
    assert {reference["key"] for reference in references} | {"auth_token"} == SECRET_KEYS
    assert not list(walk(MANIFESTS, "password"))


def walk(value: Any, key: str) -> Any:
    """Every value under that key, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from walk(each, key)


def test_serve_asks_for_pods_and_there_is_room_for_its_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.nodes.ray.cluster_resources", dict)  # no worker has come yet
    ours = settings(WORKERS)
    actor = nodes.actor(ours)
    assert (actor["num_cpus"], actor["num_gpus"]) == (0, 0.33)
    assert CLUSTER["enableInTreeAutoscaling"] is True
    models = len(parse(SPEC["serveConfigV2"])["applications"]) - 1
    gpus = float(container(WORKERS)["resources"]["limits"]["nvidia.com/gpu"])
    assert isinstance(ours.replicas, int)
    assert models * ours.replicas * ours.num_gpus <= WORKERS["minReplicas"] * gpus
    assert models * ours.max_replicas * ours.num_gpus <= WORKERS["maxReplicas"] * gpus


@GROUPS
def test_nothing_runs_as_root_and_memory_has_a_limit(group: Manifest) -> None:
    for owner in (group, REDIS["spec"]):
        assert owner["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container(owner)["securityContext"]["allowPrivilegeEscalation"] is False
        assert "memory" in container(owner)["resources"]["limits"]
        mounted = {mount["name"] for mount in container(owner)["volumeMounts"]}
        volumes = {volume["name"] for volume in owner["template"]["spec"].get("volumes", [])}
        claimed = {"data"} if owner is REDIS["spec"] else set()
        assert mounted == volumes | claimed
