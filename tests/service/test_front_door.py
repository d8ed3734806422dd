from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from service import front_door, launch, shortcut
from service.settings import Settings

CONFIGURATION = """\
global
    log 127.0.0.1:514 local0 info
    nbthread 1
defaults
    mode http
    option httplog
    option log-health-checks
    errorfile 503 /tmp/500.http
    balance hash path
frontend prometheus
    bind :9101
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend http-ett if is_http-ett
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found. Ping it."
backend http-ett
    log global
    server one 127.0.0.1:30000 check
    server SERVE_PROXY 127.0.0.1:8500 check backup
listen stats
  bind *:8404
  stats enable
"""


def test_nothing_listens_but_the_door() -> None:
    text = front_door.rewrite(CONFIGURATION, Path("/x"))
    assert [line.strip() for line in text.splitlines() if "bind" in line] == ["bind 127.0.0.1:8000"]
    assert "stats enable" not in text


def test_the_door_speaks_tls_if_there_is_a_certificate_or_does_not_start(tmp_path: Path) -> None:
    text = front_door.rewrite(CONFIGURATION, Path("/x"), certificate=Path("/y/door.pem"))
    (bind,) = (line.strip() for line in text.splitlines() if "bind" in line)
    assert bind == "bind 127.0.0.1:8000 ssl crt /y/door.pem alpn http/1.1 ssl-min-ver TLSv1.2"
    with pytest.raises(RuntimeError, match="no TLS"):
        front_door.rewrite(
            CONFIGURATION.replace("http_frontend", "frontend"), Path("/x"), certificate=Path("/y")
        )
    below = tmp_path / "node"
    below.mkdir()
    configuration = below / "haproxy.cfg"
    configuration.write_text(CONFIGURATION)
    front_door.prepare(["-f", str(configuration)])
    assert " ssl " not in configuration.read_text()
    (tmp_path / "door.pem").touch()
    configuration.write_text(CONFIGURATION)
    front_door.prepare(["-f", str(configuration)])
    assert f" ssl crt {tmp_path / 'door.pem'} " in configuration.read_text()


def test_no_request_is_logged_and_none_goes_round_by_rays_proxy() -> None:
    text = front_door.rewrite(CONFIGURATION, Path("/x"))
    assert "log" not in text.replace("http-request set-log-level", "")
    assert "8500" not in text
    assert "server one 127.0.0.1:30000 check" in text


def test_errors_are_pages_of_ours() -> None:
    text = front_door.rewrite(CONFIGURATION, Path("/x"))
    assert "errorfile 503 /x/503.http" in text
    assert "/tmp/500.http" not in text


def test_a_door_that_knows_no_route_yet_asks_to_come_back() -> None:
    text = front_door.rewrite(CONFIGURATION, Path("/x"))
    assert "    http-request deny deny_status 503" in text.splitlines()
    assert "status 404" not in text


def test_every_section_stays_in_its_place() -> None:
    text = front_door.rewrite(CONFIGURATION, Path("/x"))
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads == ["global", "defaults", "frontend http_frontend", "backend http-ett"]
    assert text.index("timeout tunnel") < text.index("frontend http_frontend")
    assert text.index("timeout check 2s") < text.index("frontend http_frontend")


def test_rays_template_still_has_what_is_rewritten() -> None:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.submodule_search_locations is not None
    # Read, not imported: importing Ray Serve warns, and takes seconds.
    place = Path(ray.submodule_search_locations[0]) / "serve" / "_private" / "haproxy_templates.py"
    template = place.read_text()
    for wanted in (
        "frontend prometheus\n",
        "listen stats\n",
        "frontend http_frontend\n",
        "errorfile 503",
        "status 404 content-type text/plain lf-string",
        "    acl is_{{ backend.name or 'unknown' }} path_beg {{ '/' if not",
        "    use_backend {{ backend.name or 'unknown' }} if is_{{ backend.name or 'unknown' }}\n",
        "    server {{ server.name }} {{ server.host }}:{{ server.port }} check",
    ):
        assert wanted in template
    assert "balance {{ config.balance_algorithm }}" in template


@pytest.mark.parametrize("status", [400, 408, 429, 500, 502, 503, 504])
def test_an_error_page_is_a_whole_response(status: int) -> None:
    head, _, body = front_door.error_page(status).partition("\r\n\r\n")
    line, *headers = head.split("\r\n")
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert "content-type: application/problem+json" in headers
    assert f"content-length: {len(body)}" in headers
    assert json.loads(body)["status"] == status
    assert ("retry-after: 1" in headers) == (status in (429, 502, 503, 504))


def test_the_doors_own_settings_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launch.settings_of_door(Settings(max_requests=77, request_timeout_s=9.0)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CELLSTATE_REPLICAS", "3")  # which memory: could not have: no concern of the door's
    monkeypatch.setenv("CELLSTATE_STORE", "memory:")
    file = tmp_path / "haproxy.cfg"
    acl = "    acl is_http-ett path_beg /v1/models/ett/\n    use_backend"
    file.write_text(CONFIGURATION.replace("    use_backend", acl))
    front_door.prepare(["haproxy", "-f", str(file)])
    assert "be_conn(http-ett),add(txn.singles),div(txn.servers) ge 77 }" in file.read_text()
    assert "timeout http-request 9s" in file.read_text()


def test_preparing_rewrites_the_file_in_place(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION)
    front_door.prepare(["haproxy", "-db", "-f", str(file), "-dR"])
    once = file.read_text()
    assert "9101" not in once
    assert (tmp_path / "503.http").read_bytes().count(b"\r\n") >= 4


def test_the_environment_names_the_short_way_and_our_binary(tmp_path: Path) -> None:
    values = front_door.environment(tmp_path)
    module, _, function = values["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert module == shortcut.__name__
    assert getattr(shortcut, function)
    assert values["RAY_SERVE_HAPROXY_BINARY_PATH"].endswith(front_door.COMMAND)
    assert values["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_for_a_shell_the_environment_is_exports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [front_door.COMMAND, "--environment"])
    front_door.main()
    assert "export RAY_SERVE_ENABLE_HA_PROXY=1\n" in capsys.readouterr().out
