"""What is done to the cluster, part by part, and what must be seen."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtests.chaos.clients import Clients
from loadtests.chaos.proxy import Odds, Proxy
from loadtests.chaos.subject import Failed
from loadtests.cluster.nodes import RESOURCE, ROOT, START_S, RayCluster, ready
from model.bundle import load, save
from service.settings import SHIPPED_BUNDLES

MODEL, OTHER = "ett", "shakespeare"
SERVE = ROOT / "deploy" / "serve.yaml"
PARTS = ("nodes", "join", "version", "scale", "node", "redis", "head")
LEASE_S = 2.0
CALM = Odds(0, 0, 0, 0, 0)
REPLICA = f"ray::ServeReplica:model-{MODEL}"
#: Of the whole cluster. As docs/cluster.md says, in each node's environment
SETTINGS = {
    "CELLSTATE_HOST": "0.0.0.0",
    "CELLSTATE_REPLICAS": f"nodes:{RESOURCE}",
    "CELLSTATE_DEVICE": "cpu",
    "CELLSTATE_PRECISION": "fp32",  # compared with a float64 reference
    "CELLSTATE_LEASE_S": str(LEASE_S),
    "CELLSTATE_DRAIN_S": "5",
}


class Story:
    """One cluster, and sessions that go on through all of it."""

    def __init__(self, directory: Path, workers: int, sessions: int, rate: float) -> None:
        self._directory, self._sessions = directory, sessions
        self.cluster = RayCluster(directory, workers, SETTINGS)
        # What stands before a cluster's doors: takes one that answers
        self._balancer = Proxy(lambda: [node.url for node in self.cluster.nodes], CALM, random.Random(1))
        self._bundle = load(SHIPPED_BUNDLES / MODEL)
        self._rate, self._began, self._bad = rate, time.monotonic(), 0
        self._clients: Clients | None = None

    async def run(self, parts: Sequence[str]) -> int:
        """0 when all held."""
        await self._start()
        balancer = await self._balancer.start()
        # Half through the doors alone, half by the replicas' own addresses where those work
        ways = [(balancer, False), (balancer, True)]
        self._clients = Clients(ways, self._bundle, 7, self._rate, 60.0, MODEL)
        try:
            await self._clients.open(self._sessions)
            running = asyncio.create_task(self._clients.run())
            for part in parts:
                self._say(f"-- {part}")
                await getattr(self, f"_{part}")()
            self._clients.stop()
            await running
            found = await self._clients.compare([])
        finally:
            await self._balancer.stop()
            await self._clients.close()
        steps = sum(len(track.outputs) for track in self._clients.tracks)
        self._say(f"-- {self._sessions} sessions, {steps} steps acknowledged, {dict(self._clients.seen)}")
        what = f"steps lost {found.lost}, doubled {found.doubled}, wrong {found.wrong}; broken {found.broken}"
        self._check(not found.damage, what, *found.examples)
        return 1 if self._bad else 0

    # The parts

    async def _start(self) -> None:
        self._say(
            f"a Redis, a head, and {len(self.cluster.workers)} workers: {self.cluster.network.address}/24"
        )
        await self.cluster.start()
        self._say(f"Ray at {self.cluster.address}, with a token; its own state in Redis")
        await self._deploy()
        self._say("serve deploy deploy/serve.yaml: sent")
        await self._until("one replica on each worker, none on the head", self._one_on_each)
        for node in self.cluster.nodes:
            await ready(node.url)
        self._check(True, "the door of each node leads to the models: " + self._doors())

    async def _nodes(self) -> None:
        """What each node says of the whole."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            told = [(await http.get(f"{node.url}/v1/models")).json()["models"] for node in self.cluster.nodes]
            names = {tuple(model["name"] for model in models) for models in told}
            self._check(names == {_served()}, f"every door lists the same models: {names}")
            opened = [
                (await http.post(f"{self.cluster.head.url}/v1/models/{MODEL}/sessions", json={})).json()
                for _ in range(12)
            ]
            hosts = Counter(httpx.URL(facts["direct_url"]).host for facts in opened)
            workers = {worker.machine.address for worker in self.cluster.workers}
            self._check(set(hosts) <= workers, f"direct addresses are the workers' own: {dict(hosts)}")
            # The other model may be starting still.
            wanted, scraped = len(_served()) * len(workers), ""
            for _ in range(60):
                scraped = (await http.get(f"{self.cluster.head.url}/metrics")).text
                if len(_running(scraped)) == wanted:
                    break
                await asyncio.sleep(1)
            self._check(len(_running(scraped)) == wanted, f"one scrape of a door has {wanted} replicas")
            targets = await http.get(f"{self.cluster.head.url}/metrics/targets")
            if targets.status_code == httpx.codes.NOT_FOUND:
                self._say("        (GET /metrics/targets: not in this version)")
            else:
                found = [target for group in targets.json() for target in group["targets"]]
                hosts = Counter(target.rpartition(":")[0] for target in found)
                self._check(workers <= set(hosts), f"targets for Prometheus: {dict(hosts)}")

    async def _join(self) -> None:
        """A node comes, and goes again in peace: its replica drains."""
        async with self._no_failed_request("a node joined"):
            worker = self.cluster.new_worker()
            self.cluster.start_worker(worker)
            await self._until(f"{worker.machine.address} joined and has its replica", self._one_on_each)
            await ready(worker.url)
            await asyncio.sleep(5)
        async with self._no_failed_request("a node left in peace"):
            began = time.monotonic()
            killed = await asyncio.to_thread(worker.leave)
            took_s = time.monotonic() - began
            self.cluster.workers.remove(worker)
            self._say(f"        SIGTERM to its `ray start`: gone after {took_s:.1f} s ({killed} were left)")
            await self._until("one replica on each worker", self._one_on_each, hold_s=8)

    async def _scale(self) -> None:
        """Serve's autoscaling, out under pressure and in again when that is over; replicas drain."""
        scaling = {"replicas": 1, "max_replicas": 2, "num_cpus": 1, "scale_out_s": 2, "scale_in_s": 10}
        # One replica that is replaced is away for a moment, so nothing is asked of this part.
        await self._deploy(**scaling)
        await self._until("one replica, by autoscaling", lambda: self._counts() == 1, hold_s=8)
        await self._goes_on()
        async with self._no_failed_request("scale-out and scale-in"):
            async with self._pressure():
                await self._until("pressed, two", lambda: self._counts() == 2, hold_s=8)
            await self._until("at ease, one again", lambda: self._counts() == 1, hold_s=8)
        await self._deploy()
        await self._until("one replica on each worker", self._one_on_each, hold_s=8)
        await self._goes_on()

    async def _node(self) -> None:
        """A machine dies."""
        worker = self.cluster.workers[0]
        killed = await asyncio.to_thread(worker.kill)
        self._say(f"        kill -9 of all {killed} processes of {worker.machine.address}")
        await self._goes_on()
        await asyncio.sleep(12)
        self.cluster.start_worker(worker)
        await self._until(f"{worker.machine.address} is back with its replica", self._one_on_each)
        await self._goes_on()

    async def _version(self) -> None:
        """`cellstate deploy --address`: a new version of the other model, whose session lives on."""
        bundle = load(SHIPPED_BUNDLES / OTHER)
        weights = {name: tensor * 1.001 for name, tensor in bundle.weights.items()}
        path = self._directory / f"{OTHER}-2"
        save(replace(bundle, version="2", weights=weights), path)
        steps = f"{self.cluster.head.url}/v1/models/{OTHER}/sessions/lives/steps"
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            before = await http.post(steps, json={"step": 0, "text": "To be"})
            command = ("-m", "service.cli", "deploy", str(path), "--address", self.cluster.address)
            async with self._no_failed_request(f"cellstate deploy of another model, {OTHER}"):
                done = await asyncio.to_thread(self.cluster.head.python, *command)
            told = (done.stdout + done.stderr).strip().splitlines()
            self._check(done.returncode == 0, f"cellstate deploy --address: {done.returncode}", *told[-5:])
            after = await http.post(steps, json={"step": before.json()["next_step"], "text": "r not"})
            facts = (await http.get(f"{self.cluster.head.url}/v1/models/{OTHER}")).json()
        self._check(after.is_success and facts["version"] == "2", f"its session goes on: {after.text[-60:]}")
        counts = [len(node.processes(f"ray::ServeReplica:model-{OTHER}")) for node in self.cluster.nodes]
        self._check(counts == [0] + [1] * len(self.cluster.workers), f"its replicas, by node: {counts}")

    async def _redis(self) -> None:
        """Redis dies, and comes back with what it had acknowledged."""
        before = self._replicas()
        self.cluster.kill_redis()
        await asyncio.sleep(3)
        self.cluster.start_redis()
        self._say("        kill -9 redis-server; again there after 3 s")
        await self._goes_on()
        await asyncio.sleep(5)  # Ray's head ends if it was away for too long
        await self._whole(before)

    async def _head(self) -> None:
        """The head dies: Ray's own state is in Redis."""
        before = self._replicas()
        killed = await asyncio.to_thread(self.cluster.head.kill)
        self._say(f"        kill -9 of all {killed} processes of the head")
        await self._goes_on()
        await asyncio.sleep(5)
        self.cluster.start_head()
        await self._whole(before)

    async def _whole(self, before: Sequence[int]) -> None:
        """The head and Serve's controller are there and take a deploy. before: the replicas' processes."""
        await self._until("Serve's controller is there", self._controlled)
        await self._until("one replica on each worker", self._one_on_each, hold_s=8)
        for node in self.cluster.nodes:
            await ready(node.url)
        kept = set(before) & set(self._replicas())
        self._say(f"        of {len(before)} replicas, {len(kept)} are the same processes")
        await self._deploy()
        await self._goes_on()

    def _controlled(self) -> bool:
        alive = self.cluster.head.alive
        return alive and any(node.processes("ray::ServeController") for node in self.cluster.nodes)

    # Means

    async def _deploy(self, **scaling: Any) -> None:
        """`serve deploy deploy/serve.yaml`, with what the file says is to be changed for a cluster; scaling:
        settings of the model that the sessions are of."""
        configuration = yaml.safe_load(SERVE.read_text())
        configuration["http_options"]["host"] = SETTINGS["CELLSTATE_HOST"]
        for application in configuration["applications"]:
            if application["args"].get("model") == MODEL:
                application["args"] |= scaling
        file = self._directory / "serve.yaml"
        file.write_text(yaml.safe_dump(configuration))
        await asyncio.to_thread(self.cluster.serve, "deploy", str(file))

    def _replicas(self) -> list[int]:
        return [pid for node in self.cluster.nodes for pid in node.processes(REPLICA)]

    def _counts(self) -> int:
        return len(self._replicas())

    def _one_on_each(self) -> bool:
        by_node = {node.machine.address: len(node.processes(REPLICA)) for node in self.cluster.nodes}
        return list(by_node.values()) == [0] + [1] * len(self.cluster.workers)

    def _doors(self) -> str:
        return ", ".join(node.url for node in self.cluster.nodes)

    @contextlib.asynccontextmanager
    async def _pressure(self) -> AsyncIterator[None]:
        """Long requests without an end, beside the sessions."""
        mean = [signal.mean for signal in self._bundle.spec.inputs]
        body = {"inputs": [mean] * 4000}

        async def press() -> None:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
                while True:
                    with contextlib.suppress(httpx.HTTPError):
                        await http.post(f"{self.cluster.head.url}/v1/models/{MODEL}/predict", json=body)

        tasks = [asyncio.create_task(press()) for _ in range(4)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _no_failed_request(self, what: str) -> AsyncIterator[None]:
        clients = self._clients
        assert clients is not None
        before, answered, told = self._failures(), clients.seen["requests"], len(clients.late)
        yield
        count, failed = clients.seen["requests"] - answered, self._failures() - before
        self._check(not failed, f"{what}: {count} requests, {failed} failed", *clients.late[told:][:3])

    def _failures(self) -> int:
        clients = self._clients
        assert clients is not None
        late = clients.seen["calls that took too long and were made again"]
        return late + sum(bool(track.broken) for track in clients.tracks)

    async def _goes_on(self) -> None:
        """Every session has been stepped once more."""
        clients = self._clients
        assert clients is not None
        began = time.monotonic()
        places = [len(track.outputs) for track in clients.tracks]

        def moved() -> bool:
            return all(len(t.outputs) > n or t.broken for t, n in zip(clients.tracks, places, strict=True))

        await self._until("every session went on", moved)
        broken = sum(bool(track.broken) for track in clients.tracks)
        self._check(
            not broken, f"after {time.monotonic() - began:.1f} s the last of them; {broken} could not"
        )

    async def _until(
        self, what: str, true: Callable[[], bool], seconds: float = START_S, hold_s: float = 0.0
    ) -> None:
        """Returns when it is true and stayed so. Raises Failed."""
        began = since = time.monotonic()
        while time.monotonic() - since <= hold_s or not await asyncio.to_thread(true):
            for node in self.cluster.nodes:
                await asyncio.to_thread(node.revive)
            if not await asyncio.to_thread(true):
                since = time.monotonic()
            if time.monotonic() - began > seconds:
                raise Failed(f"not within {seconds:.0f} s: {what}")
            await asyncio.sleep(0.2)
        self._check(True, f"{what} (after {time.monotonic() - began - hold_s:.1f} s)")

    def _check(self, good: bool, what: str, *more: str) -> None:
        self._bad += not good
        self._say(f"{'ok    ' if good else 'FAILED'}  {what}")
        for line in more:
            self._say(f"        {line}")

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {line}", flush=True)


def _served() -> tuple[str, ...]:
    """The models of serve.yaml, in the order the service lists them."""
    applications = yaml.safe_load(SERVE.read_text())["applications"]
    return tuple(sorted(a["args"]["model"] for a in applications if "model" in a["args"]))


def _running(scraped: str) -> set[str]:
    """The replicas of all models, as metrics name them."""
    samples = [line for line in scraped.splitlines() if line.startswith("cellstate_model_info{")]
    return {line.split('replica="')[1].split('"')[0] for line in samples}
