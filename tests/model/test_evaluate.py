"""The manifest's figures are measured again, on the weights as they are stored."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model import bundle as bundles
from model.data import read_series, read_text, split
from model.errors import BundleMalformed, DataError
from model.evaluate import TOLERANCE, compare, evaluate, figures, measure, series_tensors
from model.streaming import targets
from tests.model.making import SHARED_DATA, make_network, make_spec

SHIPPED = Path(bundles.__file__).parent / "bundles"
QUALITY = {"table": {"model": {"mse_1": 0.5, "mae_1": 0.4}}, "in_units": {"a": {"mae_1": 2.0}}}
needs_data = pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data files")


def test_figures_have_dotted_names() -> None:
    assert dict(figures(QUALITY)) == {"model.mse_1": 0.5, "model.mae_1": 0.4, "in_units.a.mae_1": 2.0}
    assert dict(figures({})) == {}


@pytest.mark.parametrize(
    "table", [3, {"model": 3}, {"model": {"mse_1": "small"}}, {"model": {"mse_1": None}}]
)
def test_a_foreign_form_of_quality_is_refused(table: object) -> None:
    with pytest.raises(BundleMalformed, match=r"quality\.table of the manifest"):
        list(figures({"table": table}))


@pytest.mark.parametrize(
    ("value", "differs"),
    [(0.5, False), (0.5 + 4e-4, False), (0.5 + 6e-4, True), (0.5 - 6e-4, True), (math.nan, True)],
)
def test_a_figure_may_differ_by_the_tolerance_and_no_more(value: float, differs: bool) -> None:
    measured: dict[str, Any] = copy.deepcopy(QUALITY)
    measured["table"]["model"]["mse_1"] = value
    assert [d.name for d in compare(QUALITY, measured, 1e-3)] == (["model.mse_1"] if differs else [])


def test_a_figure_that_only_one_side_has_is_a_difference() -> None:
    more: dict[str, Any] = copy.deepcopy(QUALITY)
    more["table"]["seasonal"] = {"mse_1": 1.0}
    assert [(d.name, d.manifest, d.measured) for d in compare(QUALITY, more)] == [
        ("seasonal.mse_1", None, 1.0)
    ]
    assert [(d.name, d.manifest, d.measured) for d in compare(more, QUALITY)] == [
        ("seasonal.mse_1", 1.0, None)
    ]


def test_the_figures_say_what_they_were_measured_on(tmp_path: Path) -> None:
    path = tmp_path / "waves.csv"
    path.write_text("s0,s1\n" + "".join(f"{k % 5},{k % 3}\n" for k in range(100)))
    spec = make_spec(leads=2)
    quality = measure(spec, make_network(spec), read_series(path), split(100, [60, 20, 20]), season=15)
    assert (quality["part"], quality["rows"], quality["windows"]) == ("test", [80, 99], 19)
    assert set(quality["table"]) == {"model", "persistence", "seasonal"}
    # 15 is a whole number of periods of both: the seasonal forecast is right. In their own deviations.
    assert quality["table"]["seasonal"]["mse_2"] == 0
    assert quality["table"]["persistence"]["mse_2"] > 0
    assert set(quality["in_units"]) == {"s0", "s1"}


def test_a_text_in_pieces_is_nearly_the_text_in_one(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc\nab\n" * 400)
    spec = make_spec("text")
    one, many = (
        measure(spec, make_network(spec), read_text(path), split(2800, [0.5, 0.5]), streams=n) for n in (1, 5)
    )
    assert one["predictions"] == 1400
    assert not compare(one, many)


def test_a_bundle_without_its_split_cant_be_measured(tmp_path: Path) -> None:
    from tests.model.making import make_bundle

    path = tmp_path / "waves.csv"
    path.write_text("s0,s1\n" + "".join(f"{k % 5},{k % 3}\n" for k in range(100)))
    with pytest.raises(BundleMalformed, match="does not say how its data was split"):
        evaluate(make_bundle(), path, torch.device("cpu"))
    path.write_text("s0,other\n1,2\n")
    with pytest.raises(DataError, match="no column 's1'"):
        evaluate(make_bundle(), path, torch.device("cpu"))


# --- the shipped bundles --------------------------------------------------------------------------------


@needs_data
def test_the_transformers_figures_are_the_manifests() -> None:
    bundle = bundles.load(SHIPPED / "ett")
    measured, source = evaluate(bundle, SHARED_DATA / "ETTh1.csv", torch.device("cpu"))
    assert source.sha256 == bundle.training["data"]["sha256"]
    assert compare(bundle.quality, measured) == []


@needs_data
def test_shakespeares_figures_are_the_manifests() -> None:
    """In 64 pieces side by side, which is some thirty times faster; within the tolerance all the same."""
    bundle = bundles.load(SHIPPED / "shakespeare")
    measured, source = evaluate(bundle, SHARED_DATA / "tinyshakespeare.txt", torch.device("cpu"), streams=64)
    assert source.sha256 == bundle.training["data"]["sha256"]
    assert compare(bundle.quality, measured, TOLERANCE) == []


def test_the_transformer_beats_both_naive_forecasts() -> None:
    quality = bundles.load(SHIPPED / "ett").quality
    assert (quality["part"], quality["rows"], quality["season"]) == ("test", [11520, 14399], 24)
    table = quality["table"]
    for naive in ("persistence", "seasonal"):
        for figure, value in table["model"].items():
            assert value < table[naive][figure]


def test_the_transformer_beats_the_lstm_of_the_informer_paper_at_every_horizon() -> None:
    """Zhou et al. 2021, table 2, LSTMa: MSE of the same split, normalised in the same way."""
    told = {24: 0.650, 48: 0.702, 168: 1.212, 336: 1.424, 720: 1.960}
    table = bundles.load(SHIPPED / "ett").quality["table"]["model"]
    assert all(table[f"mse_{k}"] < 0.5 * mse for k, mse in told.items())


def test_the_transformers_quantiles_cover_what_they_say() -> None:
    table = bundles.load(SHIPPED / "ett").quality["table"]
    for level in (0.1, 0.5, 0.9):
        for k in (24, 48, 96, 168, 336, 720):
            assert table[f"quantile_{level}"][f"coverage_{k}"] == pytest.approx(level, abs=0.03)


@needs_data
def test_the_transformers_state_stays_bounded_and_its_quality_holds() -> None:
    """Three passes over the rows in one stream, 43,200 steps: the last forecasts as the first did."""
    bundle = bundles.load(SHIPPED / "ett")
    network = bundle.network()
    data = read_series(SHARED_DATA / "ETTh1.csv", [s.name for s in bundle.spec.inputs])
    x, outputs = series_tensors(data, bundle.spec)
    rows = torch.arange(11519, 13680, 24)
    truth = targets(outputs, rows, 720)
    state, errors, largest = None, [], []
    with torch.no_grad():
        for _ in range(3):
            top, state = network.lstm(x[:14400, None], state)
            errors.append((network.head(top[rows, 0]) - truth).square().mean().item())
            largest.append(top.abs().max().item())
    assert errors[0] == pytest.approx(bundle.quality["table"]["model"]["mse_720"], rel=0.05)
    assert errors[2] == pytest.approx(errors[0], rel=1e-4)
    assert max(largest) < 1


@pytest.mark.parametrize("name", ["ett", "shakespeare"])
def test_the_documentation_shows_the_manifests_figures_and_command(name: str) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    bundle = bundles.load(SHIPPED / name)
    for row in bundle.quality["table"].values():
        for figure, value in row.items():
            share = figure == "accuracy" or figure.startswith("coverage")
            assert (f"{100 * value:.1f}" if share else f"{value:.3f}") in page
    assert bundle.training["command"] in page.replace(" \\\n  ", " ")
    assert bundle.training["data"]["sha256"] in page


def test_shakespeare_is_as_good_as_promised() -> None:
    quality = bundles.load(SHIPPED / "shakespeare").quality
    assert quality["part"] == "validation"
    assert quality["table"]["model"]["nats_per_character"] <= 1.39


@needs_data
def test_other_weights_would_be_noticed() -> None:
    """One bias moved a little: the comparison must see it."""
    bundle = bundles.load(SHIPPED / "ett")
    network = bundle.network()
    with torch.no_grad():
        network.head.bias.add_(0.02)
    data = read_series(SHARED_DATA / "ETTh1.csv", [s.name for s in bundle.spec.inputs])
    parts = split(len(data.values), [8640, 2880, 2880])
    assert compare(bundle.quality, measure(bundle.spec, network, data, parts, 24))
