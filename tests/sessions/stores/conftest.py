from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.sessions.stores.stores import FACTORIES, Cluster


@pytest_asyncio.fixture(params=sorted(FACTORIES))
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with FACTORIES[request.param](tmp_path) as cluster:
        yield cluster
        await cluster.close()
