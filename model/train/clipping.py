"""What is done about gradients that are too large, and about a loss that they have made so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

from model.errors import TrainingError

if TYPE_CHECKING:  # the command's flags are made of KINDS, and its --help should not wait for torch
    from torch import Tensor, nn

KINDS = ("norm", "value", "adaptive", "none")
#: Of the training on a task, which remembers the norms of its newest updates
TASK_KINDS = (*KINDS, "median")
REMEMBERED = 200
#: Below it the norm of a unit's weights counts as this: a unit whose weights are zero could not learn else.
LEAST_NORM = 1e-3


def check_finite(loss: float, update: int) -> None:
    """Raises TrainingError for a loss that is no number any more."""
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at update {update}: try a lower learning rate or clip")


def clip(parameters: Iterable[nn.Parameter], by: str, limit: float) -> bool:
    """Clips the gradients in place. False if they can't be, and are not to be followed: over a thousand steps
    a gradient may leave the range of float32, and by its norm all others would become no numbers.

    norm: all of them together, to the norm `limit` (Pascanu et al. 2013). value: each number, to +-`limit`.
    adaptive: those of each unit, to the share `limit` of the norm of the unit's weights (Brock et al. 2021);
    a unit is a row of a matrix, a vector is one. none: not at all.
    """
    from torch.nn import utils

    if by == "norm":
        return math.isfinite(utils.clip_grad_norm_(parameters, limit).item())
    if by == "value":
        utils.clip_grad_value_(parameters, limit)
    elif by == "adaptive":
        for parameter in parameters:
            if parameter.grad is not None:
                most = limit * _norm(parameter.detach()).clamp(min=LEAST_NORM)
                parameter.grad.mul_((most / _norm(parameter.grad).clamp(min=1e-12)).clamp(max=1))
    return True


def clip_to_median(parameters: Iterable[nn.Parameter], limit: float, recent: list[float]) -> bool:
    """Clips all gradients together, in place, to the median of the newest norms, and to `limit` (after
    Seetharaman et al. 2020). recent: these norms, each `limit` at most; it takes in the new one.

    Over thousands of steps the gradient of one sequence in hundreds may be a million times as large as
    others, and says nothing but that. Clipped to a limit that others stay far below, it would still be the
    largest of all. False as `clip`.
    """
    from torch.nn import utils

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = utils.get_total_norm(gradients).item()
    if not math.isfinite(norm):
        return False
    recent.append(min(norm, limit))
    del recent[:-REMEMBERED]
    most = statistics.median(recent)
    if norm > most:
        for gradient in gradients:
            gradient.mul_(most / norm)
    return True


def _norm(tensor: Tensor) -> Tensor:
    """Of each row of a matrix [N, 1]; of a vector as a whole."""
    norm: Tensor = tensor.norm(dim=-1, keepdim=True)
    return norm
