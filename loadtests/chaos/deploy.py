"""Deploys to the cluster of a chaos run. In a process of its own: a driver may die with the node it is on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from service import deployments, launch
from service.settings import Settings


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    deployments.connect(settings.address)
    deployments.deploy(settings, launch.paths(launch.bundles(settings)))
    print(f"deployed from {Path.cwd()}: {settings.replicas} replicas")


if __name__ == "__main__":
    main()
