"""What a bundle is run over: the rows of a data file, or, without one, input that it or a formula makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model.bundle import Bundle
from model.config import ModelSpec
from model.data import Series, Text
from model.errors import BundleMalformed, DataError
from model.evaluate import read_data, series_tensors, split_of
from model.network import Network

#: Rows that are measured, and rows that run before them from a zero state, at most.
STEPS, WARM = 4096, 512
#: Multiply-adds of the run, about: a very wide network runs over fewer rows, but not fewer than these.
WORK, FEWEST = 5e10, 256
#: Rows of the pictures: of a series (or whole seasons near that), of a text; and of the coloured text.
SERIES_SPAN, TEXT_SPAN, READ_SPAN = 200, 96, 400
#: Fewer rows than this say nothing.
LEAST = 64
SEED = 0


@dataclass(frozen=True)
class Subject:
    """The run. All rows count from 0 at its beginning.

    x: prepared steps [T, I] or tokens [T]. first: the row of the file that row 0 is; 0 without a file. warm:
    rows before those that are measured. kept: rows whose gates are kept, the last ones; shown: how many of
    them, from their start, the pictures have. told: where the rows come from. features [T, F] with their
    names: what the cells are compared with. text: the characters of a text. file: the
    data file's name, if there is one.
    """

    x: Tensor
    first: int
    warm: int
    kept: range
    shown: int
    told: str
    features: Tensor
    names: tuple[str, ...]
    text: str = ""
    file: str = ""


def subject(bundle: Bundle, network: Network, path: Path | None) -> Subject:
    """Chooses and prepares the rows. Raises DataError for a file that can't be read, or is too short, and for
    a watch model, whose inputs no file has."""
    if bundle.spec.rules is not None:
        raise DataError(f"{bundle.name} is a watch model; series and text models can be explained")
    if bundle.spec.architecture.task == "text":
        return _text(bundle, network, path)
    return _series(bundle, path)


def lstm_weights(bundle: Bundle) -> int:
    """Number of weights that one step multiplies by, apart from the head's."""
    return sum(w.numel() for name, w in bundle.weights.items() if name.startswith("lstm.weight"))


