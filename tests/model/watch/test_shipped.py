"""The shipped watch model is what its manifest says."""

from __future__ import annotations

import numpy as np
import pytest

from model import bundle as bundles
from model.watch import nab
from model.watch.commands import SHIPPED
from model.watch.detector import judged, watcher_of
from tests.model.making import SHARED_DATA
from tests.model.watch.making import make_series

PUBLISHED = {"earthgeckoSkyline": 58.20}


def test_it_is_as_good_as_promised() -> None:
    table = bundles.load(SHIPPED).quality["table"]
    assert table["all"]["standard"] >= 60
    assert table["all"]["standard"] > table["without LSTM"]["standard"]
    assert table["held out"]["standard"] > PUBLISHED["earthgeckoSkyline"]
    assert table["at 0.5"]["standard"] > PUBLISHED["earthgeckoSkyline"]


def test_on_a_directory_of_the_benchmark_it_finds_what_the_manifest_says() -> None:
    """The whole benchmark takes `evaluate` half a minute."""
    if not (SHARED_DATA / "nab").exists():
        pytest.skip("the Numenta Anomaly Benchmark is not here")
    bundle, benchmark = bundles.load(SHIPPED), nab.read(SHARED_DATA / "nab")
    streams = [stream for stream in benchmark.streams if stream.directory == "realAdExchange"]
    network, watcher = bundle.network(), watcher_of(bundle)
    scores = [judged(watcher, network, stream.values.tolist())[:, 1] for stream in streams]
    threshold = bundle.quality["table"]["threshold"]["standard"] * (1 - 1e-6)
    found = nab.score(streams, scores, benchmark.profiles[0], threshold)
    told = bundle.quality["directories"]["realAdExchange"]
    assert sum(map(sum, found.found)) == told["found"]
    assert sum(found.false) == told["false alarms"]


def test_it_expects_a_wave_and_tells_where_the_level_changes() -> None:
    bundle, values = bundles.load(SHIPPED), make_series(600)
    found = judged(watcher_of(bundle), bundle.network(), values)
    assert found[300, 1] > 0.5
    assert np.median(found[100:300, 0]) < 1  # most values are none of the least likely tenth
