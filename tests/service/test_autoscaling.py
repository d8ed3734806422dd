"""How many replicas a model is to have, decided from numbers."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from service import nodes
from service.autoscaling import BAND, ByOccupancy, count, decide
from service.settings import Settings

TARGET = 0.6


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


def decided(*occupancies: float, running: int = 0, wanted: int = 0, least: int = 1, most: int = 10) -> int:
    """With as many that run and are wanted as reported, if no more is said."""
    reported = len(occupancies)
    return decide(occupancies, running or reported, wanted or reported, TARGET, least, most)


def test_a_load_above_the_target_adds_as_many_as_bring_it_down() -> None:
    assert decided(0.9) == 2
    assert decided(1.0, 1.0) == 4
    assert decided(0.7, 0.7, 0.7, 0.7) == 5


def test_a_load_below_the_target_leaves_as_many_as_stay_below_it() -> None:
    assert decided(0.2, 0.2) == 1
    assert decided(0.3, 0.3, 0.3) == 2
    assert decided(0.0, 0.0, 0.0) == 1


def test_about_the_target_nothing_changes() -> None:
    for occupancy in (0.55, 0.6, 0.65):
        assert decided(occupancy, occupancy, occupancy) == 3
    assert decided(0.28, 0.28) == 2  # one alone would be within the band, and the next breath would add one


def test_the_bounds_hold() -> None:
    assert decided(1.0, 1.0, most=3) == 3
    assert decided(0.0, 0.0, 0.0, least=2) == 2


def test_without_reports_nothing_changes() -> None:
    assert decided(running=3, wanted=3) == 3


def test_one_that_runs_and_says_nothing_stops_nothing_and_starts_nothing() -> None:
    assert decided(0.1, running=2, wanted=2) == 2
    assert decided(0.62, running=2, wanted=2) == 2


def test_those_on_their_way_count_against_more() -> None:
    assert decided(1.0, running=1, wanted=2) == 2
    assert decided(1.0, 1.0, running=2, wanted=4) == 4


def test_those_that_never_come_are_given_up_when_the_load_is_gone() -> None:
    assert decided(0.1, running=1, wanted=5) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_with_a_steady_load_the_first_decision_is_the_last(occupancies: list[float]) -> None:
    # Spread evenly over as many as were decided, and once more: scaling does not go to and fro.
    load, most = sum(occupancies), 100
    first = decide(occupancies, len(occupancies), len(occupancies), TARGET, 1, most)
    assert 1 <= first <= most
    then = decide([load / first] * first, first, first, TARGET, 1, most)
    assert then == first
    if first > 1 and first < len(occupancies):
        assert load / first <= TARGET * (1 - BAND) + 1e-9


def context(
    *occupancies: float, wanted: int, state: dict[str, Any], config: Any = None
) -> AutoscalingContext:
    """As Serve gives it to a policy."""
    deployment = DeploymentID("ModelReplica", "model-m")
    replicas = [ReplicaID(str(n), deployment) for n in range(wanted)]
    return AutoscalingContext(
        deployment_id=deployment,
        deployment_name=deployment.name,
        app_name=deployment.app_name,
        current_num_replicas=wanted,
        target_num_replicas=wanted,
        running_replicas=replicas,
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={"occupancy": dict(zip(replicas, occupancies, strict=False))}
        if occupancies
        else {},
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state=state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=time.time(),
        config=config,
    )


def test_the_policy_reads_what_replicas_reported() -> None:
    policy = ByOccupancy("occupancy", TARGET)
    assert policy(context(0.9, 0.9, wanted=2, state={}))[0] == 3
    assert policy(context(wanted=2, state={}))[0] == 2


def test_of_a_scale_in_the_greatest_answer_counts_until_it_is_over() -> None:
    policy, state, answers = ByOccupancy("occupancy", TARGET), dict[str, Any](), []
    for occupancy in (0.1, 0.35, 0.0, 0.6, 0.0):
        answer, state = policy(context(*[occupancy] * 4, wanted=4, state=state))
        answers.append(answer)
    assert answers == [1, 3, 3, 4, 1]


def test_serve_waits_for_the_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the options that a deployment gets, and Serve's own way of calling a policy."""
    settings = Settings(replicas=2, max_replicas=8, scale_out_s=20, scale_in_s=300)
    config: AutoscalingConfig = nodes.scale(settings)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (2, 8)
    now = 1000.0
    monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: now)
    policy = _apply_autoscaling_config(config.policy.get_policy()(**config.policy.policy_kwargs))
    for occupancy, delay_s, expected in ((0.9, 20.0, 6), (0.1, 300.0, 1)):
        state: dict[str, Any] = {}
        for passed, target in ((0.0, 4), (delay_s - 1, 4), (delay_s, expected)):
            now = 1000.0 + passed
            answer, state = policy(context(*[occupancy] * 4, wanted=4, state=state, config=config))
            assert answer == target
        now += 1
