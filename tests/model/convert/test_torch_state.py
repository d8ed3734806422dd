"""A foreign nn.LSTM becomes a bundle's weights, or a ConversionError says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model import bundle
from model.config import Architecture
from model.convert import from_torch
from model.errors import ConversionError
from model.lstm import StackedLSTM


def make_foreign(layers: int = 2, bias: bool = True, **options: bool | int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"rnn": nn.LSTM(3, 8, layers, bias=bias, **options), "out": nn.Linear(8, 4)}
    ).state_dict()


def make_architecture(
    layers: int = 2, input_size: int = 3, hidden_size: int = 8, leads: int = 1
) -> Architecture:
    return Architecture("series", input_size, hidden_size, layers, 4, leads)


def convert(state: dict[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    return from_torch(state, arch, lstm="rnn", head="out")


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_layers_with_and_without_bias(layers: int, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    foreign = nn.ModuleDict({"rnn": nn.LSTM(3, 8, layers, bias=bias), "out": nn.Linear(8, 4)}).to(dtype)
    arch = make_architecture(layers)
    weights = convert(foreign.state_dict(), arch)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == arch.shapes()
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    ours = StackedLSTM(3, 8, layers)
    ours.load_state_dict({k.removeprefix("lstm."): v for k, v in weights.items() if k.startswith("lstm.")})
    x = torch.randn(12, 5, 3)
    with torch.no_grad():
        expected, (h, c) = foreign.float().get_submodule("rnn")(x)
        top, state = ours(x)
    torch.testing.assert_close(top, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(state, (h, c), atol=2e-6, rtol=0)
    torch.testing.assert_close(weights["head.weight"], foreign.state_dict()["out.weight"].float())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_is_folded_into_what_reads_it(layers: int, bias: bool) -> None:
    """The outputs, are those of the projected LSTM; c is the same, h the one before the projection."""
    torch.manual_seed(0)
    lstm, head = nn.LSTM(3, 8, layers, bias=bias, proj_size=5), nn.Linear(5, 4)
    foreign = nn.ModuleDict({"rnn": lstm, "out": head})
    weights = convert(foreign.state_dict(), make_architecture(layers))
    ours = StackedLSTM(3, 8, layers)
    ours.load_state_dict({k.removeprefix("lstm."): v for k, v in weights.items() if k.startswith("lstm.")})
    x = torch.randn(40, 5, 3)
    with torch.no_grad():
        expected, (projected, c) = lstm(x)
        top, (h, ours_c) = ours(x)
        torch.testing.assert_close(
            top @ weights["head.weight"].T + weights["head.bias"], head(expected), atol=1e-5, rtol=0
        )
        for k in range(layers):
            torch.testing.assert_close(
                h[k] @ lstm.get_parameter(f"weight_hr_l{k}").T, projected[k], atol=1e-5, rtol=0
            )
    torch.testing.assert_close(ours_c, c, atol=1e-5, rtol=0)


def test_a_text_model_brings_its_embedding() -> None:
    foreign = nn.ModuleDict({"lstm": nn.LSTM(3, 8), "head": nn.Linear(8, 4), "embedding": nn.Embedding(4, 3)})
    weights = from_torch(foreign.state_dict(), Architecture("text", 3, 8, 1, 4))
    torch.testing.assert_close(weights["embedding.weight"], foreign.state_dict()["embedding.weight"])


def test_the_example_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "training.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    net = nn.ModuleDict({"rnn": nn.LSTM(2, 64, 2), "out": nn.Linear(64, 1)})
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/training.md", "exec"), {"net": net})
    assert [s.name for s in bundle.load(tmp_path / "bundles" / "plant").spec.inputs] == ["flow", "heat"]


def test_the_weights_are_copies() -> None:
    state = make_foreign()
    weights = convert(state, make_architecture())
    before = weights["head.bias"].clone()
    state["out.bias"].fill_(7)
    torch.testing.assert_close(weights["head.bias"], before)


@pytest.mark.parametrize(
    ("state", "arch", "message"),
    [
        ({"other.weight": torch.zeros(1)}, make_architecture(), "no rnn.*; it has .'other.weight'"),
        (make_foreign(bidirectional=True), make_architecture(), "bidirectional"),
        (make_foreign(proj_size=4), make_architecture(), r"out.weight is \[4, 8\], must be \[4, 4\]"),
        (make_foreign(3), make_architecture(2), "has 3 layers, the architecture says 2"),
        (make_foreign(), make_architecture(hidden_size=9), r"weight_ih_l0 is \[32, 3\], must be \[36, 3\]"),
        (make_foreign(), make_architecture(input_size=2), r"weight_ih_l0 is \[32, 3\], must be \[32, 2\]"),
        (make_foreign(), make_architecture(leads=2), r"out.weight is \[4, 8\], must be \[8, 8\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    state: dict[str, Tensor], arch: Architecture, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(state, arch)


@pytest.mark.parametrize("missing", ["rnn.weight_hh_l1", "rnn.weight_ih_l0", "out.weight"])
def test_a_missing_tensor_is_named(missing: str) -> None:
    state = make_foreign()
    del state[missing]
    with pytest.raises(ConversionError, match=r"layers|has no"):
        convert(state, make_architecture())


def test_a_head_without_bias_has_a_bias_of_zero() -> None:
    state = make_foreign()
    del state["out.bias"]
    assert not convert(state, make_architecture())["head.bias"].any()


def test_a_wrong_bias_is_refused() -> None:
    state = make_foreign()
    state["rnn.bias_ih_l1"] = torch.zeros(5)
    with pytest.raises(ConversionError, match="bias_ih_l1"):
        convert(state, make_architecture())


def test_numbers_that_are_not_finite_are_refused() -> None:
    state = make_foreign()
    state["rnn.weight_hh_l0"][0, 0] = float("nan")
    with pytest.raises(ConversionError, match=r"rnn\.weight_hh_l0 holds a number that is not finite"):
        convert(state, make_architecture())


@pytest.mark.parametrize("present", ["gru", "rnn_tanh"])
def test_other_recurrent_networks_are_refused(present: str) -> None:
    module = nn.GRU(3, 8) if present == "gru" else nn.RNN(3, 8)
    state = nn.ModuleDict({"rnn": module, "out": nn.Linear(8, 4)}).state_dict()
    with pytest.raises(ConversionError, match=r"weight_ih_l0 is \[(24|8), 3\]"):
        convert(state, make_architecture(1))
