"""Whatever a stream is sent: an error of its own, in its place, and no session has moved."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.api.bad_bodies import BAD, CHARACTER, ONE, STEPS
from tests.api.serving import SERIES, SETTINGS, TEXT, Served, Witness

MakeWitness = Callable[[str], Witness]

#: What a stream refuses is what a body is refused for, where it can be said in a text frame.
FRAMES = [
    bad
    for bad in BAD
    if (bad.path, bad.method, bad.headers) == (STEPS, "POST", {})
    and bad.content
    and bad.status != 404
    and bad.content.decode("utf-8", "replace").encode() == bad.content
    and len(bad.content) <= SETTINGS.max_body_bytes
]


def stream_of(served: Served, path: str) -> ClientConnection:
    return connect(f"{served.ws}{path}/stream", proxy=None, max_size=None)


def shaken(served: Served, path: str) -> socket.socket:
    """A bare connection with its handshake behind it."""
    connection = socket.create_connection((served.host, served.port), timeout=10)
    connection.sendall(
        f"GET {path}/stream HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    assert connection.recv(65_536).startswith(b"HTTP/1.1 101")
    return connection


def error_in(message: str | bytes) -> dict[str, Any]:
    reply = json.loads(message)
    assert set(reply) == {"error"}
    error: dict[str, Any] = reply["error"]
    return error


@pytest.mark.parametrize("bad", FRAMES, ids=str)
def test_a_bad_message_gets_an_error_and_the_stream_stays_open(
    bad: Any, served: Served, witness: MakeWitness
) -> None:
    session = witness(bad.model)
    one = CHARACTER if bad.model == TEXT else ONE
    with stream_of(served, session.path) as stream:
        stream.send(bad.content.decode())
        stream.send(json.dumps({"step": 9, **one}))
        error, after = error_in(stream.recv(10)), error_in(stream.recv(10))
    assert (error["status"], error["code"]) == (bad.status, bad.code)
    assert error.get("field") == bad.place
    assert bad.says in error["detail"]
    assert (after["code"], after["expected_step"]) == ("step_conflict", 3)


def test_most_bad_bodies_are_sent_to_streams_too() -> None:
    assert len(FRAMES) > 70


def test_a_binary_frame_gets_an_error(served: Served, witness: MakeWitness) -> None:
    with stream_of(served, witness(SERIES).path) as stream:
        for data in (b"\x00\xff", json.dumps(ONE).encode()):
            stream.send(data)
            error = error_in(stream.recv(10))
            assert (error["status"], error["code"]) == (400, "bad_request")
            assert "text frames" in error["detail"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/models/nobody/sessions/a", 404, "not_found"),
        (f"/v1/models/{SERIES}/sessions/a%20b", 422, "invalid_value"),
        (f"/v1/models/{SERIES}/sessions/.a", 422, "invalid_value"),
        (f"/v1/models/{SERIES}/sessions/", 422, "invalid_value"),
    ],
)
def test_a_stream_of_nothing_is_told_so_and_closed(path: str, status: int, code: str, served: Served) -> None:
    with stream_of(served, path) as stream:
        error = error_in(stream.recv(10))
        assert (error["status"], error["code"]) == (status, code)
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4404


@pytest.mark.parametrize("path", ["/", "/v1/models", f"/v1/models/{SERIES}/sessions/a/steps/of"])
def test_no_other_path_is_a_stream(path: str, served: Served) -> None:
    with pytest.raises(InvalidStatus) as refused, stream_of(served, path):
        pass
    assert refused.value.response.status_code == 403


def test_a_message_too_large_closes_the_stream(served: Served, witness: MakeWitness) -> None:
    with stream_of(served, witness(SERIES).path) as stream:
        stream.send(" " * (SETTINGS.max_body_bytes + 1))
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\xfe\x01\x00mask" + b"x" * 9,  # 256 bytes announced, 9 sent
        b"\x01\x83mask" + b"abc",  # the first fragment of a message, and no more
        b"\xf1\x83mask" + b"abc",  # reserved bits
        b"\x81\x03abc",  # not masked
        b"\x81\x82\x00\x00\x00\x00\xff\xfe",  # text that is not UTF-8
    ],
    ids=["cut short", "a fragment", "reserved bits", "not masked", "not UTF-8"],
)
def test_a_stream_that_breaks_off_is_not_executed(frame: bytes, served: Served, witness: MakeWitness) -> None:
    with shaken(served, witness(SERIES).path) as connection:
        connection.sendall(frame)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass


def test_a_client_that_leaves_before_its_reply_harms_nobody(
    served: Served, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/v1/models/{SERIES}/sessions/left"
    many = {"inputs": [[10.0, 0.5]] * SETTINGS.max_steps}
    text = json.dumps({"step": 0, **many}).encode()
    frame = b"\x81\xfe" + len(text).to_bytes(2, "big") + b"\0\0\0\0" + text
    for _ in range(5):
        with shaken(served, path) as connection:
            connection.sendall(frame)
            # Closed at once and without a farewell
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    retried = client.post(f"{path}/steps", json={"step": 0, **many})
    assert retried.json()["next_step"] == SETTINGS.max_steps
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


def test_the_end_of_its_session_ends_the_stream_only_if_it_goes_on(
    served: Served, client: httpx.Client
) -> None:
    path = f"/v1/models/{SERIES}/sessions/ended"
    with stream_of(served, path) as stream:
        stream.send(json.dumps({"step": 0, **ONE}))
        assert json.loads(stream.recv(10))["next_step"] == 1
        client.delete(path).raise_for_status()
        stream.send(json.dumps({"step": 1, **ONE}))
        assert error_in(stream.recv(10))["code"] == "session_not_found"
        stream.send(json.dumps({"step": 0, **ONE}))
        assert json.loads(stream.recv(10))["next_step"] == 1
