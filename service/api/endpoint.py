"""One model, ready to be asked: from parsed bodies to session commands, and its facts for the reader."""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import asdict
from typing import Any

from service.api.peers import Peers
from service.api.pieces import read_bulk, read_plain, read_sequence
from service.api.render import Renderer, is_small, joined
from service.api.schemas import BulkItem, PredictBody, Sequence, StepBody
from service.api.turns import Turns
from service.errors import CellstateError, Elsewhere, InvalidValue, TooLarge
from service.sessions.inputs import InputReader, Steps
from service.sessions.jobs import check_horizon
from service.sessions.manager import SessionManager
from service.sessions.memory import Form
from service.sessions.names import client_id
from service.sessions.register import SESSION_ID
from service.sessions.replies import PLAIN, Options, Reply, Sampling, StepCommand
from service.sessions.session import Session
from service.sessions.snapshot import Snapshot
from service.sessions.versions import Versions
from service.settings import Settings

#: Requests of one bulk body that are taken up, or answered, in one go
BULK_SLICE = 256
#: The replies of many requests; or why one of them has none
Begun = list["asyncio.Future[Reply] | CellstateError"]
Items = list[tuple[BulkItem, Steps | None]]


def _single_row(body: BulkItem, steps: Steps | None) -> list[float] | None:
    """The inputs of a request of one step that was not read yet."""
    one = steps is None and body.text is None and body.inputs is not None and len(body.inputs) == 1
    return body.inputs[0] if one and body.inputs else None


