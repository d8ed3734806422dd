"""What each route of `routes.ROUTES` is to a reader: words, body, replies and errors. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from service.api import schemas
from service.api.routes import MODEL, SAFETENSORS, SESSION, STREAM
from service.api.targets import OWN
from service.errors import (
    BadRequest,
    CellstateError,
    DeadlineExceeded,
    EngineFailure,
    Forbidden,
    Gone,
    InvalidValue,
    Moving,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    SessionDamaged,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    StepConflict,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    VersionConflict,
)

JSON, HTML, TEXT = "application/json", "text/html", "text/plain"
Errors = tuple[type[CellstateError], ...]

MODEL_ERRORS: Errors = (NotFound, EngineFailure)
BODY_ERRORS: Errors = (BadRequest, InvalidValue, TooLarge, UnsupportedMediaType)
WORK_ERRORS: Errors = (NoCapacity, Unavailable)
RUN_ERRORS: Errors = (*WORK_ERRORS, DeadlineExceeded)
#: Where there are keys; by `routes.rule_of`
KEY_ERRORS: dict[str, Errors] = {
    "open": (),
    "page": (Unauthorized, QuotaExceeded),
    "both": (Unauthorized, Forbidden, QuotaExceeded),
    "client": (Unauthorized, Forbidden, QuotaExceeded),
    "operator": (Unauthorized, Forbidden, QuotaExceeded),
}
GONE_ERRORS: Errors = (SessionNotFound, Gone, SessionExpired, SessionLost)
#: Any of them may have to bring the session here first
SESSION_ERRORS: Errors = (
    *MODEL_ERRORS,
    InvalidValue,
    *GONE_ERRORS,
    *WORK_ERRORS,
    Moving,
    SessionDamaged,
    VersionConflict,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply that is not an error. schema: of its JSON; None: `media` says what it is."""

    what: str
    schema: type[BaseModel] | None = None
    media: str = JSON


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `id` is the operationId; `examples` the kind of example that fits the body."""

    id: str
    tag: str
    summary: str
    text: str
    replies: dict[int, Reply]
    errors: Errors
    body: type[BaseModel] | None = None
    body_required: bool = True
    body_media: tuple[str, ...] = (JSON,)
    examples: str = ""
    links: tuple[str, ...] = field(default=())


TAGS: dict[str, str] = {
    "Sessions": "A session is one client's sequence. Its state stays on the server between requests.",
    "Steps": "A step is one timestep, numbered from 0 in its session. A request carries one or more.",
    "Snapshots": "The state of a session as a file, and sessions that begin from another's state.",
    "Stream": (
        f"A WebSocket at `{STREAM}`. Each text frame is a body of `POST {SESSION}/steps`, each answer its"
        ' reply, in order. An error comes as `{"error": problem}` and the socket stays open, unless the'
        " session or the model is gone. After a break, `?resume=n` has the replies from step n on sent again"
        " first, as far as they are kept. Close codes: 4404 no such model, or an id that can't be one; 4410"
        " the session is gone; 1008 the key was taken away; 1009 a message larger than a body may be; 1012"
        ' the service is stopping, come back (the reason is `{"next_step": n}`, if that is known);'
        " 1011 the service failed. A key is sent in the handshake, as a header or, from a browser, as a"
        " protocol beside `cellstate`: `new WebSocket(url, ['cellstate', 'bearer.' + key])`. A stream that"
        " sends more than its key's requests a second is slowed down, not refused."
    ),
    "Predictions and models": "What is served, and predictions without a session.",
    "Service": "Health, metrics and this description.",
}

OPENED = ("getSession", "endSession", "step", "exportState", "forkSession")

OPERATIONS: dict[tuple[str, str], Operation] = {
    (MODEL + "/sessions", "POST"): Operation(
        "openSession",
        "Sessions",
        "Open a session",
        "Opens a session at step 0, under an id of your own or an issued one. An empty body is as good as"
        " `{}`. A step 0 on an unknown id opens a session too.",
        {201: Reply("The session is open.", schemas.SessionFacts)},
        (*MODEL_ERRORS, *BODY_ERRORS, SessionExists, *WORK_ERRORS, Moving),
        schemas.OpenBody,
        body_required=False,
        examples="open",
        links=OPENED,
    ),
    (SESSION, "GET"): Operation(
        "getSession",
        "Sessions",
        "A session's facts",
        "Reading them does not put off the session's end.",
        {200: Reply("The session.", schemas.SessionFacts)},
        SESSION_ERRORS,
    ),
    (SESSION, "DELETE"): Operation(
        "endSession",
        "Sessions",
        "End a session",
        "Ends it when the requests before this one are done. Its id is as good as new afterwards.",
        {204: Reply("The session has ended.", media="")},
        SESSION_ERRORS,
    ),
    (SESSION + "/steps", "POST"): Operation(
        "step",
        "Steps",
        "Advance a session",
        "Runs the steps on the session's state and keeps the new state. With `step`, the number of the first"
        " step, a retry is answered from what was committed, with `replayed: true`, and never stepped twice;"
        " `step: 0` on an unknown id opens the session. Without it the request runs at whatever is next."
        " `horizon` and `generate` run on a copy: the session does not move by them.",
        {200: Reply("The steps were committed, now or before.", schemas.StepReply)},
        (*SESSION_ERRORS, *BODY_ERRORS, StepConflict, DeadlineExceeded),
        schemas.StepBody,
        examples="step",
    ),
    (MODEL + "/steps", "POST"): Operation(
        "stepMany",
        "Steps",
        "Advance many sessions",
        "One result or one error for each request, in order: an error of one spoils no other, and the status"
        " is 200 all the same. Places in an item's error are within the item.",
        {200: Reply("A result or an error for each request.", schemas.BulkReply)},
        (*MODEL_ERRORS, *BODY_ERRORS),
        schemas.BulkBody,
        examples="bulk",
    ),
    (SESSION + "/state", "GET"): Operation(
        "exportState",
        "Snapshots",
        "Export a snapshot",
        "h and c `[layers, hidden]` in float32 after the requests before this one, with `next_step` and the"
        " model's digest as metadata. The same state gives the same bytes.",
        {200: Reply("The snapshot, as safetensors.", media=SAFETENSORS)},
        SESSION_ERRORS,
    ),
    (SESSION + "/state", "PUT"): Operation(
        "importState",
        "Snapshots",
        "Import a snapshot",
        "Puts the session where the snapshot was, opening it if need be. The snapshot must be of the same"
        " model.",
        {
            200: Reply("The session is where the snapshot was.", schemas.SessionFacts),
            201: Reply("The session was opened there.", schemas.SessionFacts),
        },
        (*SESSION_ERRORS, BadRequest, TooLarge),
        body_media=(SAFETENSORS, "application/octet-stream"),
    ),
    (SESSION + "/fork", "POST"): Operation(
        "forkSession",
        "Snapshots",
        "Fork a session",
        "Opens a new session from this one's state, after the requests before this one. The two go their own"
        " ways. An empty body is as good as `{}`.",
        {201: Reply("The new session.", schemas.SessionFacts)},
        (*SESSION_ERRORS, *BODY_ERRORS, SessionExists, StepConflict),
        schemas.ForkBody,
        body_required=False,
        examples="fork",
        links=OPENED,
    ),
    (SESSION + "/rewind", "POST"): Operation(
        "rewindSession",
        "Snapshots",
        "Rewind a session",
        "Puts a session back to where it was before step `to_step`, after the requests before this one: what"
        " was committed from there on is no more. How far back that goes is a setting (`history`).",
        {200: Reply("The session.", schemas.SessionFacts)},
        (*SESSION_ERRORS, *BODY_ERRORS, StepConflict),
        schemas.RewindBody,
        examples="rewind",
    ),
    (MODEL + "/predict", "POST"): Operation(
        "predict",
        "Predictions and models",
        "Predict without a session",
        "Runs a whole sequence from zeros and forgets it. `horizon` adds the forecast behind it, `generate`"
        " text that goes on from it.",
        {200: Reply("The predictions.", schemas.PredictReply)},
        (*MODEL_ERRORS, *BODY_ERRORS, *RUN_ERRORS),
        schemas.PredictBody,
        examples="predict",
    ),
    ("/v1/models", "GET"): Operation(
        "listModels",
        "Predictions and models",
        "All models",
        "Each with its inputs, outputs, sizes, quality figures and open sessions.",
        {200: Reply("The models served here.", schemas.ModelList)},
        (Unavailable, EngineFailure),
    ),
    (MODEL, "GET"): Operation(
        "getModel",
        "Predictions and models",
        "One model",
        "Its task, inputs and outputs by name and unit, sizes, quality figures and open sessions.",
        {200: Reply("The model.", schemas.ModelFacts)},
        MODEL_ERRORS,
    ),
    ("/healthz", "GET"): Operation(
        "health",
        "Service",
        "Whether the process lives",
        "Answers as long as the process can answer at all.",
        {200: Reply("It lives.", schemas.Health)},
        (),
    ),
    ("/readyz", "GET"): Operation(
        "readiness",
        "Service",
        "Whether it can take traffic",
        "Every model is loaded and warm, and nothing is stopping.",
        {200: Reply("It can take traffic.", schemas.Health)},
        (Unavailable,),
    ),
    ("/metrics", "GET"): Operation(
        "metrics",
        "Service",
        "Prometheus metrics",
        "In the text exposition format: of every replica at the front door, each under the label `replica`.",
        {200: Reply("The exposition.", media=TEXT)},
        (EngineFailure,),
    ),
    ("/metrics/targets", "GET"): Operation(
        "metricsTargets",
        "Service",
        "Whom Prometheus should scrape",
        "Every replica that lives, by its own address, for Prometheus' `http_sd_configs`. All its samples get"
        " the label `replica`; `__meta_cellstate_model` is there for relabelling. A replica comes and goes"
        " within seconds. A process that serves alone names itself.",
        {200: Reply("The targets.", schemas.MetricsTargets)},
        (EngineFailure,),
    ),
    (OWN, "GET"): Operation(
        "metricsOfProcess",
        "Service",
        "Prometheus metrics of one process",
        "Of the process that answers, alone: at the front door, of the door. A replica's are at its own"
        " address.",
        {200: Reply("The exposition.", media=TEXT)},
        (EngineFailure,),
    ),
    ("/openapi.json", "GET"): Operation(
        "openapi",
        "Service",
        "The description of this API",
        "OpenAPI 3.1.",
        {200: Reply("The description.", schemas.Document)},
        (Unavailable, EngineFailure),
    ),
    ("/docs", "GET"): Operation(
        "docs",
        "Service",
        "The page to read it at",
        "One page of HTML that asks nothing of any other server.",
        {200: Reply("The page.", media=HTML)},
        (Unavailable, EngineFailure),
    ),
}


def example_bodies(kind: str, model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bodies that work for a model (as the schema ModelFacts), by what they show."""
    some = _sequence(model, 3)
    if kind == "open":
        return {"": {"ttl_s": 3600}}
    if kind == "fork":
        return {"": {}}
    if kind == "rewind":
        return {"": {"to_step": 0}}
    if kind == "bulk":
        one = _sequence(model, 1)
        return {"": {"requests": [{"session_id": f"client-{n}", "step": 0, **one} for n in (1, 2)]}}
    onward = {"generate": {"length": 40, "seed": 1}} if _text(model) else {"horizon": horizon(model)}
    if kind == "predict":
        return {"": some, "onward": {**some, **onward}}
    return {
        "": {"step": 0, **some},
        "onward": {**some, **onward},
        "inside": {**_sequence(model, 1), "return": ["outputs", "gates", "state"]},
    }


def horizon(model: dict[str, Any]) -> int:
    """A horizon that the model can see: beyond its leads only if its outputs are all of its inputs."""
    names = [[signal["name"] for signal in model[side]] for side in ("inputs", "outputs")]
    return 6 if sorted(names[0]) == sorted(names[1]) else min(6, int(model["architecture"]["leads"]))


def _text(model: dict[str, Any]) -> bool:
    return bool(model["task"] == "text")


def _sequence(model: dict[str, Any], steps: int) -> dict[str, Any]:
    if _text(model):
        vocabulary = model["vocabulary"]
        wanted = "the" if steps > 1 else "t"
        return {"text": wanted if set(wanted) <= set(vocabulary) else (vocabulary * steps)[:steps]}
    # About the mean of each input, to three digits: values that the model has seen the like of
    shifts = [(0.0, 0.1, -0.1)[t % 3] for t in range(steps)]
    return {"inputs": [[float(f"{s['mean'] + d * s['std']:.3g}") for s in model["inputs"]] for d in shifts]}
