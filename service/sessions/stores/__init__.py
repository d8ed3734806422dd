"""Where sessions are kept beyond a process: `protocol` says what a store does, each other module is one."""

from __future__ import annotations

from service.sessions.stores.protocol import Store


def open_store(address: str, model: str, lease_s: float, *, fence: bool = True) -> Store:
    """The store at an address, for one model; `join` reaches it. fence: never off but to test the tests."""
    if address.startswith("sqlite:"):
        from service.sessions.stores.sqlite import SqliteStore

        return SqliteStore(address.removeprefix("sqlite:"), model, lease_s, fence=fence)
    from service.sessions.stores.redis import RedisStore  # a second of imports that others can do without

    return RedisStore(address, model, lease_s, fence=fence)
