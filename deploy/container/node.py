#!/opt/cellstate/bin/python
"""A node of a Ray cluster in a container: `cellstate-node head` or `cellstate-node worker`.

The head keeps the cluster's books, has the front door, and deploys the models by the CELLSTATE_ settings;
it runs no replica of them. A worker carries the resource `cellstate`, for which the models' replicas ask.
Both end when their Ray ends, and leave it to the container's restart policy to begin anew.

SIGTERM is Ray's to handle: the node is marked as draining, Serve ends its replicas (running requests end,
sessions are released), then the node goes.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

from service import front_door

#: How the workers know the head, on the network that Ray is to use
HEAD = os.environ.get("RAY_HEAD", "ray-head")
PORT = 6379
#: Fixed, so that the health check finds it
RAYLET_PORT = 6380
#: Of a stop, for a node: Serve's deregistration, the running requests, the sessions' release. Less than the
#: container's stop_grace_period.
DRAIN_S = 45
#: For the head to appear, to a worker that started first
HEAD_S = 120.0
OBJECT_STORE = 80 * 1024 * 1024  # the least that Ray takes; nothing is put there
#: What the replicas ask for, so that they are on workers alone
RESOURCE = '{"cellstate": 1}'
SCRATCH = Path("/tmp/cellstate")  # noqa: S108 (the container's own)


class Failed(Exception):
    """The node can't start; the message says why."""


def main() -> int:
    """Runs the node until Ray ends. 2 when it can't start."""
    roles = {"head": head, "worker": worker}
    if sys.argv[1:] not in [[role] for role in roles]:
        print("usage: cellstate-node head | worker", file=sys.stderr)
        return 2
    role = sys.argv[1]
    SCRATCH.mkdir(mode=0o700, exist_ok=True)
    (SCRATCH / "role").write_text(role)
    try:
        own = own_address()
        token(make=role == "head")
    except Failed as error:
        print(f"cellstate-node: {error}", file=sys.stderr)
        return 2
    os.environ.update({name: os.environ.get(name, value) for name, value in environment().items()})
    Logs(Path("/tmp/ray/session_latest/logs"))  # noqa: S108 (Ray's own place, in the container)
    return roles[role](own)


def own_address() -> str:
    """The address of this container on the network where the head is. A container may be on several."""
    deadline = time.monotonic() + HEAD_S
    while True:
        try:
            there = socket.gethostbyname(HEAD)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((there, PORT))  # sends nothing
                return str(probe.getsockname()[0])
        except OSError as error:
            if time.monotonic() > deadline:
                raise Failed(f"{HEAD!r} is not to be found on this container's networks: {error}") from error
            time.sleep(0.5)


