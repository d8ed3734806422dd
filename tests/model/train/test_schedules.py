"""How the learning rate falls."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from model.errors import TrainingError
from model.train.options import Options
from model.train.schedules import Drops, share


def test_the_cosine_is_what_it_always_was() -> None:
    o = Options(warmup=10, final_rate=0.1)
    for update in (0, 4, 50, 99, 100):
        cosine = 0.5 * (1 + math.cos(math.pi * update / 100))
        rise = min(1.0, (update + 1) / 10)
        assert o.rate(update, 100) == o.learning_rate * rise * (0.1 + 0.9 * cosine)


def test_constant_stays_and_drops_multiply_down_to_the_least_share() -> None:
    assert share("constant", 0.9, 3, 0.5, 0.1) == 1
    assert [share("step", 0.9, n, 0.5, 0.1) for n in range(5)] == [1, 0.5, 0.25, 0.125, 0.1]
    o = replace(Options(), schedule="plateau", drop=0.5, warmup=0)
    assert o.rate(7, 100, drops=2) == 0.25 * o.learning_rate


def test_step_drops_after_every_so_many_losses() -> None:
    drops = Drops("step", 3)
    seen: list[int] = []
    for _ in range(7):
        drops.see(1 / (1 + len(seen)))
        seen.append(drops.drops)
    assert seen == [0, 0, 1, 1, 1, 2, 2]


def test_plateau_drops_when_the_loss_is_no_better() -> None:
    drops = Drops("plateau", 2)
    seen = []
    for loss in (1.0, 0.5, 0.5, 0.499, 0.4, 0.5, 0.5, 0.5):
        drops.see(loss)
        seen.append(drops.drops)
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_the_others_never_drop(kind: str) -> None:
    drops = Drops(kind, 1)
    for _ in range(5):
        drops.see(1.0)
    assert drops.drops == 0


def test_a_schedule_that_there_is_not_is_refused() -> None:
    with pytest.raises(TrainingError, match="schedule must be one of cosine, constant, step, plateau"):
        Options(schedule="linear")
