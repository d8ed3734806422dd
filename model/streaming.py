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


@dataclass(frozen=True)
class Streamed:
    """Predictions of one chunk. rows [T, S]: the last row seen; valid [T, S]: whether it is asked for;
    y [T, S, leads, outputs]: the predictions of rows + 1 ... rows + leads, normalised, or log-probabilities.
    """

    rows: Tensor
    valid: Tensor
    y: Tensor


@torch.no_grad()
def stream(
    network: Predictor, x: Tensor, rows: range, *, streams: int = 1, warm: int | None = None
) -> Iterator[Streamed]:
    """Predictions after each of `rows`, the state carried from row to row.

    x: all prepared steps of the data, [N, I] or [N]. One stream runs from rows.start - warm (default: from
    the first row of the data) to the end. More streams cut `rows` into equal pieces that run side by side,
    each over its own `warm` rows first: faster, and a little less exact.
    """
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
        y, state = network(x[at.clamp(max=len(x) - 1).to(x.device)], state)
        valid = (steps[:, None] >= warm) & (at < rows.stop)
        if valid.any():
            yield Streamed(at, valid, y)


def origins(part: range, leads: int) -> range:
    """The rows after which all `leads` next rows lie in the part: from the row before it, if there is one."""
    return range(max(part.start - 1, 0), part.stop - leads)


def targets(outputs: Tensor, rows: Tensor, leads: int) -> Tensor:
    """What came: for rows [...] of outputs [N, O] the next `leads` rows, [..., leads, O]."""
    ahead = torch.arange(1, leads + 1, device=outputs.device)
    return outputs[rows.to(outputs.device)[..., None] + ahead]


Table = dict[str, dict[str, float]]


def series_figures(
    network: Predictor, x: Tensor, outputs: Tensor, part: range, season: int = 0, warm: int | None = None
) -> tuple[Table, Table]:
    """Errors over a part: a table of the model and of naive forecasts, normalised, and one of the model's
    mean absolute error of each output in its own unit.

    x [N, I], outputs [N, O]: the data, normalised. Every window of `leads` rows inside the part counts once;
    mse_1 and mae_1 are of the windows' first row, mse_<leads> and mae_<leads> the mean of all their rows.
    persistence repeats the newest value; seasonal the values one season (or, for leads beyond it, the least
    whole number of seasons) before.
    """
    arch = network.spec.architecture
    rows = origins(part, arch.leads)
    truth = targets(outputs, torch.tensor(rows), arch.leads)  # [W, leads, O]
    y = torch.cat([s.y[s.valid.to(s.y.device)] for s in stream(network, x, rows, warm=warm)])
    table = {"model": _errors(y, truth)}
    at = torch.tensor(rows)[:, None].to(outputs.device)
    ahead = torch.arange(1, arch.leads + 1, device=outputs.device)
    table["persistence"] = _errors(outputs[at.expand(-1, arch.leads)], truth)
    if season and rows.start + 1 >= season * math.ceil(arch.leads / season):
        back = season * ((ahead + season - 1) // season)
        table["seasonal"] = _errors(outputs[at + ahead - back], truth)
    std = torch.tensor([s.std for s in network.spec.outputs], dtype=torch.float64)
    error = (y.double() - truth.double()).abs().cpu() * std
    units = {
        s.name: {f"mae_{k}": error[:, :k, n].mean().item() for k in sorted({1, arch.leads})}
        for n, s in enumerate(network.spec.outputs)
    }
    return table, units


def _errors(y: Tensor, truth: Tensor) -> dict[str, float]:
    """y, truth [W, leads, O]; in float64, for sums over many windows."""
    difference = y.double() - truth.double()
    leads = truth.shape[1]
    figures = {}
    for k in sorted({1, leads}):
        figures[f"mse_{k}"] = difference[:, :k].square().mean().item()
        figures[f"mae_{k}"] = difference[:, :k].abs().mean().item()
    return figures


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
