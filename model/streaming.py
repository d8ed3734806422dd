"""A network over long data with its state carried, and the figures that come out of it.

The network sees a part of the data as a served session would: step after step, never reset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.config import ModelSpec

CHUNK = 512  # steps a call: bounds the memory, changes no result


class Predictor(Protocol):
    """What can be streamed and measured: a `Network`, or whatever else steps its weights."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, x: Tensor, state: Any, /) -> tuple[Tensor, Any]:
        """Prepared steps x [T, S, I] or [T, S] after the state, None for one that has not begun: predictions
        [T, S, leads, outputs], and the state after them, which is passed in again and not looked at."""
        ...

    def with_quantiles(self, x: Tensor, state: Any, /) -> tuple[Tensor, Tensor, Any]:
        """The same with the quantiles [T, S, levels, leads, outputs] of the predictions."""
        ...


@dataclass(frozen=True)
class Streamed:
    """Predictions of one chunk. rows [T, S]: the last row seen; valid [T, S]: whether it is asked for;
    y [T, S, leads, outputs]: the predictions of rows + 1 ... rows + leads, normalised, or log-probabilities.
    quantiles [T, S, levels, leads, outputs] of them, if they were asked for and there are any.
    """

    rows: Tensor
    valid: Tensor
    y: Tensor
    quantiles: Tensor | None = None


@torch.no_grad()
def stream(
    network: Predictor,
    x: Tensor,
    rows: range,
    *,
    streams: int = 1,
    warm: int | None = None,
    quantiles: bool = False,
) -> Iterator[Streamed]:
    """Predictions after each of `rows`, the state carried from row to row.

    x: all prepared steps of the data, [N, I] or [N]. One stream runs from rows.start - warm (default: from
    the first row of the data) to the end. More streams cut `rows` into equal pieces that run side by side,
    each over its own `warm` rows first: faster, and a little less exact. quantiles: whether they are wanted.
    """
    quantiles = quantiles and bool(network.spec.architecture.quantiles)
    if isinstance(network, nn.Module):
        network.eval()
    warm = rows.start if warm is None else min(warm, rows.start)
    length = math.ceil(len(rows) / streams)
    starts = rows.start + length * torch.arange(streams) - warm  # [S]
    state = None
    for t in range(0, warm + length, CHUNK):
        steps = torch.arange(t, min(t + CHUNK, warm + length))  # [T]
        at = starts + steps[:, None]
        # The last piece may be shorter than the others: it runs on over the last row, and is not counted.
        chunk, q = x[at.clamp(max=len(x) - 1).to(x.device)], None
        if quantiles:
            y, q, state = network.with_quantiles(chunk, state)
        else:
            y, state = network(chunk, state)
        valid = (steps[:, None] >= warm) & (at < rows.stop)
        if valid.any():
            yield Streamed(at, valid, y, q)


def origins(part: range, leads: int) -> range:
    """The rows after which all `leads` next rows lie in the part: from the row before it, if there is one."""
    return range(max(part.start - 1, 0), part.stop - leads)


def targets(outputs: Tensor, rows: Tensor, leads: int) -> Tensor:
    """What came: for rows [...] of outputs [N, O] the next `leads` rows, [..., leads, O]."""
    ahead = torch.arange(1, leads + 1, device=outputs.device)
    return outputs[rows.to(outputs.device)[..., None] + ahead]


Table = dict[str, dict[str, float]]


#: Leads at which errors are told, if the model sees so far; beside the first and its last
HORIZONS = (24, 48, 96, 168, 336, 720)


def horizons(leads: int) -> list[int]:
    return sorted({1, leads, *(k for k in HORIZONS if k < leads)})


