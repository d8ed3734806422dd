"""The curves of the page: gradients, time constants, saturation. Imports matplotlib."""

from __future__ import annotations

import math

import torch
from matplotlib.ticker import NullLocator
from torch import Tensor

from model.explain.activations import GATES
from model.explain.drawing import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    LAYER_COLOURS,
    ORANGE,
    RED,
    legend,
    logarithmic,
    panel,
    svg,
)
from model.explain.gradients import DISTANCE
from model.explain.story import Story
from model.explain.units import bias_time_constants, shown_layers

#: What the gradient axis shows; curves that leave it have vanished or exploded.
FLOOR, CEILING = 1e-12, 1e6


def gradients(story: Story) -> str:
    """G(k) of the fresh networks and of the bundle."""
    made, axes = panel(height=4.2)
    colours = dict(zip(story.classics.curves, (RED, ORANGE, BLUE, GREEN), strict=True))
    for name, curve in story.classics.curves.items():
        axes.plot(curve.numpy(), color=colours[name], label=name)
    norms = story.trained.norms
    low, middle, high = torch.quantile(norms, torch.tensor([0.1, 0.5, 0.9], dtype=norms.dtype), dim=1)
    axes.fill_between(range(len(norms)), low.numpy(), high.numpy(), color=FAINT, alpha=0.3, linewidth=0)
    axes.plot(middle.numpy(), color=INK, linewidth=2, label=f"{story.bundle.name}, trained")
    axes.plot(
        story.untrained.norms.median(1).values.numpy(),
        color=INK,
        linestyle=(0, (4, 2)),
        linewidth=1,
        label=f"{story.bundle.name}, before training",
    )
    axes.set(yscale="log", ylim=(FLOOR, CEILING), xlim=(0, DISTANCE))
    axes.set(xlabel="steps back, k", ylabel="gradient norm G(k)")
    logarithmic(axes.yaxis)
    axes.grid()
    legend(made, 2)
    return svg(made, "Gradient norm by distance", "gradients")


def clipping(story: Story) -> str:
    """What each step adds to the gradient of the exploding RNN's weights, before and after clipping."""
    made, axes = panel(height=4.2)
    steps, factor = story.classics.exploding.by_step.numpy(), story.classics.clip_factor
    axes.plot(steps, color=ORANGE, label="as it is")
    axes.plot(
        steps * factor, color=ORANGE, linestyle=(0, (4, 2)), label=f"norm clipped to {story.classics.clip:g}"
    )
    axes.axhline(story.classics.clip, color=FAINT, linewidth=0.8)
    axes.set(yscale="log", xlim=(0, len(steps)), xlabel="steps back, k")
    axes.set(ylabel="part of the weights' gradient")
    logarithmic(axes.yaxis)
    axes.grid()
    legend(made, 2)
    return svg(made, "Gradient clipping", "clipping")


def parts(story: Story) -> str:
    """The bundle's gradient by layer, with regard to h and to c."""
    made, axes = panel(height=4.2)
    found = story.trained.squared.sqrt().median(-1).values  # [K + 1, 2, L]
    found = torch.where(found > 0, found, torch.nan)  # at k = 0 only the top h has one
    for colour, layer in zip(LAYER_COLOURS, shown_layers(found.shape[2]), strict=False):
        axes.plot(found[:, 1, layer].numpy(), color=colour, label=f"c of layer {layer + 1}")
        axes.plot(
            found[:, 0, layer].numpy(), color=colour, linestyle=(0, (1, 1.2)), label=f"h of layer {layer + 1}"
        )
    axes.set(xscale="symlog", yscale="log", xlim=(0, len(found) - 1))
    least = found[~found.isnan()].min().item()
    axes.set_ylim(max(least / 2, FLOOR), 2)
    axes.set(xlabel="steps back, k (logarithmic)", ylabel="gradient norm")
    axes.set_xticks([k for k in (0, 1, 3, 10, 30, 100, 300) if k < len(found)])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    logarithmic(axes.yaxis)
    axes.grid()
    legend(made, 2)
    return svg(made, "Gradient norm by layer and part of the state", "parts")


