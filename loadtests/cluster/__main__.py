"""A Ray cluster of several machines, started as an operator would, used, scaled, and broken.

The machines are network namespaces of this one: a head, workers, and a redis-server, each with an address
of its own. `deploy/serve.yaml` is deployed by `serve deploy`; sessions of the shipped model `ett` are stepped
all the while through the project's client, and every reply is compared with the float64 reference. Needs
root, iproute2 and redis-server. Exit code: 0 when all held, 1 when something did not, 77 when it was skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from loadtests.chaos.subject import Failed
from loadtests.cluster import network, story
from service import processes

SKIPPED = 77


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/verify-cluster", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    parser.add_argument("--sessions", type=int, default=60, help="(default: 60)")
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second of all (default: 60)")
    parser.add_argument("--only", nargs="*", default=[], help=f"of the parts {', '.join(story.PARTS)}")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    args = parser.parse_args()
    if unknown := set(args.only) - set(story.PARTS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    reason = network.unavailable() or (
        "" if shutil.which("redis-server") else "redis-server is not installed"
    )
    if reason:
        print(f"skipped: {reason}")
        return SKIPPED
    processes.adopt_orphans()
    # Short: HAProxy's socket is some way below it, and the name of a socket has 97 characters at most.
    directory = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    try:
        return asyncio.run(_interruptible(args, directory))
    except (Failed, TimeoutError) as error:
        print(f"FAILED  {type(error).__name__}: {error}", flush=True)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped")
        return 130
    finally:
        processes.end_descendants()
        if args.keep:
            print(f"logs: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


async def _interruptible(args: argparse.Namespace, directory: Path) -> int:
    """Ends on SIGTERM and SIGHUP as on Ctrl-C: the namespaces must go."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    told = story.Story(directory, args.workers, args.sessions, args.rate)
    with contextlib.closing(told.cluster):
        return await told.run(args.only or story.PARTS)


if __name__ == "__main__":
    sys.exit(main())
