"""The command `train task`: a long-memory task by name, until it is solved."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

UNSOLVED = 1  # exit code
Run = Callable[[argparse.Namespace], int]


def add_task(
    kinds: argparse._SubParsersAction[Any], recorder: Callable[[Any], Any], guarded: Callable[[Run], Run]
) -> None:
    """Adds the command. recorder, guarded: as the other kinds have them."""
    from model.train.task_options import TaskOptions  # without torch: cheap enough for --help

    task = kinds.add_parser("task", help="on a long-memory task, until it is solved")
    task.add_argument("task", metavar="TASK", help="its name; a wrong one is answered with all names")
    add = recorder(task)
    add("--length", type=int, help="steps over which something is to be kept (default: the task's)")
    add("--name", help="the model's name, as it stands in its URL (default: TASK-LENGTH)")
    add("--out", type=Path, metavar="DIR", help="where the bundle goes (default: bundles/NAME)")
    add("--run", type=Path, metavar="DIR", help="for checkpoints, curve, result (default: runs/NAME)")
    add("--resume", action="store_true", help="go on from the checkpoint in --run")
    add("--version", default="1", help="the model's version")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    for f in fields(TaskOptions):
        help = f"{f.metadata['help']} (default: {f.default}, or the task's own)"
        kind: Any = type(f.default)
        add("--" + f.name.replace("_", "-"), type=kind, choices=f.metadata.get("choices"), help=help)
    task.set_defaults(func=guarded(_train_task), recorder=add)


def _train_task(args: argparse.Namespace) -> int:
    """Exit code 1 if the task was not solved; the bundle is saved all the same."""
    from model.bundle import check_name
    from model.commands import show_quality
    from model.tasks.catalogue import kind_of
    from model.train import recipes
    from model.train.task_job import TaskJob, train_task
    from model.train.task_options import TaskOptions

    length = kind_of(args.task).usual if args.length is None else args.length
    name = args.name or f"{args.task}-{length}"
    check_name(name)
    given = {f.name: getattr(args, f.name) for f in fields(TaskOptions)}
    job = TaskJob(
        task=args.task,
        length=length,
        name=name,
        out=args.out or Path("bundles") / name,
        run=args.run or Path("runs") / name,
        options=recipes.options(args.task, {k: v for k, v in given.items() if v is not None}),
        version=args.version,
        device=args.device,
        resume=args.resume,
        command=args.recorder.command(f"task {args.task}", args),
    )
    outcome = train_task(job)
    progress, right = outcome.progress, outcome.quality["table"]["model"]["right"]
    print(
        f"{name}: {'solved' if outcome.solved else 'not solved'} after {progress.sequences:,} sequences,"
        f" {progress.cpu_seconds / 60:.1f} minutes of CPU; {right:.2%} of the test right"
    )
    if outcome.bundle is not None:
        show_quality(outcome.bundle)
        print(f"saved {job.out}")
    return 0 if outcome.solved else UNSOLVED
