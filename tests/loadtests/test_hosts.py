"""Load is for this machine alone, and within bounds."""

from __future__ import annotations

import socket

import pytest

from loadtests import hosts, limits
from loadtests.command import main


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/", "http://localhost:1", "https://127.8.9.1"])
def test_this_machine_is_taken(url: str) -> None:
    assert hosts.check(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8000",  # for documentation: nobody's
        "http://198.51.100.7",
        "http://[2001:db8::1]:8000",
        "http://8.8.8.8:80",
        "http://user@192.0.2.1",
        "http://127.0.0.1@192.0.2.1",
        "http://0x08080808",
    ],
)
def test_another_machine_is_refused_before_anything_is_sent(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(hosts.Foreign, match="not on this machine"):
        hosts.check(url)
    assert main(["steps", "--url", url]) == 2
    assert "not on this machine" in capsys.readouterr().err


def test_a_name_with_one_foreign_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
            for address in ("127.0.0.1", "192.0.2.9")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(hosts.Foreign, match=r"192\.0\.2\.9"):
        hosts.check("http://half.example")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://x:99999", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(hosts.Foreign):
        hosts.check(url)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["steps", "--rate", "1e6"], "--rate 1e+06: 0.1 to 20,000"),
        (["steps", "--seconds", "100000"], "0.5 to 7,200"),
        (["steps", "--seconds", "nan"], "--seconds nan"),
        (["steps", "--sessions", "5000000"], "1 to 1,000,000"),
        (["steps", "--senders", "0"], "1 to 16"),
        (["steps", "--rate", "20000", "--seconds", "7200"], "20,000,000 at most"),
        (["burst", "--rate", "5000", "--seconds", "7200"], "20,000,000 at most"),
        (["bulk", "--sessions", "10"], "at least --bulk"),
        (["all", "--soak-minutes", "500"], "7,200"),
        (["steps", "--set", "storre=memory:"], "NAME a setting"),
        (["steps", "--set", "store"], "NAME=VALUE"),
        (["steps", "--url", "http://127.0.0.1:1", "--local"], "there is a --url"),
        (["steps", "--arrivals", "/nonexistent"], "is no trace"),
        (["steps", "--url", "http://127.0.0.1:1"], "refused"),
        (["report", "/nonexistent.json"], "No such file"),
        (["report", "pyproject.toml"], "pyproject.toml"),
    ],
)
def test_more_than_there_may_be_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_every_cap_lets_its_ends_through() -> None:
    for name, cap in limits.CAPS.items():
        limits.check(name, cap.least)
        limits.check(name, cap.most)
        with pytest.raises(limits.TooMuch):
            limits.check(name, cap.most * 1.01)
