"""The input that a bundle is looked at with: a part of a file, or input made for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.errors import DataError
from model.explain.subject import STEPS, WARM, Subject, lstm_weights, subject
from tests.model.making import make_bundle, make_spec


def of(path: Path | None, task: str = "series", split: dict[str, int] | None = None) -> Subject:
    bundle = replace(make_bundle(make_spec(task)), training={"split": split} if split else {})
    return subject(bundle, bundle.network(), path)


def write_series(path: Path, rows: int) -> Path:
    path.write_text("s0,s1\n" + "".join(f"{k},{k % 3}\n" for k in range(rows)))
    return path


def test_the_measured_part_of_the_file_is_run_after_rows_that_warm_up(tmp_path: Path) -> None:
    split = {"train": 600, "validation": 200, "test": 200}
    on = of(write_series(tmp_path / "waves.csv", 1000), split=split)
    assert (on.first, on.first + on.warm, on.first + len(on.x)) == (800 - WARM, 800, 1000)
    assert on.kept == range(len(on.x) - 200, len(on.x))
    assert "waves.csv, rows 800 to 999 (of the test part)" in on.told
    assert on.x[on.warm, 0].item() == 800  # s0 has mean 0 and deviation 1
    torch.testing.assert_close(on.features, on.x)


def test_a_file_that_is_not_the_trainings_is_run_to_its_end(tmp_path: Path) -> None:
    split = {"train": 600_000, "validation": 200_000, "test": 0}
    for known in (None, split):
        on = of(write_series(tmp_path / "waves.csv", 100), split=known)
        assert (on.first, on.warm, len(on.x)) == (0, 25, 100)
        assert on.kept.stop == 100


def test_a_long_part_is_cut_to_its_newest_rows(tmp_path: Path) -> None:
    on = of(write_series(tmp_path / "waves.csv", STEPS + 2000))
    assert (len(on.x) - on.warm, on.warm, on.first) == (STEPS, WARM, 2000 - WARM)


def test_a_text_tells_its_characters_and_their_places(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc\nab\n" * 100)
    on = of(path, "text")
    assert on.text == ("abc\nab\n" * 100)[on.first :]
    assert on.text[on.kept.start - 1] == "\n"
    place, word = on.features[:, 0].tolist(), on.features[:, 1].tolist()
    assert place[:8] == word[:8] == [1, 2, 3, 0, 1, 2, 0, 1]


def test_without_a_file_the_input_is_made_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.explain.subject.STEPS", 300)
    for task in ("series", "text"):
        first, again = of(None, task), of(None, task)
        assert torch.equal(first.x, again.x)
        assert len(first.x) == 300 + 150
        assert first.file == ""
    assert "Synthetic input" in of(None).told
    assert "wrote itself" in of(None, "text").told


def test_a_calendar_is_among_the_inputs_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.explain.subject.STEPS", 300)
    path = tmp_path / "waves.csv"
    path.write_text("time,s0,s1\n" + "".join(f"{3600 * k},{k},{k % 3}\n" for k in range(300)))
    bundle = make_bundle(make_spec(calendar=("day",)))
    for on in (subject(bundle, bundle.network(), each) for each in (None, path)):
        assert on.names == ("the input s0", "the input s1", "the input day sin", "the input day cos")
        waves = on.x[:, 2:]
        torch.testing.assert_close(waves.square().sum(1), torch.ones(len(on.x)))
        torch.testing.assert_close(waves[24:], waves[:-24], atol=1e-5, rtol=0)
        assert waves.std() > 0.5


def test_a_very_wide_network_runs_over_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = lstm_weights(make_bundle(make_spec()))
    assert weights == 20 * (2 + 5 + 5 + 5)
    monkeypatch.setattr("model.explain.subject.WORK", 400 * weights)
    on = of(None)
    assert (len(on.x) - on.warm, on.warm) == (400, 200)


def test_what_cant_be_looked_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 rows; at least 64"):
        of(write_series(tmp_path / "waves.csv", 5))
    (tmp_path / "text.txt").write_text("abc?" * 100)
    with pytest.raises(DataError, match=r"line 1, column 4: the model does not know '\?'"):
        of(tmp_path / "text.txt", "text")
    with pytest.raises(DataError, match="No such file"):
        of(tmp_path / "gone.csv")
