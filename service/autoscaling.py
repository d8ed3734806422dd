"""How many replicas a model is to have: what Ray Serve asks several times a second, and the answer.

Serve runs a policy in its controller, on what the replicas last reported. No Ray here: a policy takes numbers
and gives a number. Serve pickles this module's classes by value: they hold nothing but numbers and words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def count(nodes: Iterable[Mapping[str, Any]], resource: str = "") -> int:
    """How many of the nodes, as `ray.nodes()` tells of them, live and carry the resource ("": any)."""
    living = (node for node in nodes if node.get("Alive"))
    return sum(1 for node in living if not resource or node.get("Resources", {}).get(resource, 0) > 0)
