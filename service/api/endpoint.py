"""One model, ready to be asked: from parsed bodies to session commands, and its facts for the reader."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from typing import Any

from model.bundle import Bundle
from service.api.peers import Peers
from service.api.pieces import read_bulk, read_sequence
from service.api.render import Renderer, joined
from service.api.schemas import BulkItem, PredictBody, Sequence, StepBody
from service.api.turns import Turns
from service.errors import InvalidValue, TooLarge
from service.sessions.inputs import InputReader, Steps
from service.sessions.manager import SessionManager
from service.sessions.register import SESSION_ID
from service.sessions.replies import PLAIN, Options, Reply, Sampling, StepCommand
from service.sessions.session import Session
from service.sessions.shared import SharedManager
from service.settings import Settings

Items = list[tuple[BulkItem, Steps | None]]


def _single_row(body: BulkItem, steps: Steps | None) -> list[float] | None:
    """The inputs of a request of one step that was not read yet."""
    one = steps is None and body.text is None and body.inputs is not None and len(body.inputs) == 1
    return body.inputs[0] if one and body.inputs else None


class ModelEndpoint:
    """The model's manager with all that translates for it."""

    def __init__(
        self, bundle: Bundle, manager: SessionManager, settings: Settings, peers: Peers | None = None
    ) -> None:
        self.peers = peers  # of a manager whose sessions may be elsewhere
        self.bundle, self.manager, self.settings = bundle, manager, settings
        self.spec = bundle.spec
        self.reader = InputReader(bundle.spec, settings.max_steps)
        self.renderer = Renderer(bundle.spec.architecture.output_size)
        self.turns = Turns()
        self.direct_url = ""

    async def hand_over(self, session_id: str) -> bool:
        """Lets go of a session for another replica; whether it did."""
        manager = self.manager
        return isinstance(manager, SharedManager) and await manager.hand_over(session_id)

    async def read_step(self, session_id: str, text: bytes) -> StepCommand:
        """A body of /steps as a command. Raises BadRequest, InvalidValue or TooLarge, naming the place."""
        body, steps = await read_sequence(StepBody, text, self.reader, self.turns)
        return self.step_command(session_id, body, steps)

    async def read_predict(self, text: bytes) -> StepCommand:
        """A body of /predict as a command. Raises the same."""
        body, steps = await read_sequence(PredictBody, text, self.reader, self.turns)
        return self.predict_command(body, steps)

    async def read_bulk(self, text: bytes) -> Items | None:
        """The requests of a body of /steps, with their steps if these were read: of large ones, and of all if
        each is of one step and all are right. None if one is not valid."""
        items = await read_bulk(text, self.reader, self.turns)
        rows = [_single_row(*item) for item in items or ()]
        read = (
            self.reader.single_rows([row for row in rows if row is not None]) if all(rows) and rows else None
        )
        if items is None or read is None:
            return items  # each is read when its turn comes, and its error is its own
        return [(body, steps) for (body, _), steps in zip(items, read, strict=True)]

    async def answer(self, reply: Reply) -> bytes:
        """A step reply as JSON, a long one in turns with everything else."""
        if reply.options is PLAIN and len(reply.outputs) == 1:
            return self.renderer.reply(reply)
        return await joined(self.renderer.reply_parts(reply), self.turns)

    async def prediction(self, reply: Reply) -> bytes:
        """A predict reply as JSON, likewise."""
        return await joined(self.renderer.prediction_parts(reply), self.turns)

    def step_command(self, session_id: str, body: StepBody, steps: Steps | None = None) -> StepCommand:
        """A body of /steps as a command; steps: if they were read before. Raises InvalidValue or TooLarge,
        naming the place."""
        steps = self._steps(body) if steps is None else steps
        returns = body.returns
        if returns is None and body.horizon is None and body.generate is None:
            options = PLAIN
        else:
            options = self._options(body, ["outputs"] if returns is None else returns, len(steps))
        timeout_s = None if body.timeout_ms is None else body.timeout_ms / 1000
        return StepCommand(session_id, steps, body.step, options, timeout_s)

    def predict_command(self, body: Sequence, steps: Steps | None = None) -> StepCommand:
        """A body of /predict as a command."""
        steps = self._steps(body) if steps is None else steps
        options = self._options(body, ["outputs"], len(steps))
        timeout_s = None if body.timeout_ms is None else body.timeout_ms / 1000
        return StepCommand("", steps, 0, options, timeout_s)

    def _steps(self, body: Sequence) -> Steps:
        if body.inputs is not None:
            if body.text is not None:
                raise InvalidValue("inputs and text exclude each other", field="text")
            return self.reader.series(body.inputs)
        if body.text is not None:
            return self.reader.text(body.text)
        wanted = "text" if self.reader.takes_text else "inputs"
        raise InvalidValue(f"{wanted} is missing", field=wanted)

    def _options(self, body: Sequence, returns: list[Any], count: int) -> Options:
        s = self.settings
        if body.horizon is not None:
            if self.reader.takes_text:
                raise InvalidValue("a text model generates: use generate, not horizon", field="horizon")
            _at_most("horizon", body.horizon, s.max_horizon)
            leads = self.spec.architecture.leads
            if body.horizon > leads and not self.spec.closes_loop:
                raise InvalidValue(
                    f"horizon is {body.horizon}, this model sees {leads} steps ahead: its outputs are not all"
                    " of its inputs, so it can't go on from its own predictions",
                    field="horizon",
                )
        sampling = None
        if body.generate is not None:
            g = body.generate
            if not self.reader.takes_text:
                raise InvalidValue("a series model forecasts: use horizon, not generate", field="generate")
            _at_most("generate.length", g.length, s.max_horizon)
            sampling = Sampling(g.length, g.temperature, g.top_k, g.seed)
        gates = "gates" in returns
        if gates and count > s.max_traced_steps:
            raise TooLarge(
                f"gates are given for at most {s.max_traced_steps} steps a request, not {count}",
                limit=s.max_traced_steps,
            )
        return Options("outputs" in returns, gates, "state" in returns, body.horizon or 0, sampling)

    def session_facts(self, session: Session) -> dict[str, Any]:
        """One session, as the schema SessionFacts."""
        opened = datetime.datetime.fromtimestamp(session.opened_at, datetime.UTC)
        return {
            "session_id": session.id,
            "model": self.bundle.name,
            "version": self.bundle.version,
            "next_step": session.next_step,
            "direct_url": self.direct_url,
            "ttl_s": session.ttl_s,
            "expires_in_s": round(self.manager.expires_in(session), 3),
            "durability": session.durability,
            "opened_at": opened.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "place": session.state.place.value,
        }

    def facts(self) -> dict[str, Any]:
        """The model, as the schema ModelFacts."""
        b, arch = self.bundle, self.spec.architecture
        return {
            "name": b.name,
            "version": b.version,
            "task": arch.task,
            "description": b.description,
            "digest": b.digest,
            "inputs": [asdict(s) for s in self.spec.inputs],
            "outputs": [asdict(s) for s in self.spec.outputs],
            "vocabulary": self.spec.vocabulary,
            "architecture": asdict(arch),
            "parameters": arch.parameters,
            "quality": dict(b.quality),
            "sessions": self.manager.places(),
        }


def check_session_id(session_id: str) -> str:
    """The id, if it can be one. Raises InvalidValue."""
    if not SESSION_ID.fullmatch(session_id):
        raise InvalidValue(
            f"a session id is 1 to 128 letters, digits and . _ ~ -, beginning with a letter or digit,"
            f" not {session_id[:140]!r}",
            field="session_id",
        )
    return session_id


def _at_most(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidValue(f"{field} is {value}, at most {limit} is possible", field=field)
