"""One model, ready to be asked: from parsed bodies to session commands, and its facts for the reader."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from typing import Any

from model.bundle import Bundle
from service.api.render import Renderer
from service.api.schemas import Sequence, StepBody
from service.errors import InvalidValue, TooLarge
from service.sessions.inputs import InputReader, Steps
from service.sessions.manager import SessionManager
from service.sessions.register import SESSION_ID
from service.sessions.replies import PLAIN, Options, Sampling, StepCommand
from service.sessions.session import Session
from service.settings import Settings


class ModelEndpoint:
    """The model's manager with all that translates for it."""

    def __init__(self, bundle: Bundle, manager: SessionManager, settings: Settings) -> None:
        self.bundle, self.manager, self.settings = bundle, manager, settings
        self.spec = bundle.spec
        self.reader = InputReader(bundle.spec, settings.max_steps)
        self.renderer = Renderer(bundle.spec.architecture.output_size)
        self.direct_url = ""

    def step_command(self, session_id: str, body: StepBody) -> StepCommand:
        """A body of /steps as a command. Raises InvalidValue or TooLarge, naming the place."""
        steps = self._steps(body)
        returns = body.returns
        if returns is None and body.horizon is None and body.generate is None:
            options = PLAIN
        else:
            options = self._options(body, ["outputs"] if returns is None else returns, len(steps))
        timeout_s = None if body.timeout_ms is None else body.timeout_ms / 1000
        return StepCommand(session_id, steps, body.step, options, timeout_s)

    def predict_command(self, body: Sequence) -> StepCommand:
        """A body of /predict as a command."""
        steps = self._steps(body)
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
