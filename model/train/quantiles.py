"""Quantiles beside a forecast: a width that follows the unrest of each signal, and for each level how many
widths from the prediction it lies, which is found on the validation part (split conformal prediction with
normalised residuals: Lei et al. 2018).

The errors are taken to be as often above the prediction as below: what one part of a series says of its drift
is seldom true of the next. So level p lies as far out as a share |2p - 1| of the sizes of the errors reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.memory import MEAN_SCALE, Bank
from model.network import Network
from model.train.regression import tops

#: A lead is judged by the errors of leads up to so many times shorter or longer, too: errors of one lead that
#: follow each other are nearly the same error
NEIGHBOURS = 1.25
COARSE, FINE = 1.2, 1.05  # steps between the leads that are looked at; between them a line
#: Shares of a width that do not follow unrest: the error of the next hour is mostly noise, that of the next
#: month is mostly drift
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
STRIDE = 4  # every so many rows of the training part: between them the errors are nearly the same
BLOCK = 512  # rows at a time


def spread_rank(memory: bool, leads: int) -> int:
    """Functions of the lead in a width: what follows unrest, and what does not."""
    return min(2, leads) if memory else 1


@dataclass(frozen=True)
class Errors:
    """Errors [W, leads, O] after `rows` at some of the leads, NaN where they would leave the part; unrest
    [W, O] before them, in deviations."""

    size: NDArray[np.float32]
    unrest: NDArray[np.float32]


@torch.no_grad()
def calibrate(
    network: Network,
    bank: Bank | None,
    x: Tensor,
    outputs: Tensor,
    columns: Sequence[int | None],
    train: range,
    validation: range,
) -> None:
    """Fits widths and offsets. x [N, I], outputs [N, O]: normalised, of all rows; columns: each output's
    input. train should begin where a memory is filled.

    How much of a lead's width follows unrest: as much as makes offsets that were found in the training part
    come nearest to their levels in the validation part. The offsets themselves are then of the validation
    part.
    """
    spread, arch = network.spread, network.spec.architecture
    if spread is None or spread.basis is None:
        raise ValueError("the network has no quantiles")
    _follow_unrest(network, bank, columns)
    top = tops(network, x[: validation.stop])
    fine, coarse = grid(arch.leads, FINE), grid(arch.leads, COARSE)
    learnt = _errors(network, top, x, outputs, train, fine, STRIDE)
    held_out = _errors(network, top, x, outputs, range(validation.start - 1, validation.stop), fine, 1)
    usual = learnt.unrest.mean(0)
    usual[usual <= 0] = 1.0  # an output that is no input, or no memory: nothing is measured
    spread.bias.view(-1, arch.output_size)[-1] = torch.from_numpy(usual)
    shares, offsets = [], []
    for lead in coarse:
        near = [n for n, k in enumerate(fine) if 1 / NEIGHBOURS <= (k + 1) / (lead + 1) <= NEIGHBOURS]
        judged = [
            (_missed(learnt, held_out, near, share, usual, arch.quantiles), share)
            for share in (SHARES if arch.spread == 2 else SHARES[-1:])
        ]
        shares.append(min(judged)[1])
        offsets.append(_offsets(held_out, near, shares[-1], usual, arch.quantiles))
    every = np.arange(arch.leads)
    share = torch.from_numpy(np.interp(every, coarse, shares))
    spread.basis.copy_(torch.stack((1 - share, share)[-arch.spread :], 1))
    for level, o in np.ndindex(len(arch.quantiles), arch.output_size):
        at_grid = [found[level, o] for found in offsets]
        spread.offsets[level, :, o] = torch.from_numpy(np.interp(every, coarse, at_grid))


def grid(leads: int, ratio: float) -> list[int]:
    """Leads, from 0, each `ratio` times the one before, or one more; the last is among them."""
    found, at = [], 1.0
    while at < leads:
        found.append(int(at) - 1)
        at = max(at * ratio, at + 1)
    return sorted({*found, leads - 1})


def _follow_unrest(network: Network, bank: Bank | None, columns: Sequence[int | None]) -> None:
    """Of the functions of a width the first is the mean of what measures a signal's unrest, the last 1."""
    spread, arch = network.spread, network.spec.architecture
    assert spread is not None  # noqa: S101  asked before
    spread.weight.zero_()
    spread.bias.zero_()
    if bank is None or arch.spread < 2:
        return
    weight = spread.weight.view(arch.spread, arch.output_size, arch.hidden_size)
    for o, column in enumerate(columns):
        if column is not None:
            weight[0, o, bank.unrest_of(column)] = 1 / (MEAN_SCALE * bank.unrest)


def _errors(
    network: Network, top: Tensor, x: Tensor, outputs: Tensor, rows: range, leads: list[int], stride: int
) -> Errors:
    """Sizes of the errors after the rows, as far as what came lies before the rows' end."""
    spread, ahead = network.spread, torch.tensor(leads) + 1
    assert spread is not None  # noqa: S101  asked before
    sizes, unrest = [], []
    origins = torch.arange(max(rows.start, 0), rows.stop - 1, stride)
    for first_row in range(0, len(origins), BLOCK):
        at = origins[first_row : first_row + BLOCK]
        there = at[:, None] + ahead
        came = outputs[there.clamp(max=len(outputs) - 1)]
        size = (came - network.predict(top[at], x[at])[:, leads]).abs()
        size[there >= rows.stop] = torch.nan
        sizes.append(size.cpu().numpy())
        first = torch.nn.functional.linear(top[at], spread.weight, spread.bias)[:, : spread.outputs]
        unrest.append(first.cpu().numpy())
    return Errors(np.concatenate(sizes), np.concatenate(unrest))


def _ratios(errors: Errors, near: list[int], share: float, usual: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sizes in widths, [n, O], NaN where there is none."""
    width = (1 - share) * errors.unrest + share * usual
    return np.asarray((errors.size[:, near] / width[:, None]).reshape(-1, width.shape[1]), np.float32)


def _offsets(
    errors: Errors, near: list[int], share: float, usual: NDArray[np.float32], levels: Sequence[float]
) -> NDArray[np.float64]:
    """[levels, O]."""
    ratios = _ratios(errors, near, share, usual)
    inner = np.abs(2 * np.array(levels) - 1)
    out = np.stack([np.quantile(r[~np.isnan(r)], inner) for r in ratios.T.astype(np.float64)], 1)
    return np.asarray(np.sign(np.array(levels) - 0.5)[:, None] * out)


def _missed(
    learnt: Errors,
    held_out: Errors,
    near: list[int],
    share: float,
    usual: NDArray[np.float32],
    levels: Sequence[float],
) -> float:
    """How far the offsets of one part are from their levels in another, as a mean over levels."""
    offsets = np.abs(_offsets(learnt, near, share, usual, levels))
    ratios = _ratios(held_out, near, share, usual)
    inside = (ratios[:, None] <= offsets) & ~np.isnan(ratios)[:, None]
    count = (~np.isnan(ratios)).sum()
    wanted = np.abs(2 * np.array(levels) - 1)
    return float(np.abs(inside.sum((0, 2)) / count - wanted).mean())
