"""Every order of events of the ownership protocol, searched; and that the search finds what it should.

The worlds are small and searched to their end: it is not a sample. `protocol_model` says what may happen.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.sessions.protocol_model import Found, Guard, Kind, World, search

WORLDS = {
    f"{name}, {kind.name}": world
    for kind in Kind
    for name, world in {
        "three steps": World(kind, steps=3),
        "two clients, other inputs": World(kind, strays=1),
        "ended and opened again": World(kind, steps=1, reopens=1),
    }.items()
}


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    """The states hold no cycles, and there are many: looking for garbage takes as long as the search."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", WORLDS)
def test_no_order_of_events_breaks_the_contract(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    world = WORLDS[name]
    found = search(world)
    with capsys.disabled():
        print(f"\n{name}: {found.states:,} states")
    assert not found.violation, tell(found)
    # It got somewhere: a search that can't step would find nothing either.
    assert found.states > 10_000
    assert found.committed == found.acknowledged == world.steps


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("guard", "steps", "reopens"),
    [(Guard.FENCE, 2, 0), (Guard.WINDOW, 2, 0), (Guard.LEASE, 1, 1), (Guard.CLOCK, 1, 1)],
    ids=lambda value: value.name if isinstance(value, Guard) else "",
)
def test_a_protocol_without_one_of_its_parts_breaks_it(
    kind: Kind, guard: Guard, steps: int, reopens: int
) -> None:
    assert search(without(kind, guard, steps=steps, reopens=reopens)).violation


def test_redis_needs_the_next_step_or_the_reading_again() -> None:
    # A commit without an answer may still be done. Read again, the session has a newer epoch, and the commit
    # is refused by that; not read again, only the step tells it from the one that is sent in its place.
    assert not search(without(Kind.REDIS, Guard.NEXT_STEP)).violation
    assert not search(without(Kind.REDIS, Guard.RELOAD)).violation
    found = search(without(Kind.REDIS, Guard.NEXT_STEP, Guard.RELOAD))
    assert found.violation == "step 0 is executed as step 1", tell(found)


@pytest.mark.parametrize("guard", [Guard.RELOAD, Guard.ORDER], ids=lambda guard: guard.name)
def test_sqlite_needs_the_order_and_the_reading_again(guard: Guard) -> None:
    # It looks at the fence alone, so a commit or a release that comes late would be taken.
    found = search(without(Kind.SQLITE, guard))
    assert found.violation == "step 0 is executed as step 1", tell(found)


def test_the_way_to_a_violation_is_told() -> None:
    found = search(without(Kind.REDIS, Guard.WINDOW))
    assert found.violation == "step 0 is executed as step 1"
    assert found.way[-1] == "1 computes 0 and sends its commit"
    assert sum("sends its commit" in event for event in found.way) == 2


def without(kind: Kind, *guards: Guard, steps: int = 2, reopens: int = 0) -> World:
    return World(kind, frozenset(guards), steps=steps, reopens=reopens)


def tell(found: Found) -> str:
    return "\n".join([found.violation, *found.way])
