"""The measured summary in words: every number in it is computed from the story."""

from __future__ import annotations

import math

from torch import Tensor

from model.explain.activations import GATES
from model.explain.gradients import reach
from model.explain.story import Story
from model.explain.units import quantiles, shown_layers

#: tanh(5) is 0.9999.
BEYOND = 5
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def summary(story: Story) -> list[str]:
    """Sentences, without markup."""
    return [
        _size(story),
        _gradient(story),
        *_time_constants(story),
        _saturation(story),
        _largest(story),
        *_followers(story),
    ]


def number(value: float) -> str:
    """Two or three digits, as a reader wants them: 0.43, 5.1, 87, 1,240."""
    if value >= 1e6:
        return f"{value:.1e}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size(count: int) -> str:
    """Bytes: 6,912 bytes become 6.8 KiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return plural(count, "byte")


def signed(r: float) -> str:
    """+0.90 or −0.86."""
    return f"{r:+.2f}".replace("-", "−")


def short(value: float) -> str:
    """0.43 or 3·10⁻⁷."""
    if 0.001 <= value < 1000:
        return number(value)
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPT)}"


def scientific(value: float) -> str:
    """9.1 × 10⁻²⁷."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def _size(story: Story) -> str:
    arch = story.bundle.spec.architecture
    state = 2 * arch.num_layers * arch.hidden_size * 4
    return (
        f"{story.bundle.name} has {plural(arch.num_layers, 'LSTM layer')} of "
        f"{plural(arch.hidden_size, 'unit')} and {arch.parameters:,} weights. The memory of a session, "
        f"h and c, is {size(state)}."
    )


def _gradient(story: Story) -> str:
    trained, fresh = (b.norms.median(1).values for b in (story.trained, story.untrained))
    return (
        f"Going back from a step, the gradient norm {_falls(trained, story.distance)}. Before training, with "
        f"forget biases of 1, that of the same network {_falls(fresh, story.distance)}."
    )


def _falls(curve: Tensor, distance: int) -> str:
    tenth, hundredth = reach(curve, 0.1), reach(curve, 0.01)
    if tenth is None:
        return f"is still above a tenth after the {distance} steps that it was followed back"
    below = f"is below a tenth after {plural(tenth, 'step')}"
    if hundredth is None:
        return f"{below} and still above a hundredth after {distance}"
    return f"{below} and below a hundredth after {plural(hundredth, 'step')}"


def _time_constants(story: Story) -> list[str]:
    sentences = []
    for layer in shown_layers(len(story.tau)):
        tau = story.tau[layer]
        middle, slow = quantiles(tau, (0.5, 0.9))
        top, at = tau.max(0)
        sentences.append(
            f"Forget gates of layer {layer + 1}: half of the units have a time constant below "
            f"{number(middle)} steps; a tenth is above {number(slow)}, and would by the gate alone keep a "
            f"hundredth of its cell for {number(slow * math.log(100))} steps or more. The slowest, "
            f"L{layer + 1} u{int(at)}, has {number(top.item())}: a half-life of "
            f"{number(top.item() * math.log(2))} steps."
        )
    return sentences


def _saturation(story: Story) -> str:
    said = []
    for n, gate in enumerate(GATES):
        shares = (story.observation.opened[n], story.observation.closed[n])
        opened, closed = (100 * share.mean().item() for share in shares)
        said.append(f"{gate} {number(opened)}\u00a0% and {number(closed)}\u00a0%")
    return (
        "Share of all units and steps in which a gate is open (above 0.9) and closed (below 0.1): "
        f"{', '.join(said)}."
    )


def _largest(story: Story) -> str:
    largest = story.observation.largest
    layer, unit = divmod(int(largest.argmax()), largest.shape[1])
    beyond = 100 * (largest > BEYOND).double().mean().item()
    return (
        f"Largest |c| of the run: {number(largest.max().item())} (L{layer + 1} u{unit}); {number(beyond)} % "
        f"of the units go beyond {BEYOND}, where tanh c is 1 to four digits and only the gates still speak."
    )


def _followers(story: Story) -> list[str]:
    if not story.followers:
        return []
    said = [f"{f.unit.name} follows {f.feature} (r = {signed(f.r)})" for f in story.followers[:4]]
    return [f"Single cells, by the correlation of tanh c: {'; '.join(said)}."]
