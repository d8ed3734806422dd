"""What wrk's scripts print."""

from __future__ import annotations

import pytest

from loadtests.wrk import WrkFailed, parse

PRINTED = """Running 1s test @ http://127.0.0.1:8000
  1 threads and 2 connections
RESULT {"requests":4,"seconds":1.5,"p50_us":100,"p99_us":9000,"errors":1,"latencies":[[100,3],[9000,1]]}
"""


def test_a_result_is_read() -> None:
    found = parse(PRINTED)
    assert (found.requests, found.seconds, found.errors) == (4, 1.5, 1)
    assert found.latency.count == 4
    assert found.latency.quantile(0.5) == pytest.approx(1e-4, rel=0.01)
    assert found.latency.max == pytest.approx(9e-3)


@pytest.mark.parametrize("printed", ["", "unable to connect", "RESULT {", 'RESULT {"requests":1}'])
def test_what_is_no_result_is_told(printed: str) -> None:
    with pytest.raises(WrkFailed):
        parse(printed)
