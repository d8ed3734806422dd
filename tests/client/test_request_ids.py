"""A call, a stream and all of their attempts are known to the service by one id."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from service.client import AsyncClient, Client, SessionNotFound, StepConflict
from tests.api.serving import SERIES, Served, save_bundles, serving
from tests.service.listening import listening

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(save_bundles(tmp_path_factory.mktemp("bundles")), access_log="on") as where:
        yield where


def test_an_error_says_by_which_id_the_log_knows_it(served: Served) -> None:
    with listening(logging.DEBUG) as heard, Client(served.url, trust_env=False) as client:
        session = client.model(SERIES).session("nobody", next_step=4)
        with pytest.raises(SessionNotFound) as raised:
            session.step([[10.0, 0.5]])
        (line,) = heard.until("refused", 1)
    assert len(raised.value.request_id) == 16
    assert line["request_id"] == raised.value.request_id


def test_every_call_has_an_id_of_its_own_and_all_attempts_have_that(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = served.application.api.site.endpoint(SERIES)
    facts, failures = endpoint.facts, iter([True, True, False, False])

    def flaky(namespace: str = "") -> dict[str, object]:
        if next(failures):
            raise RuntimeError("a bug that passes")
        return facts(namespace)

    monkeypatch.setattr(endpoint, "facts", flaky)
    with listening() as heard, Client(served.url, trust_env=False) as client:
        client.model(SERIES).facts()
        client.model(SERIES).facts()
        ids = [line["request_id"] for line in heard.until("access", 4)]
    assert ids[0] == ids[1] == ids[2] != ids[3]


async def test_a_stream_has_one_id_and_each_message_a_number(served: Served) -> None:
    with listening() as heard:
        async with AsyncClient(served.url, trust_env=False) as client:
            session = await client.model(SERIES).open()
            async with session.stream() as stream:
                for _ in range(2):
                    await stream.step([[10.0, 0.5]])
                session._calls.next_step = 9
                with pytest.raises(StepConflict) as raised:
                    await stream.step([[10.0, 0.5]])
        lines = [line for line in heard.until("access", 4) if line["method"] == "MESSAGE"]
    stem = lines[0]["request_id"].removesuffix(".1")
    assert [line["request_id"] for line in lines] == [f"{stem}.{n}" for n in (1, 2, 3)]
    assert raised.value.request_id == f"{stem}.3"


def test_a_traceparent_is_sent_if_there_is_one(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes | None] = []
    watch = served.application.api.site.watch
    begin = watch.begin

    def look(headers: list[tuple[bytes, bytes]]) -> object:
        seen.append(dict(headers).get(b"traceparent"))
        return begin(headers)

    monkeypatch.setattr(type(watch), "begin", lambda self, headers: look(headers))
    given = iter([TRACEPARENT, None])
    with Client(served.url, trust_env=False, traceparent=lambda: next(given)) as client:
        client.model(SERIES).facts()
        client.model(SERIES).facts()
    assert seen == [TRACEPARENT.encode(), None]
