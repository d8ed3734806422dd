"""The pictures of single units over the input: heat maps and close-ups. Imports matplotlib."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.explain.activations import GATES, QUANTITIES
from model.explain.drawing import BLUE, FAINT, GREEN, INK, ORANGE, RED, figure, svg
from model.explain.story import Story
from model.explain.units import Unit

#: Inputs of a series that are drawn, the first of them.
INPUTS_SHOWN = 10
TITLES = {
    "i": "i, input gate",
    "f": "f, forget gate",
    "g": "g, candidate",
    "o": "o, output gate",
    "c": "c, cell: a share of the largest in its row",
    "h": "h, output",
}


def heat_maps(story: Story) -> str:
    """QUANTITIES of the chosen units, a row each, below the input on the same axis."""
    on, shown, units = story.subject, story.subject.shown, story.units
    text = bool(on.text)
    inputs = 0 if text else min(INPUTS_SHOWN, on.x.shape[1])
    above = 0.35 if text else 0.5 + 0.22 * inputs
    each = 0.35 + 0.105 * len(units)
    made = figure(10.2, above + 6 * each + 0.5)
    grid = made.add_gridspec(7, 2, height_ratios=[above, *[each] * 6], width_ratios=[60, 1])
    first: Any = made.add_subplot(grid[0, 0])
    _draw_input(first, story, inputs)
    values = torch.stack([story.observation.kept[:, u.layer, :shown, u.index] for u in units], 1)  # [6, U, W]
    for n, quantity in enumerate(QUANTITIES):
        axes = made.add_subplot(grid[n + 1, 0])
        image = _heat(axes, quantity, values[n])
        axes.set_yticks(range(len(units)), [u.name for u in units], fontsize=6)
        axes.tick_params(length=0)
        axes.set_title(TITLES[quantity], loc="left", fontsize=9, pad=3)
        last = quantity == QUANTITIES[-1]
        _time_axis(axes, story, labelled=last or text)
        for row in range(1, len(units)):
            if units[row].layer != units[row - 1].layer:
                axes.axhline(row - 0.5, color=INK, linewidth=1)
        bar = made.colorbar(image, cax=made.add_subplot(grid[n + 1, 1]))
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7, length=2)
    return svg(made, "Gates, cell and output of chosen units over the input", "heat maps")


def _heat(axes: Any, quantity: str, values: Tensor) -> Any:
    """values [U, W]."""
    if quantity in GATES:
        limits, colours = (0.0, 1.0), "viridis"
    else:
        limits, colours = (-1.0, 1.0), "RdBu_r"
        if quantity == "c":
            values = values / values.abs().amax(1, keepdim=True).clamp(min=1e-6)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return axes.imshow(
        values.numpy(), aspect="auto", interpolation="nearest", cmap=colours, vmin=limits[0], vmax=limits[1]
    )


def _draw_input(axes: Any, story: Story, inputs: int) -> None:
    """The characters are on the axes below; of a series each signal has a row of its own."""
    on = story.subject
    axes.set_title("the input", loc="left", fontsize=9, pad=3)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if on.text:
        axes.set(xlim=(-0.5, on.shown - 0.5), ylim=(0, 1), yticks=[], xticks=[])
        for k, character in enumerate(on.text[on.kept.start : on.kept.start + on.shown]):
            axes.text(
                k, 0.5, visible(character), ha="center", va="center", fontsize=9, family="DejaVu Sans Mono"
            )
        return
    x = on.x[on.kept.start : on.kept.start + on.shown, :inputs]
    low, high = x.min(0).values, x.max(0).values
    scaled = (x - low) / (high - low).clamp(min=1e-6)
    for n in range(inputs):
        axes.plot((scaled[:, n] * 0.85 + inputs - 1 - n).numpy(), color=INK, linewidth=0.9)
    names = [shorten(name) for name in story.bundle.spec.columns]
    names += [f"input {n}" for n in range(len(names), inputs)]
    axes.set_yticks([inputs - 1 - n + 0.42 for n in range(inputs)], names[:inputs], fontsize=7)
    axes.set(xlim=(-0.5, on.shown - 0.5), ylim=(-0.15, inputs))
    axes.tick_params(length=0)
    axes.set_xticks([])


def _time_axis(axes: Any, story: Story, labelled: bool) -> None:
    """Characters of a text below each map; rows of the file, or steps of the run, below the last one."""
    on = story.subject
    if not labelled:
        axes.set_xticks([])
        return
    if on.text:
        shown = on.text[on.kept.start : on.kept.start + on.shown]
        labels = [visible(character) for character in shown]
        axes.set_xticks(range(on.shown), labels, fontsize=7, family="DejaVu Sans Mono")
        axes.tick_params(axis="x", pad=1)
        return
    start = on.first + on.kept.start
    every = _spacing(story, on.shown)
    ticks = [k for k in range(on.shown) if (start + k) % every == 0]
    axes.set_xticks(ticks, [f"{start + k:,}" for k in ticks], fontsize=8)
    axes.tick_params(axis="x", length=3)
    axes.set_xlabel(_rows_name(story))


def _rows_name(story: Story) -> str:
    return "row of the file" if story.subject.file else "step"


def _spacing(story: Story, span: int) -> int:
    """Steps between ticks: a season if that is about right, else a round number."""
    season = story.bundle.quality.get("season")
    if isinstance(season, int) and season > 1 and 3 <= span / season <= 12:
        return season
    return next(n for n in (5, 10, 20, 25, 50, 100, 200, 500) if span / n <= 10)


def close_up(story: Story, unit: Unit, caption: str, feature: int | None = None) -> str:
    """One unit of a series: c and h above, its gates below; with the feature it follows, if there is one."""
    on, shown = story.subject, story.subject.shown
    kept = story.observation.kept[:, unit.layer, :shown, unit.index]
    made = figure(4.7, 3.6)
    upper, lower = made.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    steps = range(on.first + on.kept.start, on.first + on.kept.start + shown)
    if feature is not None:
        followed = on.features[on.kept.start : on.kept.start + shown, feature]
        r = story.observation.correlation[feature, unit.layer, unit.index]
        scaled = (followed - followed.mean()) / followed.std().clamp(min=1e-6) * torch.sign(r)
        cell = kept[4]
        upper.plot(
            steps,
            (scaled * cell.std() + cell.mean()).numpy(),
            color=FAINT,
            linewidth=1,
            label="what it follows, scaled",
        )
    upper.plot(steps, kept[4].numpy(), color=INK, label="c")
    upper.plot(steps, kept[5].numpy(), color=RED, linewidth=1, label="h")
    for n, colour in zip(("i", "f", "o"), (BLUE, ORANGE, GREEN), strict=True):
        lower.plot(steps, kept[QUANTITIES.index(n)].numpy(), color=colour, linewidth=1.1, label=n)
    upper.set_title(f"{unit.name}: {caption}", loc="left")
    lower.set(ylim=(-0.02, 1.02), xlabel=_rows_name(story), xlim=(steps[0], steps[-1]), ylabel="gates")
    lower.set_yticks([0, 0.5, 1])
    lower.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.locator_params(axis="x", nbins=5)
    for axes in (upper, lower):
        axes.grid()
    made.legend(loc="outside lower center", ncols=6, handlelength=1.2, columnspacing=1)
    return svg(made, f"Unit {unit.name}", f"close-up {unit.name}")


def visible(character: str) -> str:
    """A character as it is shown in a picture: a new line as a sign, what can't be printed as a dot."""
    if character == "\n":
        return "⏎"
    return character if character.isprintable() else "·"


def shorten(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
