"""The README and the pages in docs/ are held against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.settings import settings_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_settings_is_the_settings() -> None:
    assert settings_table() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = set(
        re.findall(r"`((?:service|model|deploy|loadtests|tests|docs)/[\w/.]+\.\w+)`", page.read_text())
    )
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing
