"""What is done to a session at rest, at its place in the order of requests: export, import, fork."""

from __future__ import annotations

from dataclasses import replace

from model.bundle import Bundle
from service.engine.engine import Engine
from service.engine.jobs import Place
from service.errors import StepConflict
from service.sessions.memory import Form, adopt, read
from service.sessions.register import Limits, Register
from service.sessions.replies import Reply
from service.sessions.residence import Residence
from service.sessions.session import Session
from service.sessions.snapshot import Snapshot
from service.sessions.window import ReplayWindow


class Actions:
    """Of one model. What reads a state needs it at hand: not in the store."""

    def __init__(
        self, bundle: Bundle, engine: Engine, register: Register, residence: Residence, limits: Limits
    ) -> None:
        self._bundle, self._engine, self._limits = bundle, engine, limits
        self._register, self._residence = register, residence

    def take_snapshot(self, session: Session) -> Snapshot:
        """The state as it is; reads it."""
        b = self._bundle
        memory = read(self._engine, session.state)
        if memory.carry is None:  # of a session that was not stepped
            memory = replace(memory, carry=Form.of(b.spec).zeros().carry)
        return Snapshot(memory.state, session.next_step, b.name, b.version, b.digest, memory.carry)

    def put(self, session: Session, snapshot: Snapshot, opened: bool) -> bool:
        """The session goes on from the snapshot; what was before is not known any more. Returns `opened`."""
        if snapshot.digest != self._bundle.digest:
            raise RuntimeError("a snapshot of another version of the model came to this one's engine")
        adopted = adopt(self._engine, snapshot.memory, session.id)  # first what can fail: it keeps a state
        self._residence.forget(session)
        session.state = adopted
        session.next_step = snapshot.next_step
        session.window = ReplayWindow(self._limits.replay_window)
        session.opened_by_step = False
        self._residence.tidy_soon()
        return opened

    def fork(self, session: Session, new_id: str | None, at_step: int | None) -> Session:
        """A new session from this one's state; reads it. Raises StepConflict if it is at another step, and
        what opening a session raises."""
        self.check_step(session, at_step)
        memory = None if session.state.place is Place.FRESH else read(self._engine, session.state)
        fork = self._register.open(new_id, session.ttl_s, session.durability)
        if memory is not None:
            fork.state = adopt(self._engine, memory, fork.id)
            self._residence.tidy_soon()
        fork.next_step = session.next_step
        return fork

    def rewind(self, session: Session, step: int) -> Session:
        """The session before that step; of one that no store keeps, the one it is at."""
        self.check_step(session, step)
        return session

    def check_step(self, session: Session, step: int | None) -> None:
        """Raises StepConflict unless that is where the session is."""
        if step is not None and step != session.next_step:
            raise StepConflict(
                f"the state before step {step} is not kept; the next step is {session.next_step}",
                expected_step=session.next_step,
            )

    def replies(self, session: Session, step: int) -> list[Reply]:
        """What was answered from `step` on. Raises StepConflict if that is not kept."""
        if step == session.next_step:
            return []
        found = session.window.replies(session.id, step) if step < session.next_step else None
        if not found:
            raise StepConflict(
                f"the replies from step {step} on are not kept; the next step is {session.next_step}",
                expected_step=session.next_step,
            )
        return found
