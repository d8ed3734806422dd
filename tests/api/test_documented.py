"""Every command and program of docs/api.md and docs/client.md does what the page says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.api.documented import CLIENT_PAGE, PAGE, errors_table, rewritten
from tests.api.serving import save_bundles, serving

#: What differs from run to run.
OF_THE_MOMENT = re.compile(
    r'"(opened_at|expires_in_s|session_id)":("s-[^"]*"|"[-0-9T:.Z]*"|[0-9.]+)|"request_id": ?"[0-9a-f.]+"'
)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@pytest.mark.parametrize("path", [PAGE, CLIENT_PAGE], ids=lambda path: path.name)
def test_the_page_is_what_running_it_gives(path: Path, tmp_path: Path) -> None:
    page = path.read_text()
    with serving(save_bundles(tmp_path / "bundles")) as where:
        again = rewritten(page, where.url, tmp_path)
    told, found = (OF_THE_MOMENT.sub("", text) for text in (page, again))
    assert NUMBER.sub("0.0", told) == NUMBER.sub("0.0", found)
    pairs = zip(NUMBER.findall(told), NUMBER.findall(found), strict=True)
    assert [p for p in pairs if not math.isclose(float(p[0]), float(p[1]), rel_tol=1e-4, abs_tol=1e-6)] == []


def test_the_page_has_the_table_of_errors() -> None:
    assert errors_table() in PAGE.read_text()
