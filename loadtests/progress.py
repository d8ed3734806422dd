"""A bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

#: Between two lines, where there is no terminal
LINE_S = 10.0


class Progress:
    """One phase after another. Without tqdm (of the `train` extra) there are lines on a terminal too."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out if out is not None else sys.stderr
        self._bar: Any = None
        self._began = self._said = 0.0
        self._seconds, self._what = 0.0, ""

    def begin(self, what: str, seconds: float) -> None:
        self.end()
        self._what, self._seconds = what, seconds
        self._began = self._said = time.monotonic()
        if self.out.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
            self._bar = tqdm(total=seconds, desc=what, file=self.out, leave=False, bar_format=form)

    def update(self, ok: int, errors: int) -> None:
        now = time.monotonic()
        at = min(self._seconds, now - self._began)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{ok:,} answered, {errors:,} errors", refresh=False)
            self._bar.update(at - self._bar.n)
        elif now - self._said >= LINE_S:
            self._said = now
            self.say(f"{self._what}: {at:.0f}/{self._seconds:.0f} s, {ok:,} answered, {errors:,} errors")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self.out)
        else:
            print(line, file=self.out, flush=True)