def time_constants(story: Story) -> tuple[str, str]:
    """Their distribution as a histogram, and the share of units that is slower than each."""
    layers = shown_layers(len(story.tau))
    tau = [story.tau[layer].clamp(min=0.1, max=1e5) for layer in layers]
    highest = max(100.0, 1.5 * max(t.max().item() for t in tau))
    edges = torch.logspace(-1, math.log10(highest), 41).tolist()
    return _histogram(layers, tau, edges), _slower(story, layers, tau, highest)


def _histogram(layers: list[int], tau: list[Tensor], edges: list[float]) -> str:
    made, axes = panel()
    for colour, layer, values in zip(LAYER_COLOURS, layers, tau, strict=False):
        weights = [100 / len(values)] * len(values)
        axes.hist(values.numpy(), edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.35)
        axes.hist(
            values.numpy(), edges, weights=weights, histtype="step", color=colour, label=f"layer {layer + 1}"
        )
    axes.set(xscale="log", xlim=(0.1, edges[-1]), xlabel="time constant τ of the forget gate, steps")
    axes.set(ylabel="units, %")
    logarithmic(axes.xaxis)
    axes.grid()
    if len(layers) > 1:
        legend(made, len(layers))
    return svg(made, "Histogram of time constants", "histogram")


def _slower(story: Story, layers: list[int], tau: list[Tensor], highest: float) -> str:
    made, axes = panel()
    for colour, layer, values in zip(LAYER_COLOURS, layers, tau, strict=False):
        implied = bias_time_constants(story.bundle.weights[f"lstm.bias_l{layer}"]).clamp(0.1, 1e5)
        for sample, line, what in ((values, "-", "as run"), (implied, (0, (1, 1.2)), "by its bias alone")):
            share = 100 * torch.arange(len(sample), -1, -1) / len(sample)
            at = torch.cat((sample.sort().values, sample.new_tensor([highest])))
            axes.step(
                torch.cat((sample.new_tensor([0.1]), at)).numpy(),
                torch.cat((share[:1], share)).numpy(),
                where="pre",
                color=colour,
                linestyle=line,
                label=f"layer {layer + 1}, {what}",
            )
    axes.set(
        xscale="log", xlim=(0.1, highest), ylim=(0, 102), xlabel="τ, steps", ylabel="units slower than τ, %"
    )
    logarithmic(axes.xaxis)
    axes.grid()
    legend(made, 2)
    return svg(made, "Share of units slower than a time constant", "slower")


def saturation(story: Story, gate: str) -> str:
    """A dot a unit: how often its gate is open and how often closed (Karpathy et al. 2015, figure 3)."""
    made, axes = panel(3.3, 3.6)
    n = list(GATES).index(gate)
    layers = shown_layers(len(story.tau))
    for colour, layer in zip(LAYER_COLOURS, layers, strict=False):
        axes.scatter(
            100 * story.observation.opened[n, layer].numpy(),
            100 * story.observation.closed[n, layer].numpy(),
            s=9 if story.tau.shape[1] > 100 else 24,
            color=colour,
            alpha=0.55,
            linewidth=0,
            label=f"layer {layer + 1}",
            rasterized=True,
            clip_on=False,
        )
    axes.plot((0, 100), (100, 0), color=FAINT, linewidth=0.8, zorder=0)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="open (above 0.9), % of steps")
    name = {"i": "input gate i", "f": "forget gate f", "o": "output gate o"}[gate]
    axes.set(ylabel="closed (below 0.1), % of steps", title=name)
    if len(layers) > 1:
        legend(made, 2)
    return svg(made, f"Saturation of the {name}", f"saturation {gate}")
