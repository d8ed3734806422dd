"""Uses the containers as their users do, and breaks them, and looks for damage: `deploy/verify`.

Builds the image, starts the stack of docker-compose.yml on ports of its own, steps sessions by curl and by
the Python client, holds Prometheus' count against what was sent, grows to three workers under load, kills a
worker's container and stops another under load, takes all of it down and up. Every reply is compared with
the float64 reference. Exit code: 0 when nothing was lost, doubled or wrong (also where there is no engine), 1
when something was, 2 when it could not be found out. With --without volume the sessions' volume is thrown
away: 0 only if that is noticed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from loadtests.bundles import random_bundle
from loadtests.chaos.clients import Clients
from loadtests.chaos.subject import MODEL, free_port
from loadtests.compose import watch
from loadtests.compose.stack import TOP, Absent, Failed, Stack, docker
from model.bundle import Bundle
from service.client import AsyncClient

HOUR = [7.94, 2.02, 5.08, 0.746, 2.78, 0.788, 17.1]
STEPS = 200
IMAGE = "cellstate:verify"


def main() -> int:
    args = _parser().parse_args()
    directory = Path(tempfile.mkdtemp(prefix="verify-"))
    try:
        return asyncio.run(run(args, directory))
    except Absent as error:
        print(f"verify: skipped: {error}")
        return 0
    except Failed as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("verify: stopped", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy/verify", description=__doc__)
    parser.add_argument("--workers", type=int, default=3, help="to grow to (default: 3)")
    parser.add_argument("--sessions", type=int, default=60, help="under load (default: 60)")
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--without", choices=("volume",), help="the sessions' volume is thrown away: must do damage"
    )
    parser.add_argument("--keep", action="store_true", help="leave the stack running in the end")
    return parser


async def run(args: argparse.Namespace, directory: Path) -> int:
    """Builds, starts, verifies, takes down; that also on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    bundle = models(directory, args.seed)
    ports = {name: str(free_port()) for name in ("PUBLISH_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
    settings = {"CELLSTATE_PRECISION": "fp32", "CELLSTATE_DEVICE": "cpu"}
    stack = Stack({"IMAGE": IMAGE, "MODELS_DIR": str(directory / "models"), **ports, **settings})
    verify = Verify(args, stack, bundle, *(f"http://127.0.0.1:{port}" for port in list(ports.values())[:2]))
    try:
        await verify.all()
    except Failed:
        print(stack.logs(), file=sys.stderr)
        raise
    finally:
        await verify.watch.close()
        if not args.keep:
            stack.down(volumes=True)
    damage = verify.damage
    print(f"verify: {'; '.join(damage)}" if damage else "verify: nothing lost, doubled or wrong")
    if args.without:
        print("damage was found, as it should be" if damage else "NO damage was found: this test can't fail")
        return 0 if damage else 1
    return 1 if damage else 0


def models(directory: Path, seed: int) -> Bundle:
    """A directory for the containers: the model that comes with the product, and one for the load."""
    place = directory / "models"
    shutil.copytree(TOP / "model" / "bundles" / "ett", place / "ett")
    bundle = random_bundle(place / MODEL, 2, 32, 4, MODEL, seed)
    for path in (directory, place, *place.rglob("*")):  # for the containers' user
        path.chmod(0o755 if path.is_dir() else 0o644)
    return bundle


class Verify:
    """The steps, in order. damage: what was wrong."""

    def __init__(
        self, args: argparse.Namespace, stack: Stack, bundle: Bundle, door: str, prometheus: str
    ) -> None:
        self._args, self._stack, self._bundle = args, stack, bundle
        self.watch = watch.Watch(door, prometheus)
        self.damage: list[str] = []
        self._began = time.monotonic()
        self._first: dict[str, object] = {}

    async def all(self) -> None:
        self._say(f"with `{self._stack.command}`")
        left_out = self._stack.choose()
        if left_out:
            self._say(left_out)
        self._stack.down(volumes=True)
        self._stack.build()
        size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
        self._say(f"built: {IMAGE}, {size / 1e6:.0f} MB with its base")
        await self._start(1)
        self._closed()
        await self._counted()
        clients = Clients(
            [(self.watch.door, True)], self._bundle, self._args.seed, self._args.rate, patience_s=60.0
        )
        try:
            await clients.open(self._args.sessions)
            running = asyncio.create_task(clients.run())
            await self._loaded(clients, "10 s of load", lambda: asyncio.sleep(10), faults=False)
            await self._loaded(clients, f"1 to {self._args.workers} workers", self._grow, faults=False)
            await self._loaded(clients, "kill -9 of a worker's container", self._kill, faults=True)
            await self._loaded(clients, "a worker is stopped", self._shrink, faults=True)
            clients.stop()
            await running
            await self._compare(clients, "after the load")
            await self._down_and_up()
            await self._go_on(clients)
            await self._compare(clients, "after down and up")
        finally:
            clients.stop()
            await clients.close()

    async def _start(self, workers: int) -> None:
        self._stack.up(workers)
        seconds = await watch.until("the door leads to the models", self.watch.ready)
        await watch.until("a replica for each worker", lambda: self._spread(workers))
        self._say(f"up: {', '.join(self._stack.services)}; ready {seconds:.1f} s after that")

    async def _spread(self, workers: int) -> bool:
        return len(await self.watch.replicas(MODEL)) == workers

    def _closed(self) -> None:
        for published in self._stack.published():
            self._say(f"published: {published.container} at {published.host}:{published.port}")
        found = watch.open_elsewhere(self._stack) + watch.open_to_strangers(self._stack, IMAGE)
        self._judge(not found, "nothing else is open, and Ray wants its token", f"open: {'; '.join(found)}")

    async def _counted(self) -> None:
        """curl and the client, and Prometheus' count of it."""
        url = f"{self.watch.door}/v1/models/ett/sessions/by-hand/steps"
        self._first = watch.curl(url, {"step": 0, "inputs": [HOUR]})
        self._judge(self._first.get("next_step") == 1, "curl: step 0 answered", f"curl: {self._first}")
        async with AsyncClient(self.watch.door, trust_env=False) as client:
            session = await client.model("ett").open("by-client")
            for _ in range(STEPS):
                reply = await session.step([HOUR])
            self._judge(reply.next_step == STEPS, f"client: {STEPS} steps answered", f"client: {reply}")

        sent, seen = STEPS + 1, 0.0

        async def counted() -> bool:
            nonlocal seen
            seen = await self.watch.value('sum(cellstate_steps_total{model="ett"})')
            return seen >= sent

        try:
            seconds = await watch.until("Prometheus has the steps", counted, 60)
        except Failed:
            seconds = 60.0
        self._judge(
            seen == sent,
            f"Prometheus: {seen:.0f} steps of {sent} sent, {seconds:.1f} s later",
            f"Prometheus counts {seen:.0f} steps, {sent} were sent",
        )

    async def _loaded(
        self, clients: Clients, what: str, act: Callable[[], Awaitable[None]], *, faults: bool
    ) -> None:
        """Something happens while sessions are stepped. faults: whether clients may have to try again."""
        calls, tries, slow = len(clients.seconds), clients.seen["retries"], self._slow(clients)
        await act()
        await asyncio.sleep(5)
        broken = sum(bool(track.broken) for track in clients.tracks)
        tries, slow = clients.seen["retries"] - tries, self._slow(clients) - slow
        calls, longest = len(clients.seconds) - calls, max(clients.seconds[calls:], default=0.0)
        told = f"{what}: {calls} requests, {tries + slow} tried again, longest {longest:.2f} s"
        wrong = broken or calls == 0 or (not faults and tries + slow)
        self._judge(not wrong, told, f"{told}, {broken} sessions can't go on")

    @staticmethod
    def _slow(clients: Clients) -> int:
        return clients.seen["calls that took too long and were made again"]

    async def _grow(self) -> None:
        await asyncio.to_thread(self._stack.up, self._args.workers)
        await watch.until("a replica for each worker", lambda: self._spread(self._args.workers))
        await asyncio.sleep(5)  # of load, by which the sessions move
        held = await self.watch.sessions_by_replica(MODEL)
        shares = ", ".join(str(count) for count in held.values())
        spread = sum(count > 0 for count in held.values()) == self._args.workers
        self._judge(spread, f"sessions on each replica: {shares}", f"sessions did not spread: {shares}")

    async def _kill(self) -> None:
        victim = self._stack.containers("worker")[0]
        await asyncio.to_thread(docker, "kill", "--signal", "KILL", victim)
        await watch.until("the killed replica is missed", lambda: self._spread(self._args.workers - 1))
        await asyncio.sleep(10)
        await asyncio.to_thread(self._stack.up, self._args.workers)  # the machine is back
        await watch.until("a replica for each worker", lambda: self._spread(self._args.workers))

    async def _shrink(self) -> None:
        began = time.monotonic()
        await asyncio.to_thread(self._stack.up, self._args.workers - 1)
        self._say(f"  stopped after {time.monotonic() - began:.1f} s")
        await watch.until("its replica is gone", lambda: self._spread(self._args.workers - 1))

    async def _compare(self, clients: Clients, when: str) -> None:
        found = await clients.compare([])
        steps = sum(len(track.outputs) for track in clients.tracks)
        told = (
            f"{when}: {steps} acknowledged steps of {len(clients.tracks)} sessions against the reference:"
            f" lost {found.lost}, doubled {found.doubled}, wrong {found.wrong}, broken {found.broken}"
        )
        self._judge(not found.damage, told, told + "".join(f"\n    {each}" for each in found.examples))

    async def _down_and_up(self) -> None:
        began = time.monotonic()
        await asyncio.to_thread(lambda: self._stack.down(volumes=self._args.without == "volume"))
        self._say(f"down after {time.monotonic() - began:.1f} s")
        await self._start(1)
        url = f"{self.watch.door}/v1/models/ett/sessions/by-hand/steps"
        again = watch.curl(url, {"step": 0, "inputs": [HOUR]})
        same = again == {**self._first, "replayed": True}
        self._judge(
            same, "curl: step 0 again, the stored reply", f"curl: {again}, not {self._first} replayed"
        )

    async def _go_on(self, clients: Clients) -> None:
        """Each session takes a step more."""
        for track in clients.tracks:
            try:
                reply = await track.session.step(clients.inputs(track.number, len(track.outputs), 1))
            except Exception as error:  # noqa: BLE001 (whatever it is: the session can't go on)
                track.broken = f"{type(error).__name__}: {error}"
            else:
                track.outputs += reply.outputs or []

    def _judge(self, good: bool, told: str, wrong: str) -> None:
        self._say(told if good else f"WRONG: {wrong}")
        if not good:
            self.damage.append(wrong.splitlines()[0])

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
