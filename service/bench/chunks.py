"""Whole sequences through the runner, of equal and of ragged lengths, beside torch.nn.LSTM.

A ragged batch has fewer rows to step as its sequences end. Its waste is the share of its rate that it loses
to that, against a batch of the same number of sequences, all of their mean length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from service.bench.options import Options, Wrong
from service.bench.rounds import Contestant, Timing, interleave, quiet
from service.bench.subject import Ours, make_network, torch_lstm
from service.engine.jobs import Prepared
from service.engine.runner import Batch

Row = dict[str, Any]
RAGGED = 10, 500  # steps: uniform between them
ROUNDS = 3
#: Of the last state, against torch's float32; the longest way a difference can grow.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "int8": 1e-1}


def lengths_of(sessions: int, steps: int) -> list[int]:
    """Ragged lengths, longest first; always the same ones."""
    low, high = (min(bound, steps) for bound in RAGGED)
    drawn = np.random.default_rng(1).integers(low, high, sessions, endpoint=True)
    return sorted(drawn.tolist(), reverse=True)


class Sequences:
    """One batch of sequences, longest first, in the form that each contestant takes."""

    def __init__(self, lengths: list[int], inputs: int, device: torch.device) -> None:
        generator = np.random.default_rng(len(lengths))
        self.lengths = lengths
        self.chunks: list[Prepared] = [generator.standard_normal((t, inputs), np.float32) for t in lengths]
        padded = np.zeros((lengths[0], len(lengths), inputs), np.float32)
        for b, chunk in enumerate(self.chunks):
            padded[: len(chunk), b] = chunk
        self.padded = torch.from_numpy(padded).to(device)

    @property
    def steps(self) -> int:
        return sum(self.lengths)

    def through_ours(self, ours: Ours) -> Callable[[], object]:
        rows = ours.rows(len(self.lengths))
        source = [ours.arena.padding] * len(rows)
        return lambda: ours.runner.run(Batch(source, rows, self.chunks))

    def through_dense(self, lstm: nn.LSTM) -> Callable[[], tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Every sequence as long as the longest."""
        return lambda: lstm(self.padded)

    def through_packed(self, lstm: nn.LSTM) -> Callable[[], tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Packed first, which is part of the time: our runner too gets its sequences one by one."""
        lengths = torch.tensor(self.lengths)
        return lambda: lstm(pack_padded_sequence(self.padded, lengths))

    def check(self, ours: Ours, lstm: nn.LSTM, precision: str) -> None:
        """Raises Wrong unless our last states are torch's."""
        self.through_ours(ours)()
        with torch.inference_mode():
            _, (h, c) = self.through_packed(lstm)()
        wanted = torch.stack((h, c)).cpu().numpy()
        difference = np.abs(ours.states(ours.rows(len(self.lengths))) - wanted).max()
        if not difference <= TOLERANCE[precision]:
            raise Wrong(f"ours {precision} on sequences: the last state is off by {difference:.2g}")


def measure(options: Options, progress: Callable[[str], None]) -> Iterator[Row]:
    """A row for each size, number of sessions, kind of lengths and precision."""
    device = torch.device(options.device)
    for hidden in options.hidden:
        with quiet(options.threads):
            network = make_network(hidden, options.layers, options.inputs)
            most = max(options.sessions)
            ours = {p: Ours(network, most, p, options.threads, device) for p in options.precision}
            lstm = torch_lstm(network.lstm, device)
            for sessions in options.sessions:
                progress(f"chunks, H={hidden}, {sessions} sessions")
                equal = Sequences([options.steps] * sessions, options.inputs, device)
                times = _time({"": equal}, ours, lstm, options)
                for precision in options.precision:
                    yield _row(options, hidden, precision, equal, times)
                if sessions == 1:
                    continue
                ragged = Sequences(lengths_of(sessions, options.steps), options.inputs, device)
                mean = round(ragged.steps / sessions)
                same = Sequences([mean] * sessions, options.inputs, device)
                times = _time({"": ragged, " mean": same}, ours, lstm, options)
                for precision in options.precision:
                    yield _row(options, hidden, precision, ragged, times, same)


def _time(
    batches: dict[str, Sequences], ours: dict[str, Ours], lstm: nn.LSTM, options: Options
) -> dict[str, Timing]:
    """Microseconds of a batch, by contestant and batch: all of them in turns."""
    contestants: list[Contestant] = []
    for which, batch in batches.items():
        for precision, runner in ours.items():
            batch.check(runner, lstm, precision)
            contestants.append(Contestant(precision + which, batch.through_ours(runner)))
        for name, call in (("dense", batch.through_dense(lstm)), ("packed", batch.through_packed(lstm))):
            contestants.append(Contestant(name + which, call, inference=True))
    device = torch.device(options.device)
    return interleave(contestants, options.seconds, device, ROUNDS, options.threads)


def _row(
    options: Options,
    hidden: int,
    precision: str,
    batch: Sequences,
    times: dict[str, Timing],
    same: Sequences | None = None,
) -> Row:
    """same: the batch of equal lengths that a ragged one is compared with; its times are named "... mean"."""
    row: Row = {
        "hidden": hidden,
        "layers": options.layers,
        "inputs": options.inputs,
        "precision": precision,
        "sessions": len(batch.lengths),
        "lengths": "equal" if same is None else "ragged",
        "longest": batch.lengths[0],
        "steps": batch.steps,
        "threads": options.threads,
    }
    for column, name in (("ours", precision), ("nn_lstm", "dense"), ("nn_lstm_packed", "packed")):
        row[f"{column}_us_per_step"] = times[name].us / batch.steps
        waste = None
        if same is not None:
            waste = 1 - times[f"{name} mean"].share_of(times[name]) * batch.steps / same.steps
        row[f"{column}_waste"] = waste
    return row
