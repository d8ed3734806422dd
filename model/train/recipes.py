"""What each long-memory task is trained with unless the command says otherwise."""

from __future__ import annotations

from typing import Any

from model.train.task_options import TaskOptions

#: By task: the options that differ from TaskOptions' own defaults.
RECIPES: dict[str, dict[str, Any]] = {
    "reber": {"hidden": 16, "learning_rate": 0.01, "chrono": 20},
    "lag-2a": {"hidden": 16},
    "lag-2c": {"hidden": 16},
    "adding": {"hidden": 32, "learning_rate": 0.01, "start": 100, "growth": 3.0, "drop_after": 4},
    "multiplication": {"hidden": 32, "learning_rate": 0.01},
    "order-2": {"hidden": 16},
    "order-3": {"hidden": 32},
    "copying": {
        "hidden": 128,
        "learning_rate": 0.006,
        "start": 5,
        "passed": 0.005,
        "mixed": 0.5,
        "anew": "warmup",
        "warmup": 100,
        "fade": 0.25,
        "final_rate": 0.25,
        "chrono": 1000,
        "clip_by": "median",
    },
}


def options(task: str, given: dict[str, Any]) -> TaskOptions:
    """The options of a training: what is given, else the task's, else the usual. Raises TrainingError."""
    return TaskOptions(**{**RECIPES.get(task, {}), **given})
