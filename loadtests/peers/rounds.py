"""The measurement: every rival in turn, one server at a time, in alternating order."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field

from loadtests.peers import crash
from loadtests.peers.environments import HERE, Absent, Environment
from loadtests.peers.load import Cell, Failed, open_sessions, run_wrk, sessions_for
from loadtests.peers.servers import Cellstate, NotStarted, RayServePlain, Server, Triton
from model.bundle import Bundle

X = ",".join(f"0.{i}" for i in range(8))
WARM_S = 1


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: int
    rounds: int
    minutes: float
    connections: list[int]
    streams: list[int]
    kill: bool = True


@dataclass
class Results:
    """What was found; cells by row and number of clients, one a round."""

    http: dict[str, dict[int, list[Cell]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    streams: dict[str, dict[int, list[Cell]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    memory_mib: dict[str, float] = field(default_factory=dict)
    distance: dict[str, float] = field(default_factory=dict)
    crashes: list[crash.Outcome] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    #: What could not be measured, and why
    notes: list[str] = field(default_factory=list)


def measure(servers: list[Server], bundle: Bundle, plan: Plan) -> Results:
    results = Results()
    absent: set[str] = set()
    took: dict[str, float] = {}
    end = time.monotonic() + 60 * plan.minutes
    for number in range(plan.rounds):
        for server in servers if number % 2 == 0 else reversed(servers):
            if server.name in absent:
                continue
            began = time.monotonic()
            if number and began + took[server.name] > end:
                results.notes.append(
                    f"{server.name}, round {number + 1}: left out, {plan.minutes:.0f} minutes"
                )
                continue
            _say(f"round {number + 1} of {plan.rounds}: {server.name}")
            try:
                server.start()
                results.versions[server.name] = server.version
                _one(server, bundle, plan, results, kill=plan.kill and number == 0)
            except Absent as reason:
                absent.add(server.name)
                results.notes.append(f"{server.name}: absent. {reason}")
            except (Failed, NotStarted, OSError, subprocess.SubprocessError) as reason:
                results.notes.append(f"{server.name}, round {number + 1}: {reason}")
            finally:
                server.stop()
                took[server.name] = time.monotonic() - began
    return results


def _one(server: Server, bundle: Bundle, plan: Plan, results: Results, kill: bool) -> None:
    """One server in one round: the same model? its cells; kill: its end and what is left."""
    for way, url in server.ways.items():
        worst = max(session.worst for session in crash.check(server, url, bundle, new_prefix()))
        results.distance[way] = max(worst, results.distance.get(way, 0.0))
    prefix = new_prefix()
    connections = [n for n in plan.connections if not isinstance(server, RayServePlain) or n in (1, 64)]
    url = next(iter(server.ways.values()))
    open_sessions(url, server.form, prefix, sessions_for(max(connections)), X)
    run_wrk(url, server.form, max(connections), WARM_S, prefix, X)
    for count in connections:
        for way, url in server.ways.items():
            cell = run_wrk(url, server.form, count, plan.seconds, prefix, X)
            results.http[way][count].append(cell)
            _say(f"  {way}, {count}: {cell.rate:,.0f}/s, p50 {cell.p50_ms:.2f} ms, {cell.errors} errors")
    _streams(server, plan, results)
    results.memory_mib[server.name] = server.memory_mib()
    if kill:
        way, url = next(iter(server.ways.items()))
        outcome = crash.killed(server, way, crash.check(server, url, bundle, new_prefix()))
        results.crashes.append(outcome)
        _say(f"  kill -9: {outcome}")


def _streams(server: Server, plan: Plan, results: Results) -> None:
    """Its streams, if it has any. A server that dies of them is started again for the smaller numbers."""
    if not server.streams:
        return
    way = streams_of(server.name)
    for count in sorted(plan.streams, reverse=True):
        try:
            cell = run_streams(server, count, plan.seconds)
        except (Failed, subprocess.SubprocessError) as reason:
            results.notes.append(f"{way}, {count}: {_end(server)}; {reason}")
            if not server.alive():
                server.kill()
                server.start()
            continue
        results.streams[way][count].append(cell)
        _say(f"  {way}, {count}: {cell.rate:,.0f}/s, p50 {cell.p50_ms:.2f} ms, {cell.errors} errors")
        if not server.alive():
            results.notes.append(f"{way}, {count}: {_end(server)} behind it")
            server.kill()
            server.start()


def _end(server: Server) -> str:
    code = server.process.poll() if server.process else None
    return "the server went on" if code is None else f"the server ended with code {code}"


def streams_of(name: str) -> str:
    return "Triton, gRPC streams" if name == "Triton" else f"{name}, own port, WebSockets"


def run_streams(server: Server, count: int, seconds: int) -> Cell:
    """Steps over that many streams, from two client processes (one for a single stream). Raises Failed."""
    if isinstance(server, Triton):
        client = [Environment("triton").python, str(HERE / "apps" / "triton" / "streams.py")]
    elif isinstance(server, Cellstate):
        client = [sys.executable, "-m", "loadtests.peers.streams"]
    else:
        raise Failed(f"{server.name} has no streams")
    shares = [count] if count == 1 else [count - count // 2, count // 2]
    running = [
        subprocess.Popen(
            [*client, server.streams, str(share), str(seconds), new_prefix()],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parents[1],
        )
        for share in shares
    ]  # fmt: skip
    times: list[int] = []
    errors = 0
    try:
        for process in running:
            printed, said = process.communicate(timeout=seconds + 30)
            if process.returncode:
                raise Failed(
                    said.strip().rpartition("\n")[2] or f"the client ended with {process.returncode}"
                )
            result = json.loads(printed)
            times += result["us"]
            errors += result["errors"]
    finally:
        for process in running:
            process.kill()
            process.wait()
    times.sort()
    if not times:
        raise Failed("no step was answered")
    p50, p99 = times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3
    return Cell(len(times) / seconds, p50, p99, errors)


def new_prefix() -> str:
    """Of sessions that nobody else has: digits, for Triton's sequences have numbers."""
    return str(10**8 + secrets.randbelow(9 * 10**8))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
