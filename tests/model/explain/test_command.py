"""`cellstate explain` as a user types it: from a bundle to a page."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from model import bundle as bundles
from model.bundle import Bundle
from model.commands import main
from model.config import Architecture, ModelSpec
from model.explain import gradients, story, subject
from model.explain.drawing import style
from model.explain.plots import saturation
from model.explain.words import summary
from tests.model.making import make_bundle, make_spec, make_weights

VOID = {"meta", "br", "hr", "link", "img", "input"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with tiny bundles in it; runs are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subject, "STEPS", 256)
    monkeypatch.setattr(subject, "WARM", 32)
    monkeypatch.setattr(story, "DISTANCE", 40)
    monkeypatch.setattr(story, "classics", lambda: gradients.classics(60))
    bundles.save(make_bundle(make_spec(inputs=2, hidden=6, layers=6, residual=True)), tmp_path / "series")
    return tmp_path


class Tags(HTMLParser):
    """Every tag is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> None:
    """A whole page that loads nothing from anywhere."""
    assert Tags(page).open == []
    assert "{{" not in page
    assert not re.search(
        r"\b(nan|inf|None)\b", re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", page, flags=re.S)
    )
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert "<script" not in page
    assert "@import" not in page


def test_a_series_becomes_a_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "waves.csv").write_text("s0,s1\n" + "".join(f"{k % 24},{k % 7}\n" for k in range(300)))
    assert main(["explain", "series", "--data", "waves.csv"]) == 0
    assert "saved explain.html" in capsys.readouterr().out
    page = (here / "explain.html").read_text()
    check(page)
    assert page.count("<svg ") == 3 + 1 + 2 + 3 + len(re.findall('aria-label="Unit', page))
    for said in (
        "tiny has 6 LSTM layers of 6 units",
        "waves.csv, rows",
        "Of 6 layers these are shown: 1, 3, 4, 6",
    ):
        assert said in page
    assert str(here) not in page


def test_the_same_bundle_gives_the_same_page(here: Path) -> None:
    """Everything that is computed, and one of the pictures: they all go the same way."""
    first, again = (story.tell(bundles.load(here / "series"), None) for _ in range(2))
    assert torch.equal(first.observation.kept, again.observation.kept)
    assert torch.equal(first.trained.squared, again.trained.squared)
    assert summary(first) == summary(again)
    with style():
        assert saturation(first, "f") == saturation(again, "f")


def test_a_text_of_any_characters_becomes_a_page(here: Path) -> None:
    vocabulary = "a$<&\n漢\x07\u2028"
    spec = ModelSpec(Architecture("text", 3, 1, 1, len(vocabulary)), vocabulary=vocabulary)
    bundles.save(Bundle("odd", "1", spec, make_weights(spec), description="<b>&"), here / "odd")
    assert main(["explain", "odd", "--out", "odd.html"]) == 0
    page = (here / "odd.html").read_text()
    check(page)
    assert "1 LSTM layer of 1 unit and" in page
    assert "&lt;b&gt;&amp;" in page
    assert "漢" in page
    assert "\x07" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere/manifest.json: No such file or directory"),
        ("series --data gone.csv", "gone.csv: No such file or directory"),
        ("series --out gone/page.html", "gone/page.html: not a file in a directory that exists"),
        ("series --out series", "series: not a file in a directory that exists"),
    ],
)
def test_what_cant_be_explained_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert main(["explain", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"cellstate: {message}\n"


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["explain", "series"]) == 2
    assert capsys.readouterr().err == "cellstate: explain needs matplotlib: pip install 'cellstate[train]'\n"
