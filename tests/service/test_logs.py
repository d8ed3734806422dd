"""One event is one line, it names its request, and never holds what the client sent."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from service.asked import ASKED, Asked
from service.log_sink import shown_here
from service.logs import JsonLines, Repeated, TextLines, ToSocket, configure, shown_as
from service.sessions.lease import Lease
from service.sessions.stores.protocol import StoreAway
from service.settings import Settings
from tests.api.serving import SERIES, TEXT, Served, save_bundles, serving
from tests.service.listening import listening

MARKER, KEY = 31337.5, "sekrit-of-the-client"
ROW = [MARKER, 0.5]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bundles = save_bundles(tmp_path_factory.mktemp("bundles"))
    with serving(bundles, access_log="on", slow_ms=0.001) as where:
        yield where


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url + "/v1/models", timeout=20, trust_env=False) as client:
        yield client


def text_of(record_of: str, **extra: Any) -> str:
    """A line of text about an exception of those words."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextLines({"model": "ett"}))
    log = logging.Logger("cellstate.test")
    log.addHandler(handler)
    try:
        raise RuntimeError(record_of)
    except RuntimeError:
        log.exception("it failed:\n%s", record_of, extra=extra)
    return out.getvalue()


def test_a_traceback_is_on_one_line_of_text_with_its_fields() -> None:
    line = text_of("two\nlines\x1b[2J", event="failure", session="s 1")
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert r"it failed:\ntwo\nlines\x1b[2J" in line
    assert 'session="s 1"' in line
    assert "model=ett" in line
    assert "RuntimeError: two" in line


def test_auto_is_text_on_a_terminal_alone() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert [shown_as("auto", Terminal()), shown_as("auto", io.StringIO())] == ["text", "json"]
    assert [shown_as("json", Terminal()), shown_as("text", io.StringIO())] == ["json", "text"]


def test_nothing_that_a_client_sends_is_in_the_log(client: httpx.Client, served: Served) -> None:
    headers = {"authorization": f"Bearer {KEY}", "cookie": KEY}
    series, text = f"/{SERIES}/sessions/quiet", f"/{TEXT}/sessions/quiet"
    good: list[tuple[str, Any]] = [
        (f"{series}/steps", {"step": 0, "inputs": [ROW]}),
        (f"/{SERIES}/predict", {"inputs": [ROW, ROW], "horizon": 2}),
        (f"/{SERIES}/steps", {"requests": [{"session_id": "q2", "inputs": [ROW], "step": 0}]}),
    ]
    bad: list[tuple[str, Any]] = [
        (f"{series}/steps", {"step": 0, "inputs": [[9.0, MARKER]]}),
        (f"{series}/steps", {"step": 9, "inputs": [ROW]}),
        (f"{series}/steps", {"inputs": [[MARKER]]}),
        (f"{series}/steps", {"inputs": [["31337.5"]]}),
        (f"{series}/steps", {"31337.5": 1, "inputs": [ROW]}),
        (f"{text}/steps", {"step": 0, "text": "31337.5"}),
        (f"/{SERIES}/steps", {"requests": [{"session_id": "q3", "inputs": [[MARKER]]}, "31337.5"]}),
        (f"/{SERIES}/predict", {"inputs": [ROW], "horizon": 31337}),
        ("/31337.5/predict", {"inputs": [ROW]}),
    ]
    with listening(logging.DEBUG) as heard:
        for path, body in good:
            assert client.post(path, json=body, headers=headers).status_code == 200
        for path, body in bad:
            client.post(path, json=body, headers=headers)
        client.post(f"{series}/steps", content=b'{"inputs": [[31337.5', headers=headers)
        client.put(f"{series}/state", content=b"31337.5" * 9, headers=headers)
        with connect(f"{served.ws}/v1/models{series}/stream", additional_headers=headers) as stream:
            for message in ({"inputs": [ROW]}, {"inputs": [[MARKER]]}, "31337.5"):
                stream.send(json.dumps(message))
                stream.recv()
        heard.until("access", len(good) + len(bad) + 2 + 3)
    assert len(heard.of("refused")) >= len(bad)
    assert len(heard.of("slow")) >= 3
    assert "31337" not in heard.text
    assert KEY not in heard.text