def _lengths(bundle: Bundle) -> tuple[int, int]:
    """Rows to measure and to warm up with, at most."""
    steps = min(STEPS, max(FEWEST, int(WORK / lstm_weights(bundle))))
    return steps, min(WARM, steps // 2)


def _series(bundle: Bundle, path: Path | None) -> Subject:
    season = _season(bundle)
    if path is None:
        steps, warm = _lengths(bundle)
        x, first = _made(bundle.spec, steps + warm, season or 24), 0
        told = (
            f"Synthetic input, as no data was given: each input is a sine of period {season or 24}, a slower "
            f"one of period {7 * (season or 24)} and autoregressive noise, about normal (seed {SEED})."
        )
    else:
        data = cast(Series, read_data(bundle, path))
        inputs, _ = series_tensors(data, bundle.spec)
        first, measured, stop, part = _window(bundle, path, len(inputs))
        x, warm = inputs[first:stop], measured - first
        told = (
            f"{data.source.file}, rows {measured:,} to {stop - 1:,}{part}; the {warm:,} before them warm up."
        )
    span = SERIES_SPAN
    if season:
        span = season * max(1, round(SERIES_SPAN / season))
    span = min(span, len(x) - warm, 2 * SERIES_SPAN)
    features, names = _series_features(bundle, x, season, first)
    file = "" if path is None else path.name
    return Subject(x, first, warm, range(len(x) - span, len(x)), span, told, features, names, file=file)


def _text(bundle: Bundle, network: Network, path: Path | None) -> Subject:
    vocabulary = bundle.spec.vocabulary
    if path is None:
        steps, warm = _lengths(bundle)
        tokens, first = _generate(network, steps + warm), 0
        told = f"Text that the model wrote itself, as no data was given (temperature 1, seed {SEED})."
    else:
        data = cast(Text, read_data(bundle, path))
        all_tokens = torch.from_numpy(data.tokens(vocabulary))
        first, measured, stop, part = _window(bundle, path, len(all_tokens))
        tokens, warm = all_tokens[first:stop], measured - first
        told = (
            f"{data.source.file}, characters {measured:,} to {stop - 1:,}{part}; "
            f"the {warm:,} before them warm up."
        )
    text = "".join(vocabulary[token] for token in tokens.tolist())
    start = max(warm, len(text) - READ_SPAN)
    line = text.find("\n", start, start + READ_SPAN // 4) + 1  # to begin with a line reads better
    kept = range(line or start, len(text))
    shown = min(TEXT_SPAN, len(kept))
    features, names = _text_features(text)
    file = "" if path is None else path.name
    return Subject(tokens, first, warm, kept, shown, told, features, names, text, file)


def _window(bundle: Bundle, path: Path, rows: int) -> tuple[int, int, int, str]:
    """First row that is run, first that is measured, end, and the part's name: of the part that the quality
    figures are of, if this file has it; else of the file's end."""
    if rows < LEAST:
        raise DataError(f"{path}: {rows} rows; at least {LEAST} are needed to see anything")
    start, stop, name = 0, rows, ""
    try:
        part, measured = split_of(bundle, rows).measured
    except (BundleMalformed, DataError):  # another file than the one it was trained on: any rows will do
        pass
    else:
        if len(measured) >= LEAST:
            start, stop, name = measured.start, measured.stop, f" (of the {part} part)"
    steps, warm = _lengths(bundle)
    start = max(start, stop - steps)
    if start == 0:
        start = min(warm, rows // 4)  # the memory has to fill before it is measured
    return max(0, start - warm), start, stop, name


def _season(bundle: Bundle) -> int:
    season = bundle.quality.get("season")
    return season if isinstance(season, int) and 2 <= season <= 10_000 else 0


def _made(spec: ModelSpec, T: int, period: int) -> Tensor:
    """What the network reads [T, I]: made of formulas, and of times from the mean of the training's on."""
    x = _synthetic(T, len(spec.measured), period)
    if spec.calendar is None or spec.time is None:
        return x
    times = np.asarray(spec.time.mean + spec.calendar.spacing_s * np.arange(T), np.float64)
    return torch.cat((x, torch.from_numpy(spec.calendar.of(times)).float()), 1)


def _synthetic(T: int, inputs: int, period: int) -> Tensor:
    """[T, inputs], about normal: two sines with random phases and AR(1) noise."""
    generator = torch.Generator().manual_seed(SEED)
    t = torch.arange(T, dtype=torch.float64)[:, None]
    phases = 2 * math.pi * torch.rand(2, inputs, dtype=torch.float64, generator=generator)
    noise = torch.randn(T, inputs, dtype=torch.float64, generator=generator)
    for k in range(1, T):
        noise[k] = 0.9 * noise[k - 1] + math.sqrt(1 - 0.9**2) * noise[k]
    fast, slow = (
        (2 * math.pi * t / p + phase).sin() for p, phase in zip((period, 7 * period), phases, strict=True)
    )
    mixed: Tensor = fast + 0.5 * slow + 0.6 * noise
    return mixed.float()


@torch.no_grad()
def _generate(network: Network, length: int) -> Tensor:
    """Tokens [length], sampled from the model, from a new line on if it knows one."""
    generator = torch.Generator().manual_seed(SEED)
    token = torch.tensor(max(0, network.spec.vocabulary.find("\n")))
    tokens, state = [token], None
    for _ in range(length - 1):
        y, state = network(token[None, None], state)
        token = torch.multinomial(y[0, 0, 0].exp(), 1, generator=generator)[0]
        tokens.append(token)
    return torch.stack(tokens)


def _series_features(bundle: Bundle, x: Tensor, season: int, first: int) -> tuple[Tensor, tuple[str, ...]]:
    """The inputs themselves, and the phase of the season as cosine and sine."""
    features, names = [x], [f"the input {name}" for name in bundle.spec.columns]
    if season:
        phase = 2 * math.pi * torch.arange(first, first + len(x), dtype=torch.float64) / season
        features.append(torch.stack((phase.cos(), phase.sin()), 1).float())
        names += [f"the season of {season} steps (cosine)", f"the season of {season} steps (sine)"]
    return torch.cat(features, 1), tuple(names)


def _text_features(text: str) -> tuple[Tensor, tuple[str, ...]]:
    """Plain facts about each character's place, as Karpathy et al. (2015) looked for."""
    line, word, rows = 0, 0, []
    for character in text:
        line = 0 if character == "\n" else line + 1
        word = word + 1 if character.isalpha() else 0
        rows.append(
            (
                line,
                word,
                character.isupper(),
                character.isspace(),
                character.lower() in "aeiou",
                character == "\n",
            )
        )
    names = (
        "the place in the line",
        "the place in the word",
        "capital letters",
        "white space",
        "vowels",
        "the end of a line",
    )
    return torch.tensor(rows, dtype=torch.float32), names