class ModelEndpoint:
    """The model's sessions with all that translates for them. bundle, spec, reader: of the newest version."""

    def __init__(self, manager: Versions, settings: Settings, peers: Peers | None = None) -> None:
        self.peers = peers  # of a manager whose sessions may be elsewhere
        self.bundle, self.manager, self.settings = manager.newest.bundle, manager, settings
        self.spec = self.bundle.spec
        bundles = [version.bundle for version in manager.managers]
        self._readers = {b.digest: InputReader(b.spec, settings.max_steps) for b in bundles}
        self._renderers = {width: Renderer(width) for width in {b.spec.output_width for b in bundles}}
        self.reader = self._readers[self.bundle.digest]
        self.turns = Turns(manager.busy)
        self.direct_url = ""

    def reader_of(self, session_id: str) -> InputReader:
        """Of the version that the session is on, or that it would be opened on."""
        if len(self._readers) == 1:
            return self.reader
        return self._readers[self.manager.of(session_id).bundle.digest]

    async def bring(self, session_id: str) -> None:
        """Finds out which version a session is on, if it can be had. Raises Elsewhere."""
        if len(self._readers) > 1:
            try:
                await self.manager.find(session_id)
            except Elsewhere:
                raise
            except CellstateError:
                return

    async def read_step(self, session_id: str, text: bytes) -> StepCommand:
        """A body of /steps as a command. Raises BadRequest, InvalidValue or TooLarge, naming the place; or
        Elsewhere, if what the body must be is only known there."""
        reader = self.reader_of(session_id)
        try:
            return await self._read_step(session_id, text, reader)
        except InvalidValue:
            await self.bring(session_id)  # it may be of a version with other inputs
            if reader is self.reader_of(session_id):
                raise
        return await self._read_step(session_id, text, self.reader_of(session_id))

    async def _read_step(self, session_id: str, text: bytes, reader: InputReader) -> StepCommand:
        body, steps = await read_sequence(StepBody, text, reader, self.turns)
        return self._step_command(session_id, body, steps, reader)

    def read_snapshot(self, blob: bytes) -> Snapshot:
        """A body of /state. Raises BadRequest, or InvalidValue for one of a version that is not served."""
        version = self.manager.by_digest(Snapshot.digest_in(blob))
        if version is None:  # not `or`: a manager without sessions is empty, and false
            version = self.manager.newest
        return Snapshot.parse(blob, Form.of(version.bundle.spec), version.bundle.digest)

    async def read_predict(self, text: bytes) -> StepCommand:
        """A body of /predict as a command. Raises the same."""
        body, steps = await read_sequence(PredictBody, text, self.reader, self.turns)
        return self.predict_command(body, steps)

    async def read_plain_bulk(self, prefix: str, text: bytes) -> list[StepCommand] | None:
        """The requests of a body of /steps as commands, if each asks for one step in numbers and nothing
        else, and all are right, as in most bodies; None if not. prefix: of the sessions' names."""
        if self.reader.takes_text:
            return None
        items = await read_plain(text, self.turns)
        if not items or any(len(item["inputs"]) != 1 for item in items):
            return None
        read = self.reader.single_rows([item["inputs"][0] for item in items])
        if read is None:
            return None
        return [
            StepCommand(prefix + item["session_id"], steps, item.get("step"))
            for item, steps in zip(items, read, strict=True)
        ]

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
        if is_small(reply):
            return self._renderer(reply).small(reply)
        return await joined(self._renderer(reply).reply_parts(reply), self.turns)

    async def answers(self, futures: Begun) -> list[bytes | CellstateError]:
        """The replies of many requests as JSON, in turns with everything else; or why one has none."""
        found: list[bytes | CellstateError] = []
        for number, future in enumerate(futures, 1):
            try:
                if isinstance(future, CellstateError):
                    raise future
                reply = future.result() if future.done() else await future
                small = is_small(reply)
                found.append(self._renderer(reply).small(reply) if small else await self.answer(reply))
            except CellstateError as error:
                found.append(error)
            if number % BULK_SLICE == 0:
                await self.turns.next()
        return found

    def _renderer(self, reply: Reply) -> Renderer:
        return self._renderers[reply.outputs.shape[1]]

    async def prediction(self, reply: Reply) -> bytes:
        """A predict reply as JSON, likewise."""
        return await joined(self._renderer(reply).prediction_parts(reply), self.turns)

    def bulk_command(self, prefix: str, body: BulkItem, steps: Steps | None) -> StepCommand:
        """A request of a bulk body as a command; steps: if they were read before. prefix: of its sessions'
        names. Raises what `read_step` does; after InvalidValue, see `bulk_command_anew`."""
        name = prefix + body.session_id
        return self._step_command(name, body, steps, self.reader_of(name))

    async def bulk_command_anew(self, prefix: str, body: BulkItem, refused: InvalidValue) -> StepCommand:
        """The same, for a session that may be of a version with other inputs; else it stays refused."""
        name = prefix + body.session_id
        reader = self.reader_of(name)
        await self.bring(name)
        if reader is self.reader_of(name):
            raise refused
        return self._step_command(name, body, None, self.reader_of(name))

    def _step_command(
        self, session_id: str, body: StepBody, steps: Steps | None, reader: InputReader
    ) -> StepCommand:
        steps = self._steps(body, reader) if steps is None else steps
        returns = body.returns
        if returns is None and body.horizon is None and body.generate is None:
            options = PLAIN
        else:
            options = self._options(body, ["outputs"] if returns is None else returns, len(steps), reader)
        timeout_s = None if body.timeout_ms is None else body.timeout_ms / 1000
        return StepCommand(session_id, steps, body.step, options, timeout_s)

    def predict_command(self, body: Sequence, steps: Steps | None = None) -> StepCommand:
        """A body of /predict as a command."""
        steps = self._steps(body, self.reader) if steps is None else steps
        options = self._options(body, ["outputs"], len(steps), self.reader)
        timeout_s = None if body.timeout_ms is None else body.timeout_ms / 1000
        return StepCommand("", steps, 0, options, timeout_s)

    def _steps(self, body: Sequence, reader: InputReader) -> Steps:
        if body.inputs is not None:
            if body.text is not None:
                raise InvalidValue("inputs and text exclude each other", field="text")
            return reader.series(body.inputs)
        if body.text is not None:
            return reader.text(body.text)
        wanted = "text" if reader.takes_text else "inputs"
        raise InvalidValue(f"{wanted} is missing", field=wanted)

    def _options(self, body: Sequence, returns: list[Any], count: int, reader: InputReader) -> Options:
        s = self.settings
        if body.horizon is not None:
            if reader.takes_text:
                raise InvalidValue("a text model generates: use generate, not horizon", field="horizon")
            _at_most("horizon", body.horizon, s.max_horizon)
        sampling = None
        if body.generate is not None:
            g = body.generate
            if not reader.takes_text:
                raise InvalidValue("a series model forecasts: use horizon, not generate", field="generate")
            _at_most("generate.length", g.length, s.max_horizon)
            sampling = Sampling(g.length, g.temperature, g.top_k, g.seed)
        gates = "gates" in returns
        if gates and count > s.max_traced_steps:
            raise TooLarge(
                f"gates are given for at most {s.max_traced_steps} steps a request, not {count}",
                limit=s.max_traced_steps,
            )
        options = Options("outputs" in returns, gates, "state" in returns, body.horizon or 0, sampling)
        check_horizon(options, reader.spec)
        return options

    def session_facts(self, session: Session) -> dict[str, Any]:
        """One session, as the schema SessionFacts."""
        manager = self.manager.of(session.id)
        opened = datetime.datetime.fromtimestamp(session.opened_at, datetime.UTC)
        return {
            "session_id": client_id(session.id),
            "model": self.bundle.name,
            "version": manager.bundle.version,
            "next_step": session.next_step,
            "direct_url": self.direct_url,
            "ttl_s": session.ttl_s,
            "expires_in_s": round(manager.expires_in(session), 3),
            "durability": session.durability,
            "opened_at": opened.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "place": session.state.place.value,
        }

    def facts(self, namespace: str = "") -> dict[str, Any]:
        """The model, as the schema ModelFacts. namespace: its sessions alone are counted."""
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
            "calendar": None if self.spec.calendar is None else asdict(self.spec.calendar),
            "architecture": asdict(arch),
            "parameters": arch.parameters,
            "quality": dict(b.quality),
            "sessions": _counted(self.manager, namespace),
            "versions": [
                {
                    "version": version.bundle.version,
                    "digest": version.bundle.digest,
                    "sessions": _counted(version, namespace),
                    "new_sessions": version is self.manager.newest,
                }
                for version in self.manager.managers
            ],
        }


def _counted(manager: Versions | SessionManager, namespace: str) -> dict[str, int]:
    return {"open": manager.open_in(namespace)} if namespace else manager.places()


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
