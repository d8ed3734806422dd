"""The versions of one model that a replica serves, and which of them a session is on.

Each has a manager with an engine of its own; those of a store share its lease. New sessions and predictions
go to the newest. A session that comes from the store is claimed by the newest, which hands it, with those who
wait for it, to the version it is on; from then on its requests go there straight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from service.errors import InvalidValue
from service.sessions.lease import Lease
from service.sessions.manager import SessionManager
from service.sessions.replies import Reply, StepCommand
from service.sessions.session import Session
from service.sessions.shared import SharedManager
from service.sessions.snapshot import Snapshot


class Versions:
    """Managers of one model's versions, the newest first: as one. What its methods raise is said there."""

    def __init__(self, managers: Sequence[SessionManager]) -> None:
        self.managers = tuple(managers)
        self.newest, self._older = self.managers[0], self.managers[1:]
        self._by_digest = {manager.bundle.digest: manager for manager in managers}
        self._shared = [manager for manager in managers if isinstance(manager, SharedManager)]
        if len(self._by_digest) < len(self.managers) or len(self._shared) not in (0, len(self.managers)):
            raise ValueError("versions differ in their weights, and have one store")
        if self._older:
            if not self._shared:
                raise ValueError("without a store there is one version")
            for manager in self._shared:
                manager.serve_beside(self._shared[0], {m.bundle.digest: m for m in self._shared})

    def __len__(self) -> int:
        return sum(map(len, self.managers))

    def busy(self) -> bool:
        """Whether work that can wait should, for any of them."""
        asked = [manager.busy() for manager in self.managers]  # each counts its rounds
        return any(asked)

    def expect(self) -> None:
        """A request was read, and may be for one of them."""
        for manager in self.managers:
            manager.expect()

    def of(self, session_id: str) -> SessionManager:
        """The manager that has the session; the newest version's if none has."""
        for manager in self._older:
            if manager.holds(session_id):
                return manager
        return self.newest

    def by_digest(self, digest: str) -> SessionManager | None:
        """The version with that digest, if it is served here."""
        return self._by_digest.get(digest)

    def open_in(self, namespace: str) -> int:
        """Sessions of a namespace that are here."""
        return sum(manager.open_in(namespace) for manager in self.managers)

    def limit_namespaces(self, limit: Callable[[str], int | None]) -> None:
        """limit: the most sessions that a namespace may have open here; None: no limit."""

        def full(namespace: str) -> bool:
            most = limit(namespace)
            return most is not None and self.open_in(namespace) >= most

        for manager in self.managers:
            manager.limit_namespaces(full)

    def new_id(self) -> str:
        """An id that nobody has."""
        return self.newest.new_id()

    def lease_of(self, manager: SessionManager) -> Lease | None:
        """The lease of all versions, by the newest one's manager; None by others, and without a store."""
        return (
            manager.custody.lease if isinstance(manager, SharedManager) and manager is self.newest else None
        )

    def places(self) -> dict[str, int]:
        """Open sessions of all versions, by the place of their state."""
        total = self.newest.places()
        for manager in self._older:
            for place, count in manager.places().items():
                total[place] += count
        return total

    # The life of the process

    async def start(self, address: str) -> None:
        """Joins the store, if there is one."""
        for manager in self._shared:
            await manager.start(address)

    async def drain(self, timeout_s: float) -> bool:
        """Takes nothing more, and waits until what was accepted is answered. False if time ran out."""
        drained = True
        for _ in self.managers:  # again: a session may have come meanwhile, and gone to its own version
            drained = all(await asyncio.gather(*(manager.drain(timeout_s) for manager in self.managers)))
        return drained

    async def leave(self) -> None:
        """Releases every session."""
        for manager in self._shared:
            await manager.leave()

    def close(self) -> None:
        """Stops the clockwork."""
        for manager in self.managers:
            manager.close()

    async def stop(self) -> None:
        """Ends the work with the store, the oldest version first: the newest one's manager has the lease."""
        for manager in reversed(self._shared):
            await manager.stop()

    def check_integrity(self) -> None:
        """Raises RuntimeError unless each version agrees with itself and no session is on two."""
        seen: set[str] = set()
        for manager in self.managers:
            manager.check_integrity()
            ids = manager.ids()
            if seen & ids:
                raise RuntimeError(f"sessions are on two versions: {sorted(seen & ids)[:3]}")
            seen |= ids

    # Sessions

    def step(self, command: StepCommand, *, pull: bool = True) -> asyncio.Future[Reply]:
        return self.of(command.session_id).step(command, pull=pull)

    def predict(self, command: StepCommand) -> asyncio.Future[Reply]:
        return self.newest.predict(command)

    async def open_session(
        self, session_id: str | None = None, ttl_s: float | None = None, durability: str | None = None
    ) -> Session:
        return await self.newest.open_session(session_id, ttl_s, durability)

    async def find(self, session_id: str) -> Session:
        return await self.of(session_id).find(session_id)

    def end(self, session_id: str) -> asyncio.Future[None]:
        return self.of(session_id).end(session_id)

    def snapshot(self, session_id: str) -> asyncio.Future[Snapshot]:
        return self.of(session_id).snapshot(session_id)

    def restore(self, session_id: str, snapshot: Snapshot) -> asyncio.Future[bool]:
        """The session goes on with the version that the snapshot is of. Raises InvalidValue if that is not
        served here."""
        if snapshot.digest not in self._by_digest:
            raise InvalidValue(self.not_served(snapshot.version), field="model_digest")
        return self.of(session_id).restore(session_id, snapshot)

    def not_served(self, version: str) -> str:
        """What a client is told of a snapshot of another version."""
        here = ", ".join(manager.bundle.version for manager in self.managers)
        return f"the snapshot is of a version of the model ({version}) that is not served here: {here}"

    def fork(self, session_id: str, new_id: str | None, at_step: int | None) -> asyncio.Future[Session]:
        return self.of(session_id).fork(session_id, new_id, at_step)

    def rewind(self, session_id: str, step: int) -> asyncio.Future[Session]:
        return self.of(session_id).rewind(session_id, step)

    def next_step(self, session_id: str) -> int | None:
        return self.of(session_id).next_step(session_id)

    def replies(self, session_id: str, step: int) -> asyncio.Future[list[Reply]]:
        return self.of(session_id).replies(session_id, step)

    async def hand_over(self, session_id: str) -> bool:
        """Lets go of a session for another replica; whether it did."""
        manager = self.of(session_id)
        return isinstance(manager, SharedManager) and await manager.hand_over(session_id)
