"""What goes over the wire, as pydantic knows it: the bodies of requests, and what replies look like.

Strict: no number from a string, no whole number from 1.0, no unknown field. Numbers are finite.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, RootModel
from typing_extensions import TypedDict

SESSION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$"
#: The same with its namespace, as replicas tell it each other
SESSION_NAME_PATTERN = r"^([a-z0-9][a-z0-9._-]{0,63}:)?[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$"
SessionId = Annotated[str, Field(pattern=SESSION_ID_PATTERN)]
StepNumber = Annotated[int, Field(ge=0, lt=2**53)]  # JSON numbers are exact up to 2**53 everywhere
# The first bad number ends it: a list of a million errors would hold up everybody for seconds
Row = Annotated[list[FiniteFloat], Field(fail_fast=True)]
Rows = Annotated[list[Row], Field(fail_fast=True)]
MOST_REQUESTS = 10_000  # of one POST /steps


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)


class Generate(Body):
    """How to sample text on from here; the session does not move."""

    length: int = Field(ge=1, description="characters to generate")
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False, description="0: always the likeliest")
    top_k: int = Field(0, ge=0, description="draw among the k likeliest characters; 0: among all")
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed gives the same text")


#: What pydantic's schema can't say: exactly one of inputs and text, and what goes with which
ONE_OF: dict[str, Any] = {
    "oneOf": [
        {
            "title": "for a series model",
            "required": ["inputs"],
            "properties": {
                "inputs": {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1}},
                "text": {"type": "null"},
                "generate": {"type": "null"},
            },
        },
        {
            "title": "for a text model",
            "required": ["text"],
            "properties": {
                "text": {"type": "string", "minLength": 1},
                "inputs": {"type": "null"},
                "horizon": {"type": "null"},
            },
        },
    ]
}


class Sequence(Body):
    """Steps, and what to say about them. Exactly one of inputs and text."""

    model_config = ConfigDict(json_schema_extra=ONE_OF)

    inputs: Rows | None = Field(None, description="T×I: a row of numbers for each step, in the model's units")
    text: str | None = Field(None, description="in place of inputs, for models with a vocabulary")
    horizon: int | None = Field(None, ge=1, description="adds `forecast`: the next `horizon` values")
    generate: Generate | None = Field(None, description="adds `generated`: text sampled on from here")
    timeout_ms: int | None = Field(None, ge=1, le=600_000, description="504 if not started within this time")


class PredictBody(Sequence):
    """POST /predict: a whole sequence, without a session."""


class StepBody(Sequence):
    """POST /sessions/{id}/steps, and each message of a stream."""

    step: StepNumber | None = Field(None, description="number of the first step; a retry repeats it")
    returns: list[Literal["outputs", "gates", "state"]] | None = Field(
        None,
        alias="return",
        description="what the reply holds beside forecast and generated; default outputs",
    )


class BulkItem(StepBody):
    """One request of POST /steps."""

    session_id: SessionId


class PlainItem(TypedDict):
    """One of them as most are: steps in numbers, and no other field but the first one's number. The same
    rules, read in two thirds of the time."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    session_id: SessionId
    inputs: Rows
    step: NotRequired[StepNumber | None]


class BulkBody(Body):
    """POST /steps: many sessions at once."""

    requests: Annotated[list[BulkItem], Field(fail_fast=True)] = Field(min_length=1, max_length=MOST_REQUESTS)


class LooseBulkBody(Body):
    """The same, each request still unread: a bad one must not spoil the others."""

    requests: list[Any] = Field(min_length=1, max_length=MOST_REQUESTS)


class BulkShell(Body):
    """The same without its requests, which are read apart."""

    requests: list[Any]


class OpenBody(Body):
    """POST /sessions."""

    session_id: SessionId | None = Field(None, description="an id of your own; else one is issued")
    ttl_s: float | None = Field(
        None, gt=0, le=31_536_000, allow_inf_nan=False, description="idle seconds to live"
    )
    durability: Literal["none", "journal", "fsync"] | None = Field(
        None, description="what the session survives; see the settings"
    )


class ForkBody(Body):
    """POST /sessions/{id}/fork."""

    session_id: SessionId | None = Field(None, description="the new session's id; else one is issued")
    at_step: StepNumber | None = Field(None, description="fork before this step; default the newest")


class RewindBody(Body):
    """POST /sessions/{id}/rewind."""

    to_step: StepNumber = Field(description="the step that comes next then")


class HandoverBody(Body):
    """POST /handover, of one replica to another. newest: the newest version that the asking one serves."""

    session_id: Annotated[str, Field(pattern=SESSION_NAME_PATTERN)]
    newest: str | None = None


