"""From a series and its surprises to the likelihood of an anomaly: what goes beyond all that was seen before.

As in Ahmad et al., "Unsupervised real-time anomaly detection for streaming data", Neurocomputing 2017, a
surprise means little by itself: it is compared with those of the same series before it, smoothed over a short
past; and a value beyond the range of all before is an anomaly of its own kind. Here both are judged in one
way. There are four *tracks*: the value, its means over a short and a longer past, and the mean score. Each
has a range that it has been in. The *novelty* of a step is how far a track goes beyond its range, as a share
of the range; a range widens as it is passed, so what goes on is novel once. After a novelty only a higher one
is told, for a while.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from model.watch.rules import Rules

#: Tracks, and those of them that are means
TRACKS, MEANS = 4, 3
#: The track that is novel at the top of its range alone: to be surprised less than ever is no anomaly
SCORES = 3
#: Numbers kept of a series: the means, the ranges, the novelty that holds and for how many steps
SIZE = MEANS + 2 * TRACKS + 2
#: The novelty of what leaves a range of width 0
ENDLESS = 1e9


def judge(
    rules: Rules, kept: Sequence[float], seen: float, value: float, score: float
) -> tuple[float, list[float]]:
    """A step: its likelihood from 0 to 1, and what is kept after it [SIZE]. seen: steps before it; `kept` of
    a new series is zeros."""
    means, ranges, held, left = list(kept[:MEANS]), list(kept[MEANS:-2]), kept[-2], kept[-1]
    over = (rules.short, rules.long, rules.surprise)
    for k, (new, steps) in enumerate(zip((value, value, score), over, strict=True)):
        means[k] = new if seen == 0 else means[k] + max(1 / (seen + 1), 1 / steps) * (new - means[k])
    novelty = 0.0
    for k, track in enumerate((value, *means)):
        low, high = ranges[2 * k : 2 * k + 2] if seen else (track, track)
        beyond, width = max(track - high, -math.inf if k == SCORES else low - track), high - low
        if beyond > 0 and seen >= rules.warm:
            novelty = max(novelty, min(beyond / width, ENDLESS) if width > 0 else ENDLESS)
        low, high = min(low, track), max(high, track)
        fade = rules.forget * (high - low)
        ranges[2 * k : 2 * k + 2] = min(low + fade, track), max(high - fade, track)
    told = novelty if novelty > held else 0.0
    if told:
        held, left = novelty, rules.hold
    else:
        left = max(left - 1, 0.0)
        held = held if left else 0.0
    return likelihood(rules, told), [*means, *ranges, held, left]


def likelihood(rules: Rules, novelty: float) -> float:
    """From 0 to 1, a half at `novel`; it rises with the novelty, so a threshold on one is one on the
    other."""
    return novelty / (novelty + rules.novel)


def score_of(below: float, above: float) -> float:
    """A value's score, from what the distribution gives to values below and above it: -log10 of the share
    that is as far out or farther."""
    return max(0.0, -math.log10(max(2 * min(below, above), 1e-300)))
