"""TLS: every port of the service speaks it, and its processes check each other's certificates."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from loadtests.bundles import random_bundle
from service.settings import SettingError, Settings
from tests.conftest import free_port
from tests.service.test_keys import FIRST, MODEL, added, bearer, cellstate, replicas_behind, running

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@dataclass(frozen=True)
class Certificate:
    ca: Path
    cert: Path
    key: Path

    @property
    def settings(self) -> list[str]:
        return ["--tls-cert", str(self.cert), "--tls-key", str(self.key), "--tls-ca", str(self.ca)]

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of localhost and 127.0.0.1, by an authority of our own."""
    place = tmp_path_factory.mktemp("tls")
    made = Certificate(place / "ca.pem", place / "cert.pem", place / "key.pem")
    (place / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    ca, request = place / "ca.key", place / "request.pem"
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    usage = ["-addext", "keyUsage=critical,keyCertSign"]
    for arguments in (
        ["req", "-x509", *new, *usage, "-keyout", ca, "-out", made.ca, "-subj", "/CN=an authority"],
        ["req", *new[:-2], "-keyout", made.key, "-out", request, "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", request, "-CA", made.ca, "-CAkey", ca, "-CAcreateserial", "-days", "2",
         "-out", made.cert, "-extfile", place / "names"],
    ):  # fmt: skip
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    return made


@pytest.fixture
def models(tmp_path: Path) -> Path:
    random_bundle(tmp_path / "models" / MODEL, layers=1, hidden=8, inputs=2, name=MODEL)
    return tmp_path / "models"


def check_port(url: str, certificate: Certificate, key: str) -> None:
    """HTTPS and a stream over it, and nothing in the clear."""
    path = f"/v1/models/{MODEL}/sessions/secure-{httpx.URL(url).port}"
    headers = bearer(key)
    with httpx.Client(base_url=url, verify=certificate.context, trust_env=False, headers=headers) as client:
        assert client.post(f"{path}/steps", json=FIRST).json()["next_step"] == 1
    stream = url.replace("https", "wss") + path + "/stream"
    with connect(stream, proxy=None, ssl=certificate.context, additional_headers=headers) as socket:
        socket.send(json.dumps({**FIRST, "step": 1}))
        assert json.loads(socket.recv(10))["next_step"] == 2
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{url}/healthz", trust_env=False)
    try:
        plain = httpx.get(url.replace("https", "http") + path, headers=headers, trust_env=False)
    except httpx.TransportError:
        return
    assert plain.status_code == 400


def test_a_local_service_speaks_tls(certificate: Certificate, models: Path, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "keys.json"
    key = added(path, "plant")
    arguments = ["--local", "--models", str(models), "--port", str(port), "--keys", str(path)]
    with running(*arguments, *certificate.settings) as (_, said):
        check_port(f"https://127.0.0.1:{port}", certificate, key)
        assert f"https://127.0.0.1:{port}" in "".join(said)


def test_a_certificate_that_can_not_be_used_stops_the_start(
    certificate: Certificate, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="go together"):
        Settings(tls_cert="x")
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    for wrong in (
        ["--tls-cert", str(bad), "--tls-key", str(certificate.key)],
        ["--tls-cert", str(certificate.cert), "--tls-key", str(tmp_path / "none")],
        [*certificate.settings[:4], "--tls-ca", str(bad)],
    ):
        done = cellstate("serve", "--local", "--models", str(models), *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert "can't be used" in done.stderr


@pytest.mark.ray
def test_the_front_door_and_the_replicas_speak_tls(
    certificate: Certificate, models: Path, tmp_path: Path
) -> None:
    port, path = free_port(), tmp_path / "keys.json"
    key, operator = added(path, "plant"), added(path, "prom", "--role", "operator")
    url = f"https://127.0.0.1:{port}"
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    arguments = ["--models", str(models), "--port", str(port), "--store", store, "--replicas", "2"]
    headers = bearer(key)
    with (
        running(*arguments, "--keys", str(path), *certificate.settings),
        httpx.Client(base_url=url, verify=certificate.context, trust_env=False, timeout=30) as client,
    ):
        check_port(url, certificate, key)
        replicas = replicas_behind(client, key, 2)
        for replica in replicas:
            check_port(replica, certificate, key)
        # The processes ask each other: the root the replicas, and a replica the owner of a session
        assert client.get("/metrics", headers=bearer(operator)).text.count("cellstate_model_info{") == 2
        for step, replica in enumerate([*replicas, *replicas]):
            body = {"requests": [{"session_id": "both", "step": step, "inputs": FIRST["inputs"]}]}
            reply = httpx.post(
                f"{replica}/v1/models/{MODEL}/steps",
                json=body,
                headers=headers,
                verify=certificate.context,
                trust_env=False,
            )
            assert reply.json()["results"][0].get("next_step") == step + 1, reply.text
