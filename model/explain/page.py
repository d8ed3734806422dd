"""The page: one HTML file that needs nothing else. Imports matplotlib, by way of its pictures.

The words are in page.html; what stands in double braces there is filled in here.
"""

from __future__ import annotations

import html
import re
from importlib.resources import files

import torch

from model.explain.activations import GATES
from model.explain.drawing import style
from model.explain.gradients import DISTANCE, HIDDEN, INPUTS, LARGE, SEED, SEQUENCES
from model.explain.pictures import INPUTS_SHOWN, close_up, heat_maps, visible
from model.explain.plots import clipping, gradients, parts, saturation, time_constants
from model.explain.story import DIRECTIONS, PLACES, Story
from model.explain.units import Unit, shown_layers
from model.explain.words import plural, scientific, short, signed, summary

DISTANCES = (1, 10, 30, 100, 300)  # of the table of gradients
#: Units that a text is coloured by, and how many of them are there as they follow something; of a series,
#: units close up that do.
COLOURED, FOLLOWING, CLOSE_FOLLOWING = 6, 4, 2
SHADES = 8  # of a colour, from nothing to full

TEXT_TOLD = """The same input, each character in the colour of one cell's tanh c after it was read, as in
Karpathy et al. (2015): <span class="p8">&nbsp;+1&nbsp;</span><span class="p5">&nbsp;&nbsp;</span><span
class="p2">&nbsp;&nbsp;</span> 0 <span class="n2">&nbsp;&nbsp;</span><span class="n5">&nbsp;&nbsp;</span><span
class="n8">&nbsp;−1&nbsp;</span>. The first cells are those that follow a plain fact about the text best, by
correlation over the whole run; the last ones are the slowest of those above."""
SERIES_TOLD = """Close up, the same stretch: cells that follow something best, by the correlation of tanh c
with each input and with the phase of the season over the whole run (grey: what they follow, scaled to the
cell, turned over where r is negative); then the slowest of the units above, and the one whose h varies
most."""


def page(story: Story) -> str:
    """The whole HTML document; the same text for the same story."""
    with style():
        values = {**_facts(story), **_figures(story)}
    template = files("model.explain").joinpath("page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _facts(story: Story) -> dict[str, str]:
    bundle, on = story.bundle, story.subject
    data = f" --data {on.file}" if on.file else ""
    layers = shown_layers(len(story.tau))
    plain = {
        "name": bundle.name,
        "description": bundle.description,
        "version": bundle.version,
        "task": bundle.spec.architecture.task,
        "digest": bundle.digest,
        "short_digest": bundle.digest[:12],
        "told": on.told,
        "command": f"cellstate explain {bundle.name}{data}",
        "hidden": str(HIDDEN),
        "inputs": str(INPUTS),
        "sequences": str(SEQUENCES),
        "seed": str(SEED),
        "large": f"{LARGE:g}",
        "reach": str(DISTANCE),
        "places": str(PLACES),
        "directions": str(DIRECTIONS),
        "factor": scientific(story.classics.clip_factor),
        "distance": str(story.distance),
        "steps": f"{story.observation.steps:,}",
        "units": plural(len(story.units), "unit"),
        "layers_shown": "",
        "inputs_shown": "",
    }
    if len(layers) < len(story.tau):
        named = ", ".join(str(k + 1) for k in layers)
        plain["layers_shown"] = f" Of {len(story.tau)} layers these are shown: {named}."
    if not on.text and on.x.shape[1] > INPUTS_SHOWN:
        plain["inputs_shown"] = f" Of {on.x.shape[1]} inputs the first {INPUTS_SHOWN} are drawn."
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in summary(story))
    return {**{name: html.escape(value) for name, value in plain.items()}, "summary": said}


def _figures(story: Story) -> dict[str, str]:
    histogram, slower = time_constants(story)
    return {
        "gradients": gradients(story),
        "clipping": clipping(story),
        "parts": parts(story),
        "numbers": _numbers(story),
        "heat_maps": heat_maps(story),
        "close_told": TEXT_TOLD if story.subject.text else SERIES_TOLD,
        "close": _coloured(story) if story.subject.text else _close_ups(story),
        "histogram": histogram,
        "slower": slower,
        "saturation": "".join(_scrolling(saturation(story, gate)) for gate in GATES),
    }


def _numbers(story: Story) -> str:
    """G(k) as a table."""
    curves = {
        **story.classics.curves,
        f"{story.bundle.name}, before training": story.untrained.norms.median(1).values,
        f"{story.bundle.name}, trained": story.trained.norms.median(1).values,
    }
    head = "".join(f"<th>{k}</th>" for k in DISTANCES)
    rows = []
    for name, curve in curves.items():
        cells = (short(curve[k].item()) if k < len(curve) else "" for k in DISTANCES)
        rows.append(f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr><th>k</th>{head}</tr>{''.join(rows)}</table>"


def _close_ups(story: Story) -> str:
    """Those that follow something, then the slowest, then the one that varies most; each unit once."""
    chosen: dict[tuple[int, int], tuple[Unit, str, int | None]] = {}
    for follower in story.followers[:CLOSE_FOLLOWING]:
        unit, feature = follower.unit, story.subject.names.index(follower.feature)
        chosen[unit.place] = unit, f"{follower.feature}, r = {signed(follower.r)}", feature
    slowest = max(story.units, key=lambda u: story.tau[u.place].item())
    varied = max(story.units, key=lambda u: story.observation.output_std[u.place].item())
    chosen.setdefault(
        slowest.place, (slowest, f"slow, τ = {story.tau[slowest.place].item():.3g} steps", None)
    )
    chosen.setdefault(varied.place, (varied, "its h varies most", None))
    return "".join(_scrolling(close_up(story, *entry)) for entry in chosen.values())


def _coloured(story: Story) -> str:
    """The text, a block a unit, each character in the colour of tanh(c) after it was read."""
    chosen: dict[tuple[int, int], tuple[Unit, str]] = {}
    for follower in story.followers[:FOLLOWING]:
        caption = f"follows {follower.feature} best, r = {signed(follower.r)}"
        chosen[follower.unit.place] = follower.unit, caption
    for unit in sorted(story.units, key=lambda u: -story.tau[u.place].item()):
        if len(chosen) == COLOURED:
            break
        chosen.setdefault(unit.place, (unit, f"slow, τ = {story.tau[unit.place].item():.3g} steps"))
    text = story.subject.text[story.subject.kept.start : story.subject.kept.stop]
    blocks = []
    for unit, caption in chosen.values():
        shaded = _shaded(text, story.observation.kept[4, unit.layer, :, unit.index].tanh())
        told = f"<b>{unit.name}</b>: {html.escape(caption)}"
        blocks.append(f'<figure><div class="text">{shaded}</div><figcaption>{told}</figcaption></figure>')
    return "".join(blocks)


def _shaded(text: str, cell: torch.Tensor) -> str:
    """Spans of equal shade. cell [len(text)], -1 to 1."""
    shades = (cell * SHADES).round().int().tolist()
    out: list[str] = []
    start = 0
    for k in range(1, len(text) + 1):
        if k < len(text) and shades[k] == shades[start]:
            continue
        run = html.escape("".join("⏎\n" if c == "\n" else visible(c) for c in text[start:k]))
        shade, start = shades[start], k
        out.append(f'<span class="{"p" if shade > 0 else "n"}{abs(shade)}">{run}</span>' if shade else run)
    return "".join(out)


def _scrolling(picture: str) -> str:
    return f'<figure><div class="scroll">{picture}</div></figure>'
