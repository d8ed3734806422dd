"""The client and a service with keys."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from service import keys
from service.client import AsyncClient, Client, Refused, SessionNotFound, Stream
from tests.api.keyed import Keyed, keyed, make_key
from tests.api.serving import SERIES, TEXT, save_bundles

ROW = [10.0, 0.5]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    place = tmp_path_factory.mktemp("client-keys")
    with keyed(save_bundles(place / "bundles"), place) as service:
        yield service


def client_of(service: Keyed, who: str) -> Client:
    return Client(service.served.url, key=service.keys.get(who, who or None), trust_env=False, timeout_s=20)


def test_a_client_with_a_key_has_its_own_sessions(service: Keyed) -> None:
    with client_of(service, "anna") as anna, client_of(service, "bert") as bert:
        session = anna.model(SERIES).session("mine")
        assert session.step([ROW]).next_step == 1
        with session.stream() as stream:
            assert stream.step([ROW]).next_step == 2
        with pytest.raises(SessionNotFound):
            bert.model(SERIES).session("mine", next_step=None)
        session.close()


async def test_so_has_the_asynchronous_one(service: Keyed) -> None:
    key = service.keys["anna"]
    async with AsyncClient(service.served.url, key=key, trust_env=False) as anna:
        session = await (anna.model(SERIES)).session("mine-too")
        assert (await session.step([ROW])).next_step == 1
        async with session.stream() as stream:
            assert (await stream.step([ROW])).next_step == 2
        await session.close()


@pytest.mark.parametrize(
    ("who", "model", "status", "code"),
    [
        ("", SERIES, 401, "unauthorized"),
        ("wrong", SERIES, 401, "unauthorized"),
        ("waves-only", TEXT, 403, "forbidden"),
    ],
)
def test_a_key_that_is_not_good_is_told_at_once(
    service: Keyed, who: str, model: str, status: int, code: str
) -> None:
    with client_of(service, who) as client:
        session = client.model(model).session("none")
        for call in (lambda: client.model(model).open(), lambda: session.step([ROW], text=None)):
            with pytest.raises(Refused) as refused:
                call()
            assert (refused.value.status, refused.value.code, refused.value.attempts) == (status, code, 1)
        with session.stream() as stream, pytest.raises(Refused) as refused:
            stream.step([ROW])
        assert (refused.value.status, refused.value.code) == (status, code)


def steps_on(stream: Stream) -> None:
    while True:
        stream.step([ROW])


def test_a_stream_whose_key_is_taken_away_is_told(service: Keyed) -> None:
    key = make_key(service.path, "gone")
    with Client(service.served.url, key=key, trust_env=False, timeout_s=20) as client:
        session = client.model(SERIES).session("going")
        while True:  # until the service has read the file
            try:
                session.step([ROW])
                break
            except Refused:
                continue
        with session.stream() as stream:
            stream.step([ROW])
            keys.remove(service.path, "gone")
            with pytest.raises(Refused):
                steps_on(stream)


def test_a_client_keeps_its_key_out_of_what_is_shown(
    service: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with client_of(service, "anna") as client:
        session = client.model(SERIES).session("quiet")
        with session.stream() as stream:
            stream.step([ROW])
            assert service.keys["anna"] not in repr((client, client._setup, session, stream))
        session.close()
    assert "Bearer ***" in caplog.text, "the handshake is logged, so this can fail"
    assert service.keys["anna"] not in caplog.text
