"""What the replies of a session must be while a new version of its model comes: by the float64 reference."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle
from model.reference import Reference

#: Between fp32 and float64, in normalised units: of outputs, and of h and c
TOLERANCE = 1e-4
PIN, REPLAY, RESET = POLICIES = ("pin", "replay", "reset")

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one session's replies. moved: the step from which on they are the new version's, the number of steps
    if there is none. wrong: steps whose reply is not what it must be. state: h and c as they must be at the
    end [2, L, H]."""

    moved: int
    wrong: list[int]
    state: Array


def judge(
    policy: str, old: Bundle, new: Bundle, inputs: Array, outputs: Array, begins: Container[int]
) -> Verdict:
    """inputs: of all steps [T, I]. outputs: the replies to them [T, O]. begins: the first steps of requests:
    one version runs a request as a whole, so a session moves at one of them."""
    of_old, state = run(old, inputs)
    is_old = fits(outputs, of_old)
    if policy == PIN:
        return Verdict(len(outputs), np.flatnonzero(~is_old).tolist(), state)
    moved = len(outputs) if is_old.all() else int(np.argmin(is_old))
    if policy == REPLAY:
        of_new, state = run(new, inputs)
        is_new = fits(outputs, of_new)
    else:
        of_new, state = run(new, inputs[moved:])
        is_new = np.concatenate((np.zeros(moved, np.bool_), fits(outputs[moved:], of_new)))
    behind = np.arange(len(outputs)) >= moved
    # A reply that fits both versions, or none, is as wrong as one of the other version.
    bad = (is_new != behind) | (is_old == behind)
    if moved < len(outputs) and moved not in begins:
        bad[moved] = True
    return Verdict(moved, np.flatnonzero(bad).tolist(), state)


def run(bundle: Bundle, inputs: Array) -> tuple[Array, Array]:
    """From zeros over all inputs [T, I]: outputs [T, O]; h and c behind the last [2, L, H]."""
    reference = Reference(bundle.spec, {name: tensor.numpy() for name, tensor in bundle.weights.items()})
    outputs = reference.run(inputs)
    return outputs, np.stack((reference.h, reference.c))


def fits(outputs: Array, truth: Array) -> NDArray[np.bool_]:
    """Which rows [T] are the reference's. One that is not finite is not."""
    return np.asarray(np.abs(outputs - truth).max(axis=1, initial=0.0) <= TOLERANCE)
