"""The rivals' Python environments: each its own, below `.peers/`, with exact pins. None of them is ours.

The files `requirements-NAME.txt` are whole (`pip freeze`), so nothing is resolved and `--no-deps` is right.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".peers"
NAMES = ("triton", "python", "ray")
STUB = "triton_python_backend_stub"


class Absent(Exception):
    """A rival can't run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    name: str

    @property
    def directory(self) -> Path:
        return CACHE / self.name

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    @property
    def site(self) -> Path:
        """Where its packages are. Raises Absent."""
        for path in self.directory.glob("lib/python3.*/site-packages"):
            return path
        raise Absent(f"environment {self.name} is not set up (python -m loadtests.peers setup)")

    @property
    def requirements(self) -> Path:
        return HERE / f"requirements-{self.name}.txt"

    def check(self) -> None:
        """Raises Absent unless it was set up with the present requirements."""
        if not self._stamp.exists() or self._stamp.read_text() != self._digest():
            raise Absent(f"environment {self.name} is not set up (python -m loadtests.peers setup)")

    def set_up(self) -> None:
        """Makes it, unless it is there. Raises Absent."""
        try:
            self.check()
        except Absent:
            shutil.rmtree(self.directory, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(self.directory)])
            install = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
            # torch first and by its exact version: with the rest, pip may pick another build
            pins = self.requirements.read_text().split()
            _run([*install, *(pin for pin in pins if pin.startswith("torch=="))])
            _run([*install, "-r", str(self.requirements)])
            if self.name == "triton":
                _place_stub(self.site)
            self._stamp.write_text(self._digest())

    def version(self, package: str) -> str:
        """What is pinned; empty if it is not."""
        pins = (line.split("==") for line in self.requirements.read_text().split() if "==" in line)
        return next((version for name, version in pins if name == package), "")

    @property
    def _stamp(self) -> Path:
        return self.directory / "requirements.sha256"

    def _digest(self) -> str:
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()


def triton_server(site: Path) -> Path:
    return site / "pytriton" / "tritonserver"


def _place_stub(site: Path) -> None:
    """The wheel brings a stub for each Python; the server looks for one beside the backend."""
    server = triton_server(site)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    source, target = server / "python_backend_stubs" / version / STUB, server / "backends" / "python" / STUB
    if not source.exists():
        raise Absent(f"Triton's wheel has no stub for Python {version}")
    shutil.copy(source, target)
    for program in (target, server / "bin" / "tritonserver"):
        program.chmod(0o755)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Absent(f"{' '.join(command[:4])}: {done.stderr.strip().splitlines()[-1:]}")


def set_up(names: tuple[str, ...] = NAMES) -> int:
    """Sets up what can be set up. Returns how many could not."""
    failed = 0
    for name in names:
        print(f"setting up {name}", file=sys.stderr, flush=True)
        try:
            Environment(name).set_up()
        except (Absent, OSError) as reason:
            print(f"{name} stays absent: {reason}", file=sys.stderr)
            failed += 1
    return failed
