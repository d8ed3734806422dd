"""One running application for all tests of the API."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.api.serving import Served, Witness, save_bundles, serving

_numbers = itertools.count()


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(save_bundles(tmp_path_factory.mktemp("bundles"))) as where:
        yield where


@pytest.fixture(scope="package")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def witness(client: httpx.Client) -> Iterator[Callable[[str], Witness]]:
    """Makes witnesses; at the end each says whether its session was left alone."""
    made: list[Witness] = []

    def make(model: str) -> Witness:
        made.append(Witness(client, model, f"witness-{next(_numbers)}"))
        return made[-1]

    yield make
    for one in made:
        one.check()
