"""From a checked command to the engine's job, and from the finished job to the reply."""

from __future__ import annotations

import numpy as np

from model.config import ModelSpec
from model.watch.watcher import Draft, Watcher
from service.engine.engine import Engine
from service.engine.jobs import Job, Prepared, StateHandle
from service.engine.rollouts import Forecast, Generation
from service.errors import InvalidValue
from service.sessions.replies import PLAIN, Options, Reply, StepCommand
from service.sessions.session import Ticket


def watcher_of(spec: ModelSpec) -> Watcher | None:
    """What stands between a watch model's network and its clients; None for any other model."""
    return None if spec.rules is None else Watcher(spec.rules)


def drafted(watcher: Watcher, state: StateHandle | None, raw: bytes) -> tuple[Prepared, Draft]:
    """The network's inputs for values that go on from a state, None for the beginning."""
    carry = None if state is None else state.carry
    return watcher.before(watcher.fresh() if carry is None else carry, np.frombuffer(raw).tolist())


def job_for(ticket: Ticket, command: StepCommand, spec: ModelSpec, watcher: Watcher | None) -> Job:
    """The job of a request; without a session it starts from zeros and keeps nothing."""
    inputs = command.steps.prepared
    if watcher is not None:
        state = None if ticket.session is None else ticket.session.state
        inputs, ticket.draft = drafted(watcher, state, command.steps.raw)
    return Job(  # by place: by name it takes twice as long
        inputs,
        None if ticket.session is None else ticket.session.state,
        None if command.options is PLAIN else _rollout(command, spec),
        command.options.gates,
        ticket.deadline,
        ticket.future.done,
    )


def reply_of(
    ticket: Ticket, command: StepCommand, job: Job, engine: Engine, spec: ModelSpec, watcher: Watcher | None
) -> Reply:
    """The reply to a request whose job is DONE and not yet committed."""
    rollout, options, outputs = job.rollout, command.options, job.result
    if watcher is not None:
        assert ticket.draft is not None  # noqa: S101  its job was made with one
        outputs, ticket.carry = watcher.after(ticket.draft, outputs)
    start = 0 if ticket.session is None else ticket.session.next_step
    if options is PLAIN:
        return Reply(command.session_id, start, start + len(job.inputs), outputs)
    generated = None
    if isinstance(rollout, Generation):
        generated = "".join(spec.vocabulary[token] for token in rollout.tokens)
    return Reply(
        session_id=command.session_id,
        step=start,
        next_step=start + len(command.steps),
        outputs=outputs,
        options=options,
        forecast=rollout.result if isinstance(rollout, Forecast) else None,
        quantiles=rollout.quantiles if isinstance(rollout, Forecast) else None,
        generated=generated,
        gates=job.trace_result if options.gates else None,
        state=engine.read_new(job) if options.state else None,
    )


def steps_of(command: StepCommand, spec: ModelSpec) -> int:
    """Most steps that will be run for a request."""
    options = command.options
    beyond = max(0, options.horizon - spec.architecture.leads)
    return len(command.steps) + beyond + (0 if options.generate is None else options.generate.length - 1)


def check_horizon(options: Options, spec: ModelSpec) -> None:
    """Raises InvalidValue for a horizon that a model can't see to."""
    leads = spec.architecture.leads
    if options.horizon > leads and not spec.closes_loop:
        raise InvalidValue(
            f"horizon is {options.horizon}, this model sees {leads} steps ahead: its outputs are not all"
            " of its inputs, so it can't go on from its own predictions",
            field="horizon",
        )


def _rollout(command: StepCommand, spec: ModelSpec) -> Forecast | Generation | None:
    options = command.options
    if options.horizon:
        time = None if spec.calendar is None else float(np.frombuffer(command.steps.raw)[-1])
        return Forecast(spec, options.horizon, time)
    if options.generate is not None:
        g = options.generate
        return Generation(g.length, g.temperature, g.top_k, g.seed)
    return None
