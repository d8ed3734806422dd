"""A running application with keys, and one client for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service import keys
from tests.api.serving import SERIES, Served, serving


def make_key(path: Path, name: str, **fields: Any) -> str:
    """Puts a new key into the file; the key."""
    drawn = keys.draw()
    keys.add(path, keys.make({"name": name, "sha256": keys.digest(drawn.encode()).hex(), **fields}))
    return drawn


@dataclass(frozen=True)
class Keyed:
    """Where it listens, the keys by name, the file, and clients that send them."""

    served: Served
    path: Path
    keys: dict[str, str]
    clients: dict[str, httpx.Client]

    def __getitem__(self, name: str) -> httpx.Client:
        return self.clients[name]

    def bearer(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[name]}"}


#: anna and bert are strangers; twin is another key of anna's; the rest are held to something
WHO: dict[str, dict[str, Any]] = {
    "anna": {},
    "bert": {},
    "twin": {"namespace": "anna"},
    "waves-only": {"models": [SERIES]},
    "prom": {"role": "operator"},
    "slow": {"requests_per_second": 0.001, "burst": 5},
    "few": {"sessions": 2},
    "small": {"body_bytes": 200},
}


@contextmanager
def keyed(bundles: list[Path], directory: Path, **settings: Any) -> Iterator[Keyed]:
    path = directory / "keys.json"
    made = {name: make_key(path, name, **fields) for name, fields in WHO.items()}
    with ExitStack() as stack:
        served = stack.enter_context(serving(bundles, keys=str(path), **settings))
        clients = {
            name: stack.enter_context(
                httpx.Client(
                    base_url=served.url,
                    timeout=20,
                    trust_env=False,
                    headers={"authorization": f"Bearer {key}"},
                )
            )
            for name, key in made.items()
        }
        clients[""] = stack.enter_context(httpx.Client(base_url=served.url, timeout=20, trust_env=False))
        yield Keyed(served, path, made, clients)
