"""Machines on one machine: a network namespace each, with an address of its own, on one bridge.

What runs in a namespace has its own loopback and its own ports, and is reached by the others at its address
alone, as a machine of a cluster is. Needs root and iproute2. A process that is killed leaves its namespaces
behind; `sweep` removes those of runs that are gone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "cellstate"  # of every namespace: cellstate-<pid of the run>-<name>


def unavailable() -> str:
    """Why there can be no such network here; "": there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "there is no `ip` here (Debian: iproute2)"
    name = f"{PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"this machine makes no network namespace: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace. address: on the bridge."""

    namespace: str
    address: str

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command, to be run there."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def pids(self) -> list[int]:
        """Every process there."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def kill(self) -> int:
        """kill -9 of every process there, as when its power fails. How many there were."""
        killed: set[int] = set()
        while pids := [pid for pid in self.pids() if pid not in killed or _lives(pid)]:
            for pid in pids:
                _send(pid, signal.SIGKILL)
                killed.add(pid)
        return len(killed)


class Network:
    """The machines, a bridge between them, and an end of it here. The bridge is in a namespace too: here,
    Docker's packet filter would have its say on what goes over it."""

    def __init__(self) -> None:
        sweep()
        run = os.getpid()
        self._device = f"cs{run}"  # a device's name has 15 characters at most
        self._net = f"10.{64 + run // 256 % 64}.{run % 256}"
        self._machines: list[Machine] = []
        self._switch = _namespace("switch")
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        self._plug("here", self._device)
        _ip("address", "add", f"{self.address}/24", "dev", self._device)
        _ip("link", "set", self._device, "up")

    @property
    def address(self) -> str:
        """Where the machines reach this process."""
        return f"{self._net}.1"

    def add(self, name: str) -> Machine:
        """A machine that reaches the others."""
        machine = Machine(_namespace(name), f"{self._net}.{len(self._machines) + 11}")
        self._machines.append(machine)
        self._plug(name, "eth0", machine.namespace)
        for device in ("lo", "eth0"):
            _ip("-n", machine.namespace, "link", "set", device, "up")
        _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")
        return machine

    def _plug(self, name: str, device: str, namespace: str = "") -> None:
        """A cable from a machine's device to the bridge, where its end has the machine's name."""
        there = ["netns", namespace] if namespace else ["netns", str(os.getpid())]
        _ip("-n", self._switch, "link", "add", "name", name, "type", "veth", "peer", "name", device, *there)
        _ip("-n", self._switch, "link", "set", "dev", name, "master", "bridge", "up")

    def close(self) -> None:
        """Kills what runs there and removes all of it."""
        for machine in self._machines:
            machine.kill()
            _ip("netns", "delete", machine.namespace, check=False)
        self._machines = []
        _ip("link", "delete", self._device, check=False)
        _ip("netns", "delete", self._switch, check=False)


def _namespace(name: str) -> str:
    namespace = f"{PREFIX}-{os.getpid()}-{name}"
    _ip("netns", "add", namespace)
    return namespace


def sweep() -> None:
    """Removes what runs left that were killed."""
    for entry in Path("/run/netns").glob(f"{PREFIX}-*"):
        match = re.match(rf"{PREFIX}-(\d+)-", entry.name)
        if match and not _lives(int(match[1])):
            Machine(entry.name, "").kill()
            _ip("netns", "delete", entry.name, check=False)
            _ip("link", "delete", f"cs{match[1]}", check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
