"""A long run through one session: every pass is measured, and what drifts is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtests.million_steps import Pass, faults, passes, rows_of, table
from model.bundle import Bundle
from model.reference import Reference
from tests.model.making import make_bundle, make_spec

GOOD = Pass(0.1, 0.3, 0.5)


def make_subject(tmp_path: Path, task: str) -> tuple[Bundle, Path]:
    """A random model, and data whose last 100 rows it is measured on."""
    path = tmp_path / "data"
    path.write_text(
        "abc\nab\n" * 100 if task == "text" else "s0,s1\n" + "".join(f"{k % 5},{k % 3}\n" for k in range(700))
    )
    sizes = {"train": 600, "validation": 100}
    return replace(make_bundle(make_spec(task)), training={"split": sizes, "data": {}}), path


def test_rows_with_a_calendar_are_prepared_of_their_times(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("time,s0,s1\n" + "".join(f"{3600 * k},{k % 5},{k % 3}\n" for k in range(700)))
    sizes = {"train": 600, "validation": 100}
    bundle = replace(make_bundle(make_spec(calendar=("day",))), training={"split": sizes, "data": {}})
    rows = rows_of(bundle, path)
    assert rows.prepared.shape == (100, 4)
    np.testing.assert_allclose(rows.prepared[:, 3], np.cos(np.arange(600, 700) * np.pi / 12), atol=1e-6)
    assert len(passes(bundle, rows, 100, "fp32")) == 1


@pytest.mark.parametrize("task", ["series", "text"])
def test_every_pass_is_the_reference_that_goes_on(tmp_path: Path, task: str) -> None:
    bundle, path = make_subject(tmp_path, task)
    rows = rows_of(bundle, path)
    assert len(rows.prepared) == 100
    seen = passes(bundle, rows, 250, "fp32")
    assert len(seen) == 3
    reference = Reference(bundle.spec, {name: tensor.numpy() for name, tensor in bundle.weights.items()})
    for each in seen:
        said = reference.run(rows.prepared)
        came = rows.after(0, 100)
        if rows.std is None:
            expected = -said[np.arange(100), came.astype(np.int64)].mean()
        else:
            mean = [s.mean for s in bundle.spec.outputs]
            expected = np.square(said - (came.astype(np.float64) - mean) / rows.std).mean()
        assert each.next_step == pytest.approx(expected, rel=1e-5)
        assert each.largest == pytest.approx(max(abs(reference.h).max(), abs(reference.c).max()), rel=1e-5)
    assert len(table(seen, 100)) == 4
    assert faults(seen, 1e-3) == []


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (replace(GOOD, next_step=0.2), "the second had 0.10000"),
        (replace(GOOD, ahead=0.4), "ahead 0.40000"),
        (replace(GOOD, largest=0.6), "has grown"),
        (replace(GOOD, next_step=float("nan")), "not finite"),
    ],
)
def test_what_drifts_is_told(last: Pass, why: str) -> None:
    assert faults([GOOD] * 5, 1e-3) == []
    (fault,) = faults([*[GOOD] * 4, last], 1e-3)
    assert fault.startswith("pass 5:")
    assert why in fault