def test_a_request_has_the_id_that_its_client_gave(client: httpx.Client) -> None:
    with listening(logging.DEBUG) as heard:
        answer = client.post(f"/{SERIES}/predict", json={"inputs": []}, headers={"x-request-id": "mine-1"})
        fine = client.get(f"/{SERIES}", headers={"x-request-id": "mine-2"})
        heard.until("access", 2)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-1"
    assert fine.headers["x-request-id"] == "mine-2"
    assert {line["request_id"] for line in heard.of("access")} == {"mine-1", "mine-2"}
    assert {line["request_id"] for line in heard.of("refused")} == {"mine-1"}


@pytest.mark.parametrize("given", ["a b", "x" * 129, 'a"b', "a{b}", ""])
def test_an_id_that_is_none_is_replaced(client: httpx.Client, given: str) -> None:
    answer = client.get("/nothing-of-that-name", headers={"x-request-id": given})
    made = answer.headers["x-request-id"]
    assert made == answer.json()["request_id"]
    assert len(made) == 16
    assert int(made, 16) >= 0


def test_each_item_and_each_message_that_is_refused_says_its_id(client: httpx.Client, served: Served) -> None:
    body = {
        "requests": [{"session_id": "i1", "inputs": [[1]]}, {"session_id": "i2", "step": 7, "inputs": [ROW]}]
    }
    answer = client.post(f"/{SERIES}/steps", json=body, headers={"x-request-id": "bulk"})
    assert [r["error"]["request_id"] for r in answer.json()["results"]] == ["bulk", "bulk"]
    path = f"{served.ws}/v1/models/{SERIES}/sessions/i3/stream"
    with connect(path, additional_headers={"x-request-id": "ws"}) as stream:
        assert stream.response is not None
        assert stream.response.headers["x-request-id"] == "ws"
        for number in (1, 2):
            stream.send('{"inputs": [[1]]}')
            assert json.loads(stream.recv())["error"]["request_id"] == f"ws.{number}"


