"""A committed request as bytes: what is read back is what was said, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from service.api.render import Renderer
from service.sessions import record
from service.sessions.replies import PLAIN, Options, Reply

RNG = np.random.default_rng(0)
OUTPUTS = RNG.standard_normal((3, 2))
FORECAST = RNG.standard_normal((5, 2))
QUANTILES = {level: FORECAST[:4] + n for n, level in enumerate(("0.1", "0.5", "0.9"))}
REPLIES = {
    "plain": Reply("a", 4, 7, OUTPUTS),
    "a forecast": Reply("a", 4, 7, OUTPUTS, Options(horizon=5), FORECAST),
    "with quantiles": Reply("a", 4, 7, OUTPUTS, Options(horizon=5), FORECAST, QUANTILES),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_reply_that_was_kept_is_written_as_the_same_bytes(reply: Reply) -> None:
    raw, again = record.decode(record.encode(b"inputs", reply), "a")
    assert raw == b"inputs"
    assert (again.options, again.step, again.next_step) == (reply.options, reply.step, reply.next_step)
    assert Renderer(2).reply(again) == Renderer(2).reply(reply)


def test_quantiles_are_written_by_level_behind_the_forecast() -> None:
    text = Renderer(1).reply(
        Reply("a", 0, 1, np.ones((1, 1)), Options(horizon=1), np.ones((1, 1)), {"0.9": np.full((1, 1), 2.5)})
    )
    assert text.endswith(b'"forecast":[[1]],"quantiles":{"0.9":[[2.5]]},"replayed":false}')


def test_a_reply_without_quantiles_has_none() -> None:
    _, again = record.decode(record.encode(b"", REPLIES["a forecast"]), "a")
    assert again.quantiles is None
    assert again.options != PLAIN