def token(*, make: bool) -> None:
    """The cluster's secret, without which Ray's ports do nothing: RAY_AUTH_TOKEN, else the file at
    RAY_AUTH_TOKEN_PATH, which the head makes once. Raises Failed."""
    os.environ["RAY_AUTH_MODE"] = "token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    os.environ.pop("RAY_AUTH_TOKEN", None)
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "/run/cellstate/token")
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    if make and not path.exists():
        try:
            drawn = path.with_name(f".{path.name}")
            drawn.unlink(missing_ok=True)
            with os.fdopen(os.open(drawn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            drawn.rename(path)
        except OSError as error:
            raise Failed(f"the cluster's token can't be written: {error}; or give RAY_AUTH_TOKEN") from error
    deadline = time.monotonic() + HEAD_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise Failed(
                f"no token at {path}, and no RAY_AUTH_TOKEN: the head and its workers must share one"
            )
        time.sleep(0.5)


def environment() -> dict[str, str]:
    """What Ray's processes must find in theirs, where the container was not told otherwise."""
    return {
        **front_door.environment(SCRATCH),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        # A container that is gone does not refuse connections, it is silent. So the door looks each second,
        # and waits no longer for a connection; and the head takes a node for dead after some 25 s, not 50.
        # No sooner: a busy machine is silent too. Sessions go on elsewhere before that, by their lease.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
        "RAY_health_check_timeout_ms": "5000",
        # A worker whose head is gone ends after this long, and is started again to look for a new one.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
        # Ray logs to files, here in the container's memory (/tmp): few and small.
        "RAY_SERVE_LOG_TO_STDERR": "0",  # the files have it
        "RAY_ROTATION_MAX_BYTES": str(8 * 1024 * 1024),
        "RAY_ROTATION_BACKUP_COUNT": "1",
    }


class Ray:
    """`ray start --block`, with everything of the node below it. A stop is passed on to it."""

    def __init__(self, *options: str) -> None:
        command = ["ray", "start", "--block", *options, "--num-cpus=0", "--disable-usage-stats"]
        command += [f"--node-manager-port={RAYLET_PORT}", f"--object-store-memory={OBJECT_STORE}"]
        self._asked = False
        self._process = subprocess.Popen(  # noqa: S603 (its own command)
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.terminate()

    def wait(self) -> int:
        """Its exit code, which is never 0 unless a stop was asked for."""
        code = self._process.wait()
        return 0 if self._asked else code or 1

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._process.terminate()


def worker(own: str) -> int:
    print(f"cellstate-node: worker {own} of the cluster at {HEAD}:{PORT}", flush=True)
    # Ray gives a node 30 s to start: not before it can, and not while the head needs the processors
    deadline = time.monotonic() + HEAD_S
    while not (answers(HEAD, PORT) and answers(HEAD, RAYLET_PORT)):
        if time.monotonic() > deadline:
            print(f"cellstate-node: no Ray at {HEAD}:{PORT} within {HEAD_S:g} s", file=sys.stderr)
            return 1
        time.sleep(0.5)
    os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = str(DRAIN_S)
    return Ray(f"--address={HEAD}:{PORT}", f"--node-ip-address={own}", f"--resources={RESOURCE}").wait()


def head(own: str) -> int:
    print(f"cellstate-node: head {own}", flush=True)
    # No dashboard, and with it no job API: they run what they are given.
    options = [f"--port={PORT}", f"--node-ip-address={own}", "--temp-dir=/tmp/ray"]
    os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # no session is here
    ray = Ray("--head", "--include-dashboard=false", *options)
    while ray.runs and not (answers(own, PORT) and answers(own, RAYLET_PORT)):
        time.sleep(0.2)
    # Waits for the models' replicas, and so for workers. If Ray dies meanwhile, it would wait for ever.
    deploy = subprocess.Popen(["cellstate", "serve", "--address", f"{own}:{PORT}"])  # noqa: S603, S607 (the image's)
    while ray.runs and deploy.poll() is None:
        time.sleep(0.2)
    if deploy.poll() is None:
        deploy.kill()
    elif deploy.returncode != 0 and ray.runs:
        ray.end()
    return ray.wait()


class Logs:
    """Says on stdout what Serve and its replicas log and print: Ray has that in files. Not what Ray says of
    itself, which is long and stays there (/tmp/ray/session_latest/logs)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[Path, TextIO] = {}
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while True:
            for pattern in ("serve/*.log", "worker-*.err", "worker-*.out"):
                for path in self._directory.glob(pattern):
                    try:
                        self._tell(path)
                    except OSError:
                        continue  # rotated away, or the node ends
            sys.stdout.flush()
            time.sleep(0.5)

    def _tell(self, path: Path) -> None:
        file = self._open.get(path)
        if file is None or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            fresh = path.open(errors="replace")
            if file is not None:  # rotated: the rest of the old one first
                self._write(file)
                file.close()
            file = self._open[path] = fresh
        self._write(file)

    def _write(self, file: TextIO) -> None:
        for line in file:
            if not line.startswith(
                (":job_id:", ":actor_name:", ":task_name:")
            ):  # Ray's marks for its own reader
                sys.stdout.write(line if line.endswith("\n") else line + "\n")


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
