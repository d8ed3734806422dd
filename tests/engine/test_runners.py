"""Which runner a machine gets."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from service.engine.arena import Arena
from service.engine.cpu_runner import CpuRunner
from service.engine.runner import Batch, Runner
from service.engine.runners import PRECISIONS, make_runner
from tests.engine.making import CPU, TOLERANCE, Oracle, make_inputs, make_network, make_spec

SPEC = make_spec(hidden=20)


def make(precision: str) -> Runner:
    arena = Arena(2, 4, 20, CPU)
    return make_runner(make_network(SPEC), arena, max_batch=4, precision=precision)


@pytest.fixture
def no_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed: what needs it has not been imported, and cannot be."""
    for name in list(sys.modules):
        if name.startswith(("service.engine.cpu_runner", "service.engine.native.")):
            monkeypatch.delitem(sys.modules, name)
    for name in ("llvmlite", "llvmlite.binding", "llvmlite.ir"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cpu_has_the_native_runner(precision: str, caplog: pytest.LogCaptureFixture) -> None:
    assert type(make(precision)) is CpuRunner
    assert not caplog.records


@pytest.mark.usefixtures("no_llvmlite")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_llvmlite_the_plain_runner_serves_in_float32_and_says_so(
    precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cellstate"):
        runner = make(precision)
    assert type(runner) is Runner
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "llvmlite is not installed" in record.message
    assert "fp32" in record.message
    x = make_inputs(SPEC, 5)
    runner.run(Batch([runner.arena.padding], [0], [x]))
    oracle = Oracle(make_network(SPEC))
    oracle.run(x)
    np.testing.assert_allclose(runner.arena.fetch([0])[0], oracle.state, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("precision", ["fp16", "FP32", ""])
def test_a_precision_that_is_none_is_refused_with_those_there_are(precision: str) -> None:
    with pytest.raises(ValueError, match=r"fp32, bf16, int8, not "):
        make(precision)
