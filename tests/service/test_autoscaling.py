"""How many replicas a model is to have, decided from numbers."""

from __future__ import annotations

from typing import Any

from service.autoscaling import count


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": 2.0, **resources}}


def test_nodes_that_live_are_counted() -> None:
    assert count([]) == 0
    assert count([node(), node(alive=False), node()]) == 2


def test_with_a_resource_only_those_that_carry_it_are_counted() -> None:
    nodes = [node(), node(cellstate=1.0), node(cellstate=0.0), node(alive=False, cellstate=1.0)]
    assert count(nodes, "cellstate") == 1
    assert count(nodes, "other") == 0
    assert count([{"Alive": False}, {"Alive": True}], "cellstate") == 0  # Ray says no resources of the dead
