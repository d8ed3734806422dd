"""Figures as SVG that a page can hold: text in the page's own colour, light or dark. Imports matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from model.explain.words import SUPERSCRIPT

#: Stands for the page's text colour while matplotlib draws; no other colour may be this one.
INK, _INK_CSS = "#010203", "currentColor"
FAINT = "#8a8f98"
#: Of layers, in order; mid-tones that can be told from white and from black.
LAYER_COLOURS = ("#3f87d2", "#e07b1a", "#2f9e6b", "#a06cc8")
RED, ORANGE, BLUE, GREEN = "#d64550", "#e08a1e", "#3f87d2", "#2f9e6b"

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a signal's name, or a text, may hold a dollar sign
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """All drawing happens in here: the same picture whatever the reader's own matplotlib settings are."""
    with mpl.rc_context(), warnings.catch_warnings():
        # The browser has glyphs for characters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def figure(width: float, height: float) -> Figure:
    """Sizes in inches."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)  # draws to memory: no display, no global state
    return made


def panel(width: float = 4.7, height: float = 3.4) -> tuple[Figure, Axes]:
    made = figure(width, height)
    return made, made.add_subplot()


def legend(made: Figure, columns: int) -> None:
    """Below the axes, where it hides nothing."""
    made.legend(loc="outside lower center", ncols=columns, handlelength=1.6, columnspacing=1.2)


def logarithmic(axis: Any, most: int = 7) -> None:
    """Powers of ten as labels, at most about `most` of them, without mathtext."""
    axis.set_major_locator(LogLocator(numticks=most))
    axis.set_minor_locator(LogLocator(numticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def power(value: float) -> str:
    """0.01, 1, 10, 100; beyond them 10⁻³, 10⁴."""
    if 0.009 < value < 1001:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    exponent = str(int(exponent)).translate(SUPERSCRIPT)
    return f"10{exponent}" if mantissa == "1" else f"{mantissa}·10{exponent}"


def svg(made: Figure, label: str, name: str) -> str:
    """The figure as an <svg> element to be put into a page; the same bytes for the same figure.

    label: what a screen reader says. name: tells the ids of this figure from those of others on the page.
    """
    out = io.StringIO()
    mpl.rcParams["svg.hashsalt"] = name
    made.savefig(out, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, _INK_CSS)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Groups are numbered from 1 in each figure and are referred to by nobody.
    text = re.sub(r'<g id="[A-Za-z_.]*\d*">', "<g>", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
