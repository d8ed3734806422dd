"""The program that brings a new version to sessions under load: small, and that its judge can find damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from loadtests import upgrade
from loadtests.bundles import random_bundle
from loadtests.versions import PIN, POLICIES, REPLAY, RESET, Array, judge, run
from model.bundle import Bundle

STEPS, MOVED = 12, 5


@dataclass(frozen=True)
class Story:
    """Inputs of a session, both versions, and the replies if it moves at MOVED."""

    old: Bundle
    new: Bundle
    inputs: Array

    def replies(self, policy: str) -> Array:
        old, new = run(self.old, self.inputs)[0], run(self.new, self.inputs)[0]
        since = {PIN: old[MOVED:], REPLAY: new[MOVED:], RESET: run(self.new, self.inputs[MOVED:])[0]}
        return np.concatenate((old[:MOVED], since[policy]))

    def wrong(self, policy: str, outputs: Array, begins: range = range(STEPS)) -> list[int]:
        return judge(policy, self.old, self.new, self.inputs, outputs, begins).wrong


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    place = tmp_path_factory.mktemp("models")
    old, new = (random_bundle(place / v, 2, 8, 3, "tiny", seed, v) for seed, v in enumerate(("1", "2")))
    return Story(old, new, np.random.default_rng(0).standard_normal((STEPS, 3)))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_policy_promises_is_right_and_what_another_does_is_wrong(story: Story, policy: str) -> None:
    for done in POLICIES:
        # One that stays with the old version may yet move: what its facts say is not the judge's.
        assert (story.wrong(policy, story.replies(done)) == []) == (done in (policy, PIN))
    outputs = story.replies(policy)
    outputs[3] += 0.01
    assert story.wrong(policy, outputs)
    outputs[3] = np.nan
    assert story.wrong(policy, outputs)


def test_a_session_moves_once_and_between_requests(story: Story) -> None:
    outputs = story.replies(REPLAY)
    assert judge(REPLAY, story.old, story.new, story.inputs, outputs, {MOVED}).moved == MOVED
    assert story.wrong(REPLAY, outputs, range(0, STEPS, 2)) == [MOVED]
    outputs[8] = run(story.old, story.inputs)[0][8]
    assert story.wrong(REPLAY, outputs) == [8]


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_processes_that_are_replaced_lose_no_step(tmp_path: Path) -> None:
    """In a process of its own: it kills whatever is left below it."""
    arguments = ["--plain", "--replicas", "1", "--sessions", "20", "--rate", "60", "--seconds", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.upgrade", *arguments, "--policy", "replay"],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["lost"], row["doubled"], row["wrong"], row["broken"]) == (0, 0, 0, 0)
    assert (row["moved"], row["sessions"]) == (20, 20 + upgrade.LATE)
    assert row["steps"] > 100
    assert not list(tmp_path.glob("upgrade-*"))
