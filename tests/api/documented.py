"""docs/api.md and docs/client.md, run: their console and Python blocks, and the table of errors. As a program
it writes them anew.

In a console block a line that begins with $ is a command, with the lines that its backslashes continue; what
follows is its output. A Python block is followed by a text block with its output.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from service.api.advice import ADVICE
from service.api.problems import TABLE
from tests.api.serving import save_bundles, serving

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, CLIENT_PAGE = DOCS / "api.md", DOCS / "client.md"
WRITTEN = "http://localhost:8000"
BLOCK = re.compile(r"```(console|python)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
ERRORS = re.compile(r"(?<=<!-- errors -->\n).*?(?=<!-- /errors -->)", re.DOTALL)


def rewritten(page: str, url: str, directory: Path) -> str:
    """The page as it is if everything in it is run on the service at `url`."""
    defined: list[str] = []

    def again(block: re.Match[str]) -> str:
        kind, body, _ = block.groups()
        if kind == "python":
            output = _run([sys.executable, "-c", body.replace("localhost:8000", url[7:])], directory)
            return f"```python\n{body}```\n\n```text\n{output}```\n"
        text = ""
        for command in _commands(body):
            script = "\n".join((*defined, command)).replace(WRITTEN, url)
            output = _run(["bash", "-c", script], directory).replace(url, WRITTEN)
            if re.match(r"\w+=", command):
                defined.append(command)
            text += f"$ {command}\n{output}" + ("" if output.endswith("\n") or not output else "\n")
        return f"```console\n{text}```\n"

    return ERRORS.sub(lambda _: errors_table(), BLOCK.sub(again, page))


def _commands(body: str) -> list[str]:
    commands: list[str] = []
    going_on = False
    for line in body.splitlines():
        if going_on:
            commands[-1] += f"\n{line}"
        elif line.startswith("$ "):
            commands.append(line[2:])
        going_on = line.endswith("\\") and (going_on or line.startswith("$ "))
    return commands


def _run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def errors_table() -> str:
    """The table of errors, from the code."""
    rows = ["| code | status | a stream | what happened | what to do |", "| --- | --- | --- | --- | --- |"]
    for kind in sorted({k.code: k for k in TABLE.values()}.values(), key=lambda k: (k.status, k.code)):
        happened, do = ADVICE[kind.code]
        close = "stays open" if kind.close is None else f"closes, {kind.close}"
        rows.append(f"| `{kind.code}` | {kind.status} | {close} | {happened} | {do} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    for page in (PAGE, CLIENT_PAGE):
        with tempfile.TemporaryDirectory() as made, serving(save_bundles(Path(made) / "bundles")) as where:
            page.write_text(rewritten(page.read_text(), where.url, Path(made)))
