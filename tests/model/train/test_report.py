"""Plain lines where there is no terminal, a bar where there is one, and a curve that is a PNG."""

from __future__ import annotations

import io
from pathlib import Path

from model.train.report import Epoch, Report, draw_curve


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_entry(epoch: int, validation: float = 0.25) -> Epoch:
    return {"epoch": epoch, "train": 0.5, "validation": validation, "rate": 1e-3, "seconds": 12.0}


def run(out: io.StringIO) -> str:
    report = Report(out)
    report.begin(0, 9, 2)
    report.update(0.7)
    report.update(0.3)
    report.end(make_entry(1), 9, best=True)
    return out.getvalue()


def test_without_a_terminal_there_is_one_plain_line_an_epoch() -> None:
    assert run(io.StringIO()) == "epoch 1/9  train 0.5000  validation 0.2500 *  rate 1.0e-03  12 s\n"


def test_on_a_terminal_a_bar_moves_and_the_line_stays() -> None:
    out = Terminal()
    report = Report(out)
    report.begin(0, 9, 2)
    assert "epoch 1/9:" in out.getvalue()
    report.update(0.7)
    report.update(0.3)
    assert (report.bar.n, report.bar.total, report.bar.postfix) == (2, 2, "loss 0.3000")
    report.end(make_entry(1), 9, best=True)
    assert report.bar is None
    shown = out.getvalue()
    assert shown.endswith("validation 0.2500 *  rate 1.0e-03  12 s\n")


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    assert draw_curve(path, [make_entry(1), make_entry(2, 0.2), make_entry(3, 0.3)], "a title")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
