"""Time of the day, of the week and of the year: what a network reads of a timestamp.

A time is a sine and a cosine of each period, so that the end of a day is beside the beginning of the next
and no two times of it are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Seconds of each period; the year is the Gregorian calendar's mean one.
PERIODS = {"day": 86_400.0, "week": 604_800.0, "year": 31_556_952.0}
#: Unit of the time as a client sends it: Unix seconds, UTC
UNIT = "s since 1970-01-01"
#: Largest magnitude of a time, the year 5138: what is beyond is most likely in milliseconds.
MOST_TIME = 1e11


@dataclass(frozen=True, slots=True)
class Calendar:
    """What is derived from the time that is the last input of a series model.

    features: names of PERIODS; of each the network reads two numbers, behind the other inputs. spacing_s:
    seconds from row to row, by which the time goes on where predictions are fed back.
    """

    features: tuple[str, ...]
    spacing_s: float

    def __post_init__(self) -> None:
        names, spacing = self.features, self.spacing_s
        some = ", ".join(PERIODS)
        if not isinstance(names, list | tuple) or any(name not in PERIODS for name in map(str, names)):
            raise ValueError(f"calendar: features must be a list of some of {some}, not {names!r}")
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"calendar: features must be at least one of {some}, and each once, not {names!r}"
            )
        number = isinstance(spacing, int | float) and not isinstance(spacing, bool)
        if not number or not 0 < spacing < math.inf:
            raise ValueError(f"calendar: spacing_s must be a finite number above 0, not {spacing!r}")
        object.__setattr__(self, "features", tuple(names))  # JSON has lists, and whole numbers
        object.__setattr__(self, "spacing_s", float(spacing))

    @property
    def width(self) -> int:
        """Numbers that the network reads in place of one time."""
        return 2 * len(self.features)

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(f"{name} {wave}" for name in self.features for wave in ("sin", "cos"))

    def of(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Times [...] in Unix seconds to what the network reads of them, [..., width], within -1 to 1."""
        periods = np.array([PERIODS[name] for name in self.features])
        # Without the whole periods, which would cost the sine its last digits
        phase = np.mod(times[..., None], periods) * (2 * math.pi / periods)
        return np.stack((np.sin(phase), np.cos(phase)), -1).reshape(*times.shape, self.width)

    def of_one(self, time: float) -> list[float]:
        """The same of a single time, without numpy, whose calls would cost more than the sines."""
        found = []
        for name in self.features:
            phase = time % PERIODS[name] * (2 * math.pi / PERIODS[name])
            found += [math.sin(phase), math.cos(phase)]
        return found
