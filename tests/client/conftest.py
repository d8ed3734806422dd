"""One running application, a proxy before it that makes faults, and clients that lose no time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from service.client import AsyncClient, Client, Retries
from tests.api.serving import Served, save_bundles, serving
from tests.client.faulty import Faulty, faulty

#: Delays of milliseconds, and silence for 0.4 seconds is silence for good
QUICK = Retries(attempt_timeout_s=0.4, first_delay_s=0.001, max_delay_s=0.004)


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(save_bundles(tmp_path_factory.mktemp("bundles"))) as where:
        yield where


@pytest.fixture(scope="package")
def proxy(served: Served) -> Iterator[Faulty]:
    with faulty(served) as proxy:
        yield proxy


@pytest.fixture
def no_plan(proxy: Faulty) -> Iterator[None]:
    """What a test did not use of its plan of faults is not the next one's."""
    yield
    proxy.plan.clear()


@pytest.fixture(scope="package")
def client(proxy: Faulty) -> Iterator[Client]:
    """Through the proxy."""
    with Client(proxy.url, trust_env=False, retries=QUICK, timeout_s=20) as client:
        yield client


@pytest.fixture(scope="package")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all, so that one client can serve all."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="package")
def awaited(proxy: Faulty, runner: asyncio.Runner) -> Iterator[AsyncClient]:
    """Through the proxy, for coroutines that `runner` runs."""
    client = AsyncClient(proxy.url, trust_env=False, retries=QUICK, timeout_s=20)
    yield client
    runner.run(client.close())


@pytest.fixture(scope="package")
def straight(served: Served) -> Iterator[Client]:
    """To the service itself: what it says is the truth."""
    with Client(served.url, trust_env=False) as client:
        yield client