# Replies: these describe, for OpenAPI; the hot path renders without them (`render`).


class State(BaseModel):
    """h and c after the last step of the request, layers×hidden each."""

    h: list[list[float]]
    c: list[list[float]]


class Gates(BaseModel):
    """Inside the cell: T×layers×hidden each; i, f, o within 0..1, g within -1..1, c and h after the step."""

    i: list[list[list[float]]]
    f: list[list[list[float]]]
    g: list[list[list[float]]]
    o: list[list[list[float]]]
    c: list[list[list[float]]]
    h: list[list[list[float]]]


Quantiles = Annotated[
    dict[str, list[list[float]]],
    Field(
        description="beside a forecast, for models that have them: by level, rows like the forecast's, as"
        " far as the model sees at once"
    ),
]


class PredictReply(BaseModel):
    """Outputs T×O: the prediction of the next step, after each step."""

    outputs: list[list[float]]
    forecast: list[list[float]] | None = None
    quantiles: Quantiles | None = None
    generated: str | None = None


class StepReply(BaseModel):
    """The reply to steps `step` .. `next_step - 1`."""

    session_id: str
    step: int
    next_step: int
    outputs: list[list[float]] | None = None
    forecast: list[list[float]] | None = None
    quantiles: Quantiles | None = None
    generated: str | None = None
    gates: Gates | None = None
    state: State | None = None
    replayed: bool = Field(description="true: answered from the replay window, nothing was stepped")


class Problem(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="for programs; one of the codes below /docs")
    field: str | None = Field(None, description="the place that is wrong, such as inputs[0][3]")
    expected_step: int | None = Field(None, description="the session's next step")
    retry_after_s: int | None = Field(None, description="seconds to wait before the next try")
    limit: int | None = Field(None, description="what the request may have at most, in bytes or steps")
    request_id: str | None = Field(None, description="by which the service's log knows the request")


class ItemError(BaseModel):
    """A request of POST /steps, or a message of a stream, that failed."""

    error: Problem


class BulkReply(BaseModel):
    """One result or error for each request, in order."""

    results: list[StepReply | ItemError]


class SessionFacts(BaseModel):
    """One session."""

    session_id: str
    model: str
    version: str = Field(description="of the model")
    next_step: int = Field(description="number of the step that comes next")
    direct_url: str = Field(description="address of the replica that holds it; empty if there is none")
    ttl_s: float = Field(description="idle seconds after which it ends")
    expires_in_s: float = Field(description="seconds until then, if nothing comes")
    durability: str = Field(description="what it survives: none, journal (kill -9), fsync (power loss)")
    opened_at: str = Field(description="RFC 3339")
    place: Literal["fresh", "device", "host", "store"] = Field(description="where its state is")


class SignalFacts(BaseModel):
    """One input or output."""

    name: str
    unit: str
    mean: float
    std: float


class CalendarFacts(BaseModel):
    """What a model derives from the time, its last input, which is sent in Unix seconds."""

    features: list[Literal["day", "week", "year"]]
    spacing_s: float = Field(description="seconds from step to step, by which forecasts go on")


class VersionFacts(BaseModel):
    """One version of a model, with the sessions that are on it."""

    version: str
    digest: str
    sessions: dict[str, int]
    new_sessions: bool = Field(description="whether sessions are opened on it: it is the newest")


class ModelFacts(BaseModel):
    """One model; all but `sessions` and `versions` is of its newest version."""

    name: str
    version: str
    task: Literal["series", "text", "watch"]
    description: str
    digest: str
    inputs: list[SignalFacts]
    outputs: list[SignalFacts]
    vocabulary: str
    calendar: CalendarFacts | None = None
    architecture: dict[str, Any]
    parameters: int
    quality: dict[str, Any]
    sessions: dict[str, int]
    versions: list[VersionFacts]


class ModelList(BaseModel):
    """All models."""

    models: list[ModelFacts]


class Health(BaseModel):
    """The answer to a probe."""

    status: Literal["ok"]


class MetricsTarget(BaseModel):
    """One process, as Prometheus' HTTP service discovery has it."""

    targets: list[str] = Field(description="its address as host:port")
    labels: dict[str, str] = Field(description="replica, __meta_cellstate_model, maybe __metrics_path__")


class MetricsTargets(RootModel[list[MetricsTarget]]):
    """Whom Prometheus should scrape."""


class Document(BaseModel):
    """An OpenAPI document."""

    model_config = ConfigDict(extra="allow")

    openapi: str
