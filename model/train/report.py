"""What a training shows while it runs: a bar on a terminal, plain lines otherwise, and a curve afterwards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

Epoch = dict[str, float]  # epoch, train, validation, rate, seconds


class Report:
    """One epoch after another. On a terminal, and with tqdm installed, the updates move a bar."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out if out is not None else sys.stderr
        self.bar: Any = None

    def begin(self, epoch: int, epochs: int, updates: int) -> None:
        if not self.out.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:  # it comes with the `train` extra; without it there are lines
            return
        self.bar = tqdm(
            total=updates, desc=f"epoch {epoch + 1}/{epochs}", unit=" updates", leave=False, file=self.out
        )

    def update(self, loss: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update()

    def end(self, entry: Epoch, epochs: int, best: bool) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        self.say(
            f"epoch {int(entry['epoch'])}/{epochs}  train {entry['train']:.4f}  "
            f"validation {entry['validation']:.4f}{' *' if best else '  '}  "
            f"rate {entry['rate']:.1e}  {entry['seconds']:.0f} s"
        )

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def draw_curve(path: Path, history: Sequence[Epoch], title: str) -> bool:
    """The losses over the epochs as a PNG. False if matplotlib (of the `train` extra) is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory: no display, no global state
    axes = figure.add_subplot()
    epochs = [entry["epoch"] for entry in history]
    axes.plot(epochs, [entry["train"] for entry in history], label="training (with dropout)")
    axes.plot(epochs, [entry["validation"] for entry in history], label="validation")
    best = min(history, key=lambda entry: entry["validation"])
    axes.plot(
        best["epoch"], best["validation"], "o", color="tab:orange", label=f"best {best['validation']:.4f}"
    )
    axes.set(xlabel="epoch", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True


def draw_solving(path: Path, history: Sequence[Epoch], title: str) -> bool:
    """A task's share of wrong answers, and the length, over the training sequences, as a PNG. False if
    matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sequences = [entry["sequences"] for entry in history]
    axes.plot(sequences, [entry["wrong"] for entry in history], label="wrong answers while training")
    axes.set(xlabel="training sequences", ylabel="share of wrong answers", title=title, ylim=(-0.02, 1.02))
    right = axes.twinx()
    right.step(sequences, [entry["length"] for entry in history], color="tab:orange", where="post")
    right.set(ylabel="length", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True