def series_figures(
    network: Predictor, x: Tensor, outputs: Tensor, part: range, season: int = 0, warm: int | None = None
) -> tuple[Table, Table]:
    """Errors over a part: a table of the model and of naive forecasts, normalised, and one of the model's
    mean absolute error of each output in its own unit.

    x [N, I], outputs [N, O]: the data, normalised. mse_k and mae_k are means over the first k leads of every
    window of k rows inside the part. persistence repeats the newest value; seasonal the values one season
    (or, for leads beyond it, the least whole number of seasons) before. Of a model with quantiles also
    coverage, in a row for each level: below_k is the share of what came that lay below it, and in the row
    "interval" between the lowest and the highest level.
    """
    leads = network.spec.architecture.leads
    rows = origins(part, 1)
    at = torch.tensor(rows, device=outputs.device)
    last = outputs[-1:].expand(leads, -1)  # beyond the file; never counted
    truth = targets(torch.cat((outputs, last)), at, leads)  # [W, leads, O]
    y, below = _predicted(network, x, rows, truth, warm)
    table = {"model": _errors(y - truth)}
    table["persistence"] = _errors(outputs[at][:, None] - truth)
    ahead = torch.arange(1, leads + 1, device=outputs.device)
    if season and rows.start + 1 >= season * math.ceil(leads / season):
        back = season * ((ahead + season - 1) // season)
        table["seasonal"] = _errors(outputs[at[:, None] + ahead - back] - truth)
    table |= _coverage(network.spec.architecture.quantiles, below)
    std = torch.tensor([s.std for s in network.spec.outputs], device=outputs.device)
    error = (y - truth).abs() * std
    units = {
        s.name: {f"mae_{k}": _mean(error[..., n], k) for k in horizons(leads)}
        for n, s in enumerate(network.spec.outputs)
    }
    return table, units


def _predicted(
    network: Predictor, x: Tensor, rows: range, truth: Tensor, warm: int | None
) -> tuple[Tensor, Tensor]:
    """Predictions [W, leads, O], and how many of the outputs lay below each level of the quantiles, and
    between the outer ones: [W, levels + 1, leads], a share of the outputs."""
    ys, belows, done = [], [], 0
    for s in stream(network, x, rows, warm=warm, quantiles=True):
        valid = s.valid.to(s.y.device)
        y = s.y[valid]
        ys.append(y)
        if s.quantiles is not None:
            below = truth[done : done + len(y), None] <= s.quantiles[valid]  # [n, levels, leads, O]
            inside = below[:, -1:] & ~below[:, :1]
            belows.append(torch.cat((below, inside), 1).float().mean(-1))
        done += len(y)
    return torch.cat(ys), torch.cat(belows) if belows else truth.new_empty(len(truth), 0, truth.shape[1])


def _errors(difference: Tensor) -> dict[str, float]:
    """difference [W, leads, O]."""
    figures: dict[str, float] = {}
    square, size = difference.double().square().mean(-1), difference.abs().double().mean(-1)
    for k in horizons(difference.shape[1]):
        figures |= {f"mse_{k}": _mean(square, k), f"mae_{k}": _mean(size, k)}
    return figures


def _coverage(levels: tuple[float, ...], below: Tensor) -> Table:
    """below [W, levels + 1, leads]."""
    names = [f"quantile_{level:g}" for level in levels] + ["interval"]
    return {
        name: {f"coverage_{k}": _mean(below[:, n], k) for k in horizons(below.shape[2])}
        for n, name in enumerate(names)
        if levels
    }


def _mean(values: Tensor, k: int) -> float:
    """Of values [W, leads]: over the first k leads of the windows that have them in the part."""
    return values[: len(values) - k + 1, :k].double().mean().item()


def text_figures(
    network: Predictor, tokens: Tensor, part: range, streams: int = 1, warm: int | None = None
) -> dict[str, float]:
    """Mean negative log-likelihood of each character of a part given all before it, tokens [N].

    In nats and in bits a character; accuracy: how often the likeliest character is the one that came.
    """
    loss, right, count = 0.0, 0, 0
    for s in stream(network, tokens, origins(part, 1), streams=streams, warm=warm):
        valid = s.valid.to(s.y.device)
        log_p = s.y[valid][:, 0].float()  # [n, vocabulary]
        truth = tokens[(s.rows[s.valid] + 1).to(tokens.device)]
        loss -= log_p.gather(1, truth[:, None]).double().sum().item()
        right += int((log_p.argmax(1) == truth).sum())
        count += len(truth)
    nats = loss / count
    return {
        "nats_per_character": nats,
        "bits_per_character": nats / math.log(2),
        "accuracy": right / count,
    }


def frequency_figures(tokens: Tensor, train: range, part: range, size: int) -> dict[str, float]:
    """What the characters' frequencies in the training part alone would score; add-one smoothed."""
    counts = torch.bincount(tokens[train.start : train.stop].cpu(), minlength=size).double() + 1
    log_p = (counts / counts.sum()).log()
    rows = origins(part, 1)
    truth = tokens[rows.start + 1 : rows.stop + 1].cpu()
    nats = -log_p[truth].mean().item()
    return {
        "nats_per_character": nats,
        "bits_per_character": nats / math.log(2),
        "accuracy": (truth == log_p.argmax()).double().mean().item(),
    }
