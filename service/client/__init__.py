"""A client of Cellstate, blocking and asynchronous. Faults that pass are seen as latency only.

    from service.client import Client

    with Client("http://localhost:8000") as client:
        session = client.model("ett").open()
        for row in rows:                          # one step each: I numbers, in the model's units
            reply = session.step(row, horizon=24)
            print(reply.step, reply.outputs[-1], reply.forecast)
        with session.stream() as stream:          # the same over a WebSocket
            reply = stream.step(row)
        session.close()

Steps are numbered, so a lost reply, a broken connection, a restart or a full service is repaired by sending
the step again; it is executed once. What can't be repaired is raised, see `errors`; after `timeout_s` that is
DeadlineExceeded. `AsyncClient` has the same calls to be awaited. docs/client.md says more.
"""

from service.client.asynchronous import AsyncClient, AsyncModel, AsyncSession, AsyncStream
from service.client.blocking import Client, Model, Session, Stream
from service.client.bulk import Item
from service.client.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    InvalidValue,
    NotFound,
    Refused,
    SessionExists,
    SessionExpired,
    SessionGone,
    SessionLost,
    SessionNotFound,
    StepConflict,
    TooLarge,
    Unexpected,
)
from service.client.messages import Prediction, Reply
from service.client.retries import Retries

__all__ = [
    "AsyncClient",
    "AsyncModel",
    "AsyncSession",
    "AsyncStream",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "InvalidRequest",
    "InvalidValue",
    "Item",
    "Model",
    "NotFound",
    "Prediction",
    "Refused",
    "Reply",
    "Retries",
    "Session",
    "SessionExists",
    "SessionExpired",
    "SessionGone",
    "SessionLost",
    "SessionNotFound",
    "StepConflict",
    "Stream",
    "TooLarge",
    "Unexpected",
]
