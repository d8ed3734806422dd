"""HTML, written so that text can't become markup: what is not `Html` is escaped where it enters a tag."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Html(str):
    """Markup as it stands."""

    __slots__ = ()


def text(value: object) -> Html:
    """Anything as text; markup stays markup."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    return Html("".join(text(part) for part in parts))


def tag(name: str, *children: object, **attributes: str) -> Html:
    """An element. Attributes in Python's spelling: class_, aria_label."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def code(value: object) -> Html:
    return tag("code", value)


def prose(value: str) -> Html:
    """Plain text with `code` in it."""
    return join(code(part) if n % 2 else part for n, part in enumerate(value.split("`")))


def table(head: Iterable[object], rows: Iterable[Iterable[object]], class_: str = "") -> Html:
    """A table that scrolls by itself where it is too wide."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_=f"wide {class_}".strip())


STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5a6475; --line: #dfe3ea; --paper: #ffffff;
  --panel: #f5f7fa; --link: #1f5fbf; --get: #1d7a46; --post: #1f5fbf; --put: #96600a; --delete: #b3302c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ee; --soft: #9aa5b5; --line: #303845;
  --paper: #14181f; --panel: #1c222c; --link: #7db1ff; --get: #5cc98d; --post: #7db1ff; --put: #e3b25c;
  --delete: #f08a84; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
.page { display: grid; grid-template-columns: 15rem minmax(0, 52rem); gap: 3rem; max-width: 76rem;
  margin: 0 auto; padding: 0 1.5rem 4rem; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 2.2rem 0 2rem;
  font-size: .88rem; }
nav b { display: block; margin: 1.1rem 0 .2rem; }
nav a { display: block; padding: .1rem 0; color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--link); }
main { padding-top: 1.6rem; min-width: 0; }
h1 { font-size: 2.1rem; margin: .2rem 0 .4rem; letter-spacing: -.02em; }
h1 small { font-size: .9rem; font-weight: 400; color: var(--soft); letter-spacing: 0; margin-left: .6rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2.2rem 0 .3rem; }
h4 { font-size: .82rem; margin: 1.1rem 0 .3rem; color: var(--soft); font-weight: 600; }
p { margin: .5rem 0; }
a { color: var(--link); }
.lead { font-size: 1.1rem; color: var(--soft); }
code, pre { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", Menlo, monospace; font-size: .86em; }
code { background: var(--panel); border-radius: 4px; padding: .08em .3em; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; line-height: 1.45; }
pre code { background: none; padding: 0; font-size: 1em; overflow-wrap: normal; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .82rem; }
td:first-child { white-space: nowrap; }
.figures td + td, .figures th + th { text-align: right; font-variant-numeric: tabular-nums; }
.route { display: flex; gap: .7rem; align-items: baseline; flex-wrap: wrap; margin: .2rem 0 .5rem; }
.method { font: 700 .78rem/1 ui-monospace, monospace; letter-spacing: .03em; }
.get { color: var(--get); } .post { color: var(--post); } .put { color: var(--put); }
.delete { color: var(--delete); }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--link); font-size: .9rem; }
.pair { white-space: nowrap; }
.soft { color: var(--soft); } .status { font-variant-numeric: tabular-nums; font-weight: 600; }
@media (max-width: 60rem) { .page { display: block; padding: 0 1rem 3rem; }
  nav { position: static; max-height: none; columns: 2; padding-bottom: 0; }
  nav div { break-inside: avoid; } }
"""
