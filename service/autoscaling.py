"""How many replicas a model is to have: what Ray Serve asks several times a second, and the answer.

Serve runs a policy in its controller, on what the replicas last reported. No Ray here: a policy takes numbers
and gives a number. Serve pickles this module's classes by value: they hold nothing but numbers and words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Around the target, as a share of it: what is within needs no change, so that a load which sways about the
#: target starts and stops nothing.
BAND = 0.1


def count(nodes: Iterable[Mapping[str, Any]], resource: str = "") -> int:
    """How many of the nodes, as `ray.nodes()` tells of them, live and carry the resource ("": any)."""
    living = (node for node in nodes if node.get("Alive"))
    return sum(1 for node in living if not resource or node.get("Resources", {}).get(resource, 0) > 0)


def decide(
    occupancies: Sequence[float], running: int, wanted: int, target: float, least: int, most: int
) -> int:
    """How many replicas there are to be, from `least` to `most`.

    occupancies: 0 to 1, of the replicas that reported, among `running` ones; wanted: as many as are to be
    now, of which some may not have begun; target: what each is to be occupied by. One that runs and says
    nothing adds none to a load that is too much, and is on target in one that is too little: what is not
    known starts nothing and stops nothing.
    """
    load, silent = sum(occupancies), max(0, running - len(occupancies))
    if load > wanted * target * (1 + BAND):
        wanted = math.ceil(load / target)
    elif occupancies:
        # As many as would still be below the target, with room
        wanted = min(wanted, math.ceil((load + silent * target) / (target * (1 - BAND))))
    return max(least, min(most, wanted))


class ByOccupancy:
    """Serve's autoscaling policy. metric: the name under which replicas report. Serve itself waits for the
    delays: for scale-in, until every answer of that time was below what there is. The greatest of them
    counts, not the last: a short quiet at the end of the delay stops no more than the rest of it would."""

    def __init__(self, metric: str, target: float) -> None:
        self._metric, self._target = metric, target

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        reported = (context.aggregated_metrics or {}).get(self._metric, {})
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        wanted = context.target_num_replicas
        running = context.current_num_replicas
        decided = decide(list(reported.values()), running, wanted, self._target, least, most)
        if decided >= wanted:
            return decided, {}
        greatest = max(decided, context.policy_state.get("greatest", 0))
        return greatest, {"greatest": greatest}