def test_a_bug_of_ours_is_one_line_and_its_client_knows_which(
    client: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = served.application.api.site.endpoint(SERIES)

    def broken(*_: object) -> dict[str, Any]:
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr(endpoint, "facts", broken)
    with listening() as heard:
        answer = client.get(f"/{SERIES}")
    assert answer.status_code == 503
    (line,) = heard.of("failure")
    assert line["request_id"] == answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "in broken" in line["exception"]
    assert (line["level"], line["model"]) == ("error", SERIES)


def test_a_request_that_is_passed_on_keeps_its_id(tmp_path: Path) -> None:
    bundles, store = save_bundles(tmp_path / "bundles"), f"sqlite:{tmp_path / 'sessions.db'}"
    with (
        serving(bundles, store=store, access_log="on") as one,
        serving(bundles, store=store) as other,
        httpx.Client(trust_env=False, timeout=20) as client,
    ):
        path = f"/v1/models/{SERIES}"
        step = {"session_id": "p", "step": 0, "inputs": [[10.0, 0.5]]}
        client.post(f"{other.url}{path}/steps", json={"requests": [step]}).raise_for_status()
        with listening(logging.DEBUG) as heard:
            asked = {"requests": [{**step, "step": 5}]}
            answer = client.post(f"{one.url}{path}/steps", json=asked, headers={"x-request-id": "on"})
            heard.until("access", 1)
        assert answer.json()["results"][0]["error"]["code"] == "step_conflict"
        assert answer.json()["results"][0]["error"]["request_id"] == "on"
        peers = one.application.api.site.endpoint(SERIES).peers
        assert peers is not None
        assert peers.passed_on == 1
        # Of both: the access log of one, the other's refusal
        assert [line["request_id"] for line in heard.of("access")] == ["on"]
        assert [line["request_id"] for line in heard.of("refused")] == ["on"]


async def test_what_repeats_is_counted_and_not_told_each_time() -> None:
    with listening() as heard:
        repeated = Repeated(logging.getLogger("cellstate.test"), period_s=0.05)
        ASKED.set(Asked([(b"x-request-id", b"first")]))
        for number in range(1000):
            key = "full" if number % 2 else "slow"
            repeated.tell(key, logging.WARNING, "refused", event=key, session=str(number))
        await asyncio.sleep(0.2)
        repeated.tell("full", logging.WARNING, "refused", event="full", session="later")
    lines = heard.of("full")
    assert [line.get("more") for line in lines] == [None, 499, None]
    assert [line.get("session") for line in lines] == ["1", None, "later"]
    assert [line.get("request_id") for line in lines] == ["first", None, "first"]
    assert [line.get("more") for line in heard.of("slow")] == [None, 499]


async def test_a_store_that_is_away_is_told_once_and_that_it_is_back() -> None:
    class Away:
        lease_s, renewals = 0.2, 0

        async def join(self, address: str) -> None: ...

        async def leave(self) -> None: ...

        async def renew(self) -> None:
            self.renewals += 1
            if self.renewals < 9:
                raise StoreAway("no route")

    store = Away()
    with listening() as heard:
        lease = Lease(store, lambda: None)  # type: ignore[arg-type]
        await lease.take("http://here")
        async with asyncio.timeout(10):
            while not heard.of("store_back"):  # noqa: ASYNC110  a log has no event to wait for
                await asyncio.sleep(0.01)
        await lease.give_up()
    assert store.renewals >= 9
    assert len(heard.of("store_away")) == len(heard.of("store_back")) == 1
    assert heard.of("store_back")[0]["seconds"] > 0


def test_lines_of_a_replica_come_out_where_the_service_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file of its own: what comes while pytest's capture is read and emptied would be lost
    shown = tmp_path / "stderr"
    with shown.open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        settings = shown_here(Settings(log_format="auto"), tmp_path)
    assert settings.log_format == "json"
    sender = ToSocket(settings.log_to)
    sender.setFormatter(JsonLines({"replica": "r1"}))
    log = logging.Logger("cellstate.replica")
    log.addHandler(sender)
    long = "x" * 100_000
    log.warning("one\nevent", extra={"event": "a"})
    log.warning(long, extra={"event": "b"})
    sender.close()  # from here on: on its own stderr
    deadline = time.monotonic() + 20
    while (text := shown.read_text()).count("\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["event"], line["replica"]) for line in lines] == [("a", "r1"), ("b", "r1")]
    assert lines[1]["message"] == long


def test_without_anybody_at_the_socket_lines_are_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, log = logging.getLogger(), logging.getLogger("cellstate")
    before = root.level, log.level, list(root.handlers)
    try:
        configure("info", "json", str(tmp_path / "nobody"), model="ett", replica="")
        log.info("here", extra={"event": "here"})
        configure("info", "json", model="ett")
        log.info("again", extra={"event": "again"})
    finally:
        logging.captureWarnings(False)
        for handler in [h for h in root.handlers if h not in before[2]]:
            root.removeHandler(handler)
        root.setLevel(before[0])
        log.setLevel(before[1])
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["model"], "replica" in line) for line in lines] == [
        ("here", "ett", False),
        ("again", "ett", False),
    ]


def test_ready_and_stop_are_told(tmp_path: Path) -> None:
    with listening() as heard, serving(save_bundles(tmp_path)):
        pass
    # On a busy machine a line may tell of a slow request, of an earlier test too
    events = [line["event"] for line in heard.lines if line["event"] != "slow"]
    assert events == ["ready", "drain", "stopped"]
    assert heard.of("ready")[0]["versions"] == ["letters 1", "narrow 1", "waves 1"]
