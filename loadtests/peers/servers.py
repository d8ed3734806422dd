"""The rivals and we, as processes: started, measured, killed, and started again over the same files."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from loadtests.chaos.redis_server import RedisServer
from loadtests.chaos.subject import Failed as NotStarted
from loadtests.chaos.subject import free_port, spawn
from loadtests.chaos.tree import below, kill_all, send
from loadtests.peers.environments import HERE, Environment, triton_server
from loadtests.peers.load import Failed, Form

START_S = 120.0
APPS = HERE / "apps"
PLAIN = Form("/step", '{"session_id":"{id}","inputs":[[{x}]]}')
INFER = '{"parameters":{%s},"inputs":[{"name":"x","shape":[1,8],"datatype":"FP32","data":[{x}]}]}'
TRITON = Form(
    "/v2/models/lstm/infer",
    INFER % '"sequence_id":{id}',
    first=INFER % '"sequence_id":{id},"sequence_start":true',
    reply=("outputs", 0, "data"),
)
OURS = Form(
    "/v1/models/lstm/sessions/{id}/steps",
    '{"inputs":[[{x}]]}',
    first='{"step":0,"inputs":[[{x}]]}',
    numbered='{"step":{step},"inputs":[[{x}]]}',
)


@dataclass
class Server:
    """One rival. `directory`: its own, and what survives it; `weights`: a directory with a bundle."""

    name: str
    form: Form
    directory: Path
    weights: Path
    #: Of its processes: one thread for tensor arithmetic each.
    environment: dict[str, str] = field(default_factory=dict)
    #: Where it is reached, by the names of the table's rows; known once it is started.
    ways: dict[str, str] = field(default_factory=dict)
    #: host:port of its streams; "" without
    streams: str = ""
    process: subprocess.Popen[bytes] | None = None
    #: What it says that it is, where its packages do not
    version: str = ""

    def command(self) -> list[str]:
        """What starts it; sets `ways` and may set `environment`. Raises Absent."""
        raise NotImplementedError

    @property
    def ready(self) -> str:
        """Address that answers below 400 once it takes requests."""
        raise NotImplementedError

    def start(self) -> float:
        """Returns the seconds until it took requests. Raises Failed, or Absent."""
        self.directory.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        log = self.directory / "log"
        self.process = spawn(self.command(), log, self._environment())
        while not answers(self.ready):
            if self.process.poll() is not None or time.monotonic() > began + START_S:
                raise Failed(f"{self.name} did not start: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.1)
        self.started()
        return time.monotonic() - began

    def started(self) -> None:
        """It answers."""

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """kill -9 of all its processes at once."""
        if self.process is not None and self.process.returncode is None:
            kill_all(self.process.pid)
            self.process.wait()

    def stop(self) -> None:
        """Asks it to end, for some seconds, and kills what is left."""
        if self.process is not None:
            doomed = below(self.process.pid)  # those whose parent ends first are no longer found below it
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(8)
            for process in doomed:
                send(process.pid, signal.SIGKILL)
        self.kill()

    def memory_mib(self) -> float:
        """Proportional set size of all its processes."""
        return sum(pss_mib(process.pid) for process in below(os.getpid()))

    def _environment(self) -> dict[str, str]:
        # PYTHONPATH would bring packages of ours into their environments.
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        ours = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        weights = {"PEER_WEIGHTS": str(self.weights / "weights.safetensors")}
        return kept | ours | weights | self.environment


class Triton(Server):
    """The binary of NVIDIA's wheel: sequence batcher, Python backend."""

    def command(self) -> list[str]:
        environment = Environment("triton")
        environment.check()
        server = triton_server(environment.site)
        repository = self.directory / "models"
        version = repository / "lstm" / "1"
        version.mkdir(parents=True, exist_ok=True)
        (version / "model.py").write_text((APPS / "triton" / "model.py").read_text())
        (repository / "lstm" / "config.pbtxt").write_text((APPS / "triton" / "config.pbtxt").read_text())
        http_port, grpc_port = free_port(), free_port()
        self.ways = {"Triton, HTTP": f"http://127.0.0.1:{http_port}"}
        self.streams = f"127.0.0.1:{grpc_port}"
        self.environment = {"PEER_PATH": f"{APPS}:{environment.site}"}
        command = [str(server / "bin" / "tritonserver"), "--model-repository", str(repository)]
        command += ["--backend-directory", str(server / "backends"), "--allow-metrics", "false"]
        command += ["--http-address", "127.0.0.1", "--http-port", str(http_port)]
        return [*command, "--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port)]

    @property
    def ready(self) -> str:
        return f"{self.ways['Triton, HTTP']}/v2/health/ready"

    def started(self) -> None:
        self.version = str(json.loads(get(f"{self.ways['Triton, HTTP']}/v2"))["version"])


class Uvicorn(Server):
    """By hand: FastAPI, nn.LSTM and a dictionary."""

    def command(self) -> list[str]:
        environment = Environment("python")
        environment.check()
        port = free_port()
        self.ways = {self.name: f"http://127.0.0.1:{port}"}
        command = [environment.python, "-m", "uvicorn", "byhand:app", "--app-dir", str(APPS)]
        command += ["--port", str(port), "--loop", "uvloop", "--http", "httptools"]
        return [*command, "--no-access-log", "--log-level", "warning"]

    @property
    def ready(self) -> str:
        return f"{self.ways[self.name]}/ready"


class LitServe(Server):
    """LitServe with its batching, a dictionary in its one worker."""

    def command(self) -> list[str]:
        environment = Environment("python")
        environment.check()
        port = free_port()
        self.ways = {self.name: f"http://127.0.0.1:{port}"}
        return [environment.python, str(APPS / "litserve_app.py"), str(port)]

    @property
    def ready(self) -> str:
        return f"{self.ways[self.name]}/health"


class RayServe(Server):
    """Ray Serve with `@serve.batch`, states in a Redis with an append-only file."""

    tuned = True

    def command(self) -> list[str]:
        environment = Environment("ray")
        environment.check()
        self._redis = RedisServer(self.directory / "redis")
        asyncio.run(self._redis.start())
        port = free_port()
        self.ways = {self.name: f"http://127.0.0.1:{port}"}
        scratch = self.directory / "s"  # short: HAProxy's and Ray's sockets lie in it
        scratch.mkdir(exist_ok=True)
        self.environment = {
            "PEER_REDIS": self._redis.url,
            "PEER_TUNED": "1" if self.tuned else "",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if self.tuned:
            door = "RAY_SERVE_HAPROXY"
            self.environment |= {
                "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                "RAY_SERVE_ENABLE_HA_PROXY": "1",
                f"{door}_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
                f"{door}_SOCKET_PATH": str(scratch / "admin.sock"),
                f"{door}_METRICS_SOCKET_PATH": str(scratch / "metrics.sock"),
                f"{door}_SERVER_STATE_BASE": str(scratch),
                f"{door}_SERVER_STATE_FILE": str(scratch / "server-state"),
                f"{door}_METRICS_PORT": str(free_port()),
                f"{door}_STATS_PORT": str(free_port()),
                "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            }
        return [environment.python, str(APPS / "serve_app.py"), str(port), str(scratch)]

    @property
    def ready(self) -> str:
        return f"{self.ways[self.name]}/-/healthz"

    def started(self) -> None:
        # The proxy is healthy before the application is there.
        deadline = time.monotonic() + START_S
        while "ready\n" not in (self.directory / "log").read_text(errors="replace").splitlines(True)[-1:]:
            if time.monotonic() > deadline or not self.alive():
                raise Failed(f"{self.name} did not start")
            time.sleep(0.1)

    def kill(self) -> None:
        super().kill()
        if hasattr(self, "_redis"):
            self._redis.kill()


class RayServePlain(RayServe):
    """The same as it comes: Ray's own proxy, five requests at a time."""

    tuned = False


class Cellstate(Server):
    """We, on Ray: the front door and the replica's own port."""

    store = "memory:"
    precision = ""

    def command(self) -> list[str]:
        port = free_port()
        self.ways = {f"{self.name}, door": f"http://127.0.0.1:{port}"}
        store = f"sqlite:{self.directory}/sessions.db" if self.store == "sqlite:" else self.store
        # No -P as in `launch`: the service may be run from a checkout that is not installed.
        self.environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        command = [sys.executable, "-m", "service.cli", "serve", "--models", str(self.weights)]
        command += ["--port", str(port), "--store", store]
        return command + (["--precision", self.precision] if self.precision else [])

    @property
    def ready(self) -> str:
        return f"{self.ways[f'{self.name}, door']}/readyz"

    def started(self) -> None:
        door = self.ways[f"{self.name}, door"]
        opened = json.loads(post(f"{door}/v1/models/lstm/sessions", "{}"))
        self.ways[f"{self.name}, own port"] = str(opened["direct_url"])
        self.streams = urlsplit(str(opened["direct_url"])).netloc


class CellstateSqlite(Cellstate):
    store = "sqlite:"


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        get(url)
        return True
    return False


def get(url: str) -> bytes:
    """Body of the reply. Raises OSError unless it is a good one."""
    return _ask("GET", url, None)


def post(url: str, body: str) -> bytes:
    """The same of a POST."""
    return _ask("POST", url, body)


def _ask(method: str, url: str, body: str | None) -> bytes:
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=30)
    with contextlib.closing(connection):
        try:
            connection.request(method, split.path, body, {"content-type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{url}: {error!r}") from error
        if reply.status >= http.client.BAD_REQUEST:
            raise ConnectionError(f"{url}: {reply.status} {text[:200]!r}")
        return text


def pss_mib(pid: int) -> float:
    """Proportional set size of one process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def lineup(directory: Path, weights: Path) -> list[Server]:
    """Everybody, in the order of the table."""
    return [
        Triton("Triton", TRITON, directory / "tr", weights),
        Uvicorn(
            "FastAPI by hand", Form("/sessions/{id}/steps", '{"inputs":[[{x}]]}'), directory / "by", weights
        ),
        RayServePlain("Ray Serve + Redis, as it comes", PLAIN, directory / "rp", weights),
        RayServe("Ray Serve + Redis, tuned", PLAIN, directory / "rt", weights),
        LitServe("LitServe", PLAIN, directory / "li", weights),
        Cellstate("Cellstate, memory:", OURS, directory / "cm", weights),
        CellstateSqlite("Cellstate, sqlite:", OURS, directory / "cs", weights),
    ]


__all__ = ["NotStarted", "Server", "lineup"]
