"""Measures what an open session takes beside its state: the constants of the formula in docs/capacity.md.

The model is tiny, so that nearly all of what grows is the sessions' own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from loadtests.bundles import random_bundle
from loadtests.million import INPUTS, KEPT_BYTES, SESSION_BYTES, Run, rss
from loadtests.million import parse as parse_run


async def measure(sessions: int, steps: int) -> tuple[float, float, float]:
    """Bytes of a session that never moved, of one that made a step, and of each further kept step."""
    arguments = f"--sessions {sessions} --host-sessions {sessions} --layers 1 --hidden 4"
    with tempfile.TemporaryDirectory() as directory:
        bundle = random_bundle(Path(directory) / "b", 1, 4, INPUTS)
    it = Run(bundle, parse_run(arguments.split()))
    everybody = list(range(sessions))
    sizes = [rss()]
    it.open()
    sizes.append(rss())
    await it.step(everybody, "first steps")
    sizes.append(rss())
    for _ in range(steps):
        await it.step(everybody, "more steps")
    sizes.append(rss())
    it.manager.close()
    opened, first, more = (b - a for a, b in pairwise(sizes))
    return opened / sessions, (opened + first) / sessions, more / sessions / steps


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.footprint", description=__doc__)
    parser.add_argument("--sessions", type=int, default=30_000, help="open sessions (default: 30000)")
    parser.add_argument("--steps", type=int, default=20, help="further steps of each (default: 20)")
    args = parser.parse_args()
    opened, first, more = asyncio.run(measure(args.sessions, args.steps))
    numbers, state = 8 * 2 * INPUTS, 2 * 1 * 4 * 4
    print(f"a session that is open                   {opened:6.0f} bytes")
    print(f"one that made a step                     {first:6.0f} bytes")
    print(f"  without its state and numbers          {first - state - numbers:6.0f} bytes")
    print(f"each further kept step                   {more:6.0f} bytes")
    print(f"  without its numbers                    {more - numbers:6.0f} bytes, KEPT_BYTES = {KEPT_BYTES}")
    print(
        f"a session without state and kept steps   {first - state - more:6.0f} bytes,"
        f" SESSION_BYTES = {SESSION_BYTES}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
