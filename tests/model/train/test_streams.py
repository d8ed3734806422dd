"""The training part is cut into contiguous streams: every window goes on where the one before ended."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from model.streaming import targets
from model.train.options import Options
from model.train.streams import SeriesData, TextData
from tests.model.making import make_network, make_prepared, make_spec


def make_series(rows: int, options: Options, leads: int = 3, start: int = 0) -> SeriesData:
    """A series whose value is its row number."""
    x = torch.arange(float(start + rows + 10))[:, None]
    train = range(start, start + rows)
    return SeriesData(x, x, (0,), leads, train, range(train.stop, train.stop + 10), options)


@given(
    rows=st.integers(40, 600), streams=st.integers(1, 6), window=st.integers(1, 50), epoch=st.integers(0, 5)
)
def test_windows_are_contiguous_and_stay_inside_the_part(
    rows: int, streams: int, window: int, epoch: int
) -> None:
    data = make_series(rows, Options(streams=streams, window=window), leads=3, start=5)
    windows = list(data.epoch(torch.Generator().manual_seed(epoch)))
    assert len(windows) == data.windows
    x = torch.cat([x for x, _ in windows])[:, :, 0]  # [T, B]
    y = torch.cat([y for _, y in windows])[..., 0]  # [T, B, leads]
    assert (x.diff(dim=0) == 1).all()  # each stream goes on without a gap
    assert torch.equal(y, x[..., None] + torch.tensor([1.0, 2.0, 3.0]))
    assert x.min() >= 5
    assert y.max() < 5 + rows  # nothing of the validation part is learnt from
    assert len(set(x.flatten().tolist())) == x.numel()  # no row twice
    assert x.numel() >= 0.75 * (rows - 3) - streams
    sizes = [len(x) for x, _ in windows]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(1, 1.5 * window + 1)


def test_the_offset_changes_from_epoch_to_epoch_and_with_the_generator_alone() -> None:
    data = make_series(400, Options(streams=4, window=20))
    starts = [next(data.epoch(torch.Generator().manual_seed(k)))[0][0, 0, 0].item() for k in range(8)]
    assert len(set(starts)) > 3
    again = [next(data.epoch(torch.Generator().manual_seed(k)))[0][0, 0, 0].item() for k in range(8)]
    assert starts == again


def test_a_text_predicts_the_character_after() -> None:
    tokens = torch.arange(100) % 7
    data = TextData(tokens, range(80), range(80, 100), Options(streams=3, window=8))
    for x, y in data.epoch(torch.Generator().manual_seed(0)):
        assert torch.equal((x + 1) % 7, y)


def test_too_little_data_for_the_streams() -> None:
    with pytest.raises(DataError, match="20 rows of training can't be cut into 30 streams"):
        make_series(20, Options(streams=30))


def test_a_shifted_and_scaled_signal_keeps_its_targets() -> None:
    """Output 0 is input 1 and moves with it; output 1 is no input and stays."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    outputs = torch.stack((x[:, 1], torch.arange(200.0)), 1)
    options = Options(streams=4, window=10, shift=2.0, scale=0.5)
    data = SeriesData(x, outputs, (1, None), 2, range(150), range(150, 200), options)
    plain = SeriesData(x, outputs, (1, None), 2, range(150), range(150, 200), Options(streams=4, window=10))
    factors, levels = [], []
    for (a, target_a), (b, target_b) in zip(
        data.epoch(torch.Generator().manual_seed(3)),
        plain.epoch(torch.Generator().manual_seed(3)),
        strict=True,
    ):
        torch.testing.assert_close(target_a[..., 1], target_b[..., 1])
        # target 0 of a row is input 1 of the next row, moved or not
        torch.testing.assert_close(target_a[:-1, :, 0, 0], a[1:, :, 1])
        torch.testing.assert_close(target_b[:-1, :, 0, 0], b[1:, :, 1])
        factor = (a[1] - a[0]) / (b[1] - b[0])  # [B, I]
        factors.append(factor)
        levels.append(a[0] - factor * b[0])
    for rows in (factors, levels):
        torch.testing.assert_close(rows[0], rows[-1], atol=1e-3, rtol=1e-3)  # held for the whole epoch
        assert len(set(rows[0].flatten().tolist())) == 8  # each signal of each stream has its own
    assert (factors[0] > 0).all()


def test_noise_is_on_the_inputs_alone() -> None:
    options = Options(streams=4, window=10, noise=0.1)
    noisy = make_series(200, options).epoch(torch.Generator().manual_seed(1))
    for x, y in noisy:
        assert 0.02 < (x - x.round()).std() < 0.2
        assert torch.equal(y, y.round())


def test_what_tells_the_time_is_neither_moved_nor_blurred() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    options = Options(streams=4, window=10, noise=0.5, shift=2.0, scale=0.5)
    moved, plain = (
        SeriesData(x, x[:, :2], (0, 1), 2, range(150), range(150, 200), how, 2)
        for how in (options, Options(streams=4, window=10))
    )
    for (a, target), (b, _) in zip(
        *(data.epoch(torch.Generator().manual_seed(3)) for data in (moved, plain)), strict=True
    ):
        assert torch.equal(a[..., 2:], b[..., 2:])
        assert (a[..., :2] != b[..., :2]).all()
        assert target.shape[-1] == 2


@pytest.mark.parametrize(("name", "expected"), [("mse", 4.5), ("mae", 1.5), ("huber", 1.25)])
def test_the_loss_can_be_chosen(name: str, expected: float) -> None:
    """Errors of 0 and 3: squares 0 and 9; absolutes 0 and 3; huber 0 and 3 - 1/2."""
    data = make_series(200, Options(streams=4, window=10, loss=name))
    y, target = torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0, 1.0]])
    assert data.loss(y, target).item() == pytest.approx(expected)


@pytest.mark.parametrize("task", ["series", "text"])
def test_validation_is_the_loss_over_exactly_the_validation_part(task: str) -> None:
    spec = make_spec(task, leads=2)
    network = make_network(spec)
    x = make_prepared(spec, 120)
    with torch.no_grad():
        y, _ = network(x[:, None])
    if task == "series":
        series = SeriesData(x, x, (0, 1), 2, range(80), range(80, 120), Options(streams=2))
        rows = torch.arange(79, 118)
        expected = (y[79:118, 0] - targets(x, rows, 2)).square().mean().item()
        assert series.validate(network) == pytest.approx(expected, rel=1e-5)
    else:
        text = TextData(x, range(80), range(80, 120), Options(streams=2))
        expected = -y[79:119, 0, 0].gather(1, x[80:, None]).mean().item()
        assert text.validate(network) == pytest.approx(expected, rel=1e-3)  # in pieces with short memories


def test_rows_before_the_streams_come_first_and_have_no_targets() -> None:
    data = make_series(400, Options(streams=4, window=20, past=50))
    (past, nothing), (x, y), *_ = data.epoch(torch.Generator().manual_seed(1))
    assert past.shape == (50, 4, 1)
    assert nothing.numel() == 0
    assert y.numel() > 0
    assert torch.equal(past[-1, 1:], x[0, 1:] - 1)
    assert past.min() == 0  # before the first row there is none: it stands for them
