from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from loadtests.bundles import random_bundle
from model.bundle import Bundle
from model.config import Architecture, ModelSpec
from service import launch, listener, supervisor
from service.cli import main, parser
from service.settings import Settings, shown


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_every_setting_is_a_flag_with_its_help() -> None:
    text = " ".join(run("serve", "--help").stdout.split())
    for f in shown():
        assert f"--{f.name.replace('_', '-')} " in text
        assert f.metadata["help"] in text
    assert "--local" in text
    assert "--unsafe" not in text


def test_the_help_names_the_commands() -> None:
    text = run("--help").stdout
    for command in ("serve", "train", "evaluate", "inspect", "explain"):
        assert command in text


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout.startswith("cellstate 0.")


def test_flags_reach_their_settings() -> None:
    args = parser().parse_args(["serve", "--port", "8001", "--max-body-bytes", "4096"])
    assert (args.port, args.max_body_bytes, args.host) == ("8001", "4096", None)


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        (["--port", "x"], {}, "port: 'x' is not a whole number"),
        (["--store", "floppy:"], {}, "store: 'floppy:' is not known"),
        ([], {"CELLSTATE_PROT": "1"}, "CELLSTATE_PROT: no such setting"),
        (["--local", "--models", "/nowhere"], {}, "/nowhere: no such directory"),
        (["--models", "/nowhere"], {}, "/nowhere: no such directory"),
    ],
)
def test_a_start_that_can_not_be_is_one_line_and_code_2(
    arguments: list[str], environment: dict[str, str], reason: str
) -> None:
    port = [] if "--port" in arguments else ["--port", str(_free_port())]
    done = run("serve", *arguments, *port, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"cellstate: {reason}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("local", [["--local"], []])
def test_a_taken_port_is_one_line_and_code_2(local: list[str]) -> None:
    with listener.bind("127.0.0.1", [0]) as taken:
        port = taken.getsockname()[1]
        done = run("serve", *local, "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1" in done.stderr


def test_an_empty_directory_of_models_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(launch.Refused, match="cellstate train"):
        launch.bundles(Settings(models=str(tmp_path)))


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    for place in ("a", "b"):
        random_bundle(tmp_path / place, layers=1, hidden=4, inputs=1, name="twin")
    with pytest.raises(launch.Refused, match="two bundles are named 'twin'"):
        launch.bundles(Settings(models=str(tmp_path)))


def test_an_unknown_command_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fly"])
    assert ended.value.code == 2
    assert "fly" in capsys.readouterr().err


def body_of(command: str) -> dict[str, object]:
    arguments = shlex.split(command)
    body: dict[str, object] = json.loads(arguments[arguments.index("-d") + 1])
    return body


def test_the_first_request_of_a_series_is_its_inputs_means(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, layers=1, hidden=4, inputs=2, name="s")
    command = launch.first_request(bundle, "http://127.0.0.1:8000")
    assert "http://127.0.0.1:8000/v1/models/s/sessions/demo/steps" in command
    assert body_of(command) == {"step": 0, "inputs": [[0.0, 0.0]]}


@pytest.mark.parametrize("vocabulary", ["\n To,benrt", "xyz", "'\"\\"])
def test_the_first_request_of_a_text_is_of_its_vocabulary(vocabulary: str) -> None:
    arch = Architecture("text", 4, 4, 1, len(vocabulary))
    bundle = Bundle("t", "1", ModelSpec(arch, vocabulary=vocabulary), {})
    text = body_of(launch.first_request(bundle, "http://h"))["text"]
    assert isinstance(text, str)
    assert text
    assert set(text) <= set(vocabulary)


def test_a_reason_is_the_errors_own_words() -> None:
    error = RuntimeError("ray::Replica\n  File x, line 1\nservice.listener.PortTaken: port 1: in use\n")
    assert launch.reason(error) == "port 1: in use"
    assert launch.reason(RuntimeError("no more")) == "no more"
    assert launch.reason(KeyError()) == "KeyError"


def test_local_serves_until_a_signal(tmp_path: Path) -> None:
    random_bundle(tmp_path / "m", layers=1, hidden=4, inputs=1, name="m")
    command = [sys.executable, "-m", "service.cli", "serve", "--local", "--models", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--port", str(_free_port())], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[0].startswith("ready after")
        answer = subprocess.run(shlex.split(lines[3]), capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["next_step"] == 1
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopping" in errors


def _free_port() -> int:
    with listener.bind("127.0.0.1", [0]) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("root", ["/tmp", "/tmp/s-12345678"])
def test_the_sockets_below_the_scratch_directory_have_paths_that_haproxy_takes(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", root)
    directory = supervisor.scratch_directory()
    directory.rmdir()
    node = "f" * 56  # Serve's name for the files of one node
    assert len(str(directory / node / "metrics.sock")) <= 97
