"""A session's name in here: its client's id, behind the namespace that it lives in.

Where there are keys, each has its namespace: `plant:pump-1` is the `pump-1` of the key `plant`. An id of
another namespace is thereby another session in every place that knows sessions by name: the register, the
stores, the lease. Without keys there is no namespace and the name is the id, as a client's id can't hold the
mark.
"""

from __future__ import annotations

MARK = ":"


def client_id(name: str) -> str:
    """The id, as its client knows it."""
    return name.rpartition(MARK)[2]


def namespace_of(name: str) -> str:
    """Empty where there are no keys."""
    return name.rpartition(MARK)[0]


def prefix_of(namespace: str) -> str:
    """What stands before the ids of a namespace."""
    return namespace + MARK if namespace else ""
