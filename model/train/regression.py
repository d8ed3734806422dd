"""The head on top of a memory: it has a solution in closed form, from which learning goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.memory import LEVEL, Bank
from model.network import Network

#: Rows of a constant input after which a memory has come to rest: some spans of its longest mean
REST = 6144


@torch.no_grad()
def tops(network: Network, x: Tensor) -> Tensor:
    """The top layer's h after each row of x [N, I], from the first row on: [N, H]."""
    h: Tensor = network.lstm(network.embed(x)[:, None])[0]
    return h[:, 0]


@torch.no_grad()
def fit_head(
    network: Network,
    bank: Bank,
    x: Tensor,
    outputs: Tensor,
    columns: Sequence[int],
    rows: range,
    ridge: float,
) -> None:
    """Sets the head to the ridge regression of what comes on what is remembered, of reduced rank.

    x [N, I], outputs [N, O], normalised; columns: each output's input; rows: after which the next `leads`
    rows may be learnt from. An output is regressed on the linear units of its own signal, all relative to
    its level: what is shrunk to nothing says "as the level is", and a series moved to another level gets its
    forecast moved by the same.
    """
    head, leads = network.head, network.spec.architecture.leads
    remembered, rest = tops(network, x[: rows.stop]).double(), _rest(network).double()
    origins = torch.arange(rows.start, rows.stop, device=x.device)
    ahead = origins[:, None] + torch.arange(1, leads + 1, device=x.device)
    fits, weights = [], torch.zeros(leads, dtype=torch.float64, device=x.device)
    for o, column in enumerate(columns):
        units = bank.of(column)
        h, gain = remembered[origins][:, units], rest[units]
        level = h[:, LEVEL] / gain[LEVEL]
        features = h - level[:, None] * gain  # [n, linear]; that of the level itself is zero
        scale = features.square().mean(0).sqrt().clamp(min=1e-12)
        features /= scale
        scale[LEVEL] = torch.inf
        target = outputs[ahead, o].double() - level[:, None]
        covariance = features.T @ features
        penalty = ridge * len(features) * torch.eye(bank.linear, dtype=torch.float64, device=x.device)
        solution = torch.linalg.solve(covariance + penalty, features.T @ target)  # [linear, leads]
        weights += (target - features @ solution).square().mean(0)
        fits.append((units, gain, scale, covariance / len(features), solution))
    basis = _basis([(c, s) for *_, c, s in fits], weights.rsqrt(), network.spec.architecture.rank)
    head.weight.zero_()
    head.bias.zero_()
    rows_of = head.weight.view(-1, head.outputs, head.in_features)  # [rank, outputs, H]
    for o, (units, gain, scale, _, solution) in enumerate(fits):
        share = torch.linalg.lstsq(basis, solution.T).solution / scale  # [rank, linear]
        share[:, LEVEL] = -(share @ gain) / gain[LEVEL]
        share[0, LEVEL] += 1 / gain[LEVEL]
        rows_of[:, o, units] = share.to(head.weight)
    if head.basis is None:
        raise ValueError("a head is fitted with a rank")
    head.basis.copy_(basis)


def _basis(fits: Sequence[tuple[Tensor, Tensor]], weights: Tensor, rank: int) -> Tensor:
    """The functions of the lead [leads, rank] in which most of the fitted values lies: a constant, and the
    principal ones, counted in each lead's own error."""
    spread = sum(weights[:, None] * (s.T @ c @ s) * weights for c, s in fits)
    assert isinstance(spread, Tensor)  # noqa: S101  there is at least one output
    principal = torch.linalg.eigh(spread)[1].flip(1)[:, : rank - 1] / weights[:, None]
    principal /= principal.square().mean(0).sqrt()
    return torch.cat((torch.ones_like(principal[:, :1]), principal), 1)


def _rest(network: Network) -> Tensor:
    """The top layer's h [H] after a long constant input of one deviation."""
    ones = torch.ones(REST, network.spec.architecture.input_size, device=network.device)
    return tops(network, ones)[-1]
