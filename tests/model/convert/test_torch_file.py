"""Checkpoints of torch: what is found in them, what is asked for, and what is refused."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.model.convert.making import bring, brought, make_net, outputs, run

State = dict[str, Tensor]
X = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(1))


def state(**modules: nn.Module) -> State:
    torch.manual_seed(0)
    return nn.ModuleDict(modules).state_dict()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"layers": 1}, {"layers": 3, "proj_size": 5}, {"bias": False, "proj_size": 2}],
)
def test_a_checkpoint_gives_what_the_module_gives(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    net = make_net(**options)
    torch.save(net.state_dict(), "net.pt")
    assert bring("net.pt") == 0
    np.testing.assert_allclose(outputs(brought(), X.numpy())[:, :, 0], run(net, X), atol=1e-5, rtol=0)
    shown = capsys.readouterr().out
    assert "rnn.weight_hh_l0" in shown
    assert "largest difference" in shown
    imported = brought().training["imported"]
    assert imported["file"] == "net.pt"
    assert 0 <= imported["largest_difference"] < 1e-5


def test_a_text_model_and_safetensors() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {"embed": nn.Embedding(4, 3), "rnn": nn.LSTM(3, 8, batch_first=True), "out": nn.Linear(8, 4)}
    )
    save_file(net.state_dict(), "net.safetensors")
    Path("letters.json").write_text('{"a": 0, "b": 1, " ": 2, "\\n": 3}')
    assert bring("net.safetensors", "--vocabulary", "letters.json") == 0
    assert brought().spec.vocabulary == "ab \n"
    tokens = torch.randint(0, 4, (2, 20))
    expected = torch.from_numpy(run(net, tokens)).log_softmax(-1).numpy()
    np.testing.assert_allclose(outputs(brought(), tokens.numpy())[:, :, 0], expected, atol=1e-5, rtol=0)


def test_a_text_model_without_an_embedding_reads_one_hot() -> None:
    net = nn.ModuleDict({"rnn": nn.LSTM(4, 8, batch_first=True), "out": nn.Linear(8, 4)})
    torch.save(net.state_dict(), "net.pt")
    Path("letters.txt").write_text("abc \n")  # the editor's newline is none of them
    assert bring("net.pt", "--vocabulary", "letters.txt") == 0
    assert brought().spec.vocabulary == "abc "
    tokens = torch.randint(0, 4, (2, 20))
    expected = torch.from_numpy(run(net, nn.functional.one_hot(tokens, 4).float())).log_softmax(-1)
    np.testing.assert_allclose(
        outputs(brought(), tokens.numpy())[:, :, 0], expected.numpy(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "ema"])
def test_the_state_dict_is_found_beside_an_optimiser(key: str) -> None:
    net = make_net()
    moments = {k: {"step": torch.tensor(1.0), "exp_avg": p} for k, p in enumerate(net.parameters())}
    optimiser = {"state": moments, "param_groups": [{"lr": 0.01, "params": list(moments)}]}
    torch.save({"epoch": 3, key: net.state_dict(), "optimizer": optimiser}, "training.pt")
    assert bring("training.pt") == 0


def test_of_several_state_dicts_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"student": make_net(1).state_dict(), "teacher": make_net(2).state_dict()}, "both.pt")
    assert bring("both.pt") == 2
    assert "several state dicts, ['student', 'teacher']; say which with --key" in capsys.readouterr().err
    assert bring("both.pt", "--key", "teacher") == 0
    assert brought().spec.architecture.num_layers == 2


def test_modules_of_different_sizes_in_the_order_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.ModuleDict(
        {
            "one": nn.LSTM(3, 9, batch_first=True),
            "two": nn.LSTM(9, 4, batch_first=True),
            "out": nn.Linear(4, 2),
        }
    )
    torch.save(net.state_dict(), "net.pt")
    assert bring("net.pt") == 2
    assert "2 recurrent modules: one, two" in capsys.readouterr().err
    assert bring("net.pt", "--lstm", "one,two") == 0
    with torch.no_grad():
        expected = net["out"](net["two"](net["one"](X)[0])[0]).numpy()
    np.testing.assert_allclose(outputs(brought(), X.numpy())[:, :, 0], expected, atol=1e-5, rtol=0)


def test_what_shapes_leave_open_is_said_by_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """An embedding and a head of the same shape, without a bias; and a head of another loss."""
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "a": nn.Embedding(4, 8),
            "rnn": nn.LSTM(8, 8, batch_first=True),
            "b": nn.Linear(8, 4, bias=False),
            "auxiliary": nn.Linear(8, 2),
        }
    )
    torch.save(net.state_dict(), "net.pt")
    Path("letters.txt").write_text("abcd")
    assert bring("net.pt", "--vocabulary", "letters.txt") == 2
    assert "which of a, b, auxiliary is the head" in capsys.readouterr().err
    flags = ["--vocabulary", "letters.txt", "--head", "b", "--embedding", "a"]
    assert bring("net.pt", *flags) == 2
    assert "auxiliary.weight [2, 8] has no equivalent here" in capsys.readouterr().err
    assert bring("net.pt", *flags, "--ignore", "auxiliary") == 0
    tokens = torch.randint(0, 4, (2, 20))
    with torch.no_grad():
        expected = net["b"](net["rnn"](net["a"](tokens))[0]).log_softmax(-1).numpy()
    np.testing.assert_allclose(outputs(brought(), tokens.numpy())[:, :, 0], expected, atol=1e-5, rtol=0)


def test_a_failed_import_leaves_the_bundle_that_was_there() -> None:
    torch.save(make_net().state_dict(), "net.pt")
    assert bring("net.pt") == 0
    before = brought().digest
    torch.save(make_net(bidirectional=True).state_dict(), "net.pt")
    assert bring("net.pt") == 2
    assert brought().digest == before


def test_cells_are_layers_too() -> None:
    cells = nn.ModuleDict({"cell": nn.LSTMCell(3, 8), "out": nn.Linear(8, 4)})
    torch.save(cells.state_dict(), "net.pt")
    assert bring("net.pt") == 0
    assert brought().spec.architecture.hidden_size == 8


def test_an_lstm_alone_gives_its_h() -> None:
    lstm = nn.LSTM(3, 8, batch_first=True)
    torch.save(lstm.state_dict(), "net.pt")
    assert bring("net.pt") == 0
    with torch.no_grad():
        expected = lstm(X)[0].numpy()
    np.testing.assert_allclose(outputs(brought(), X.numpy())[:, :, 0], expected, atol=1e-5, rtol=0)


def test_leads_units_and_normalisation_come_from_flags() -> None:
    torch.save(make_net().state_dict(), "net.pt")
    flags = [
        "--leads",
        "2",
        "--inputs",
        "a,b,c",
        "--outputs",
        "a,b",
        "--unit",
        "a=°C",
        "--mean",
        "a=20.5",
        "--std",
        "a=3",
        "--residual",
    ]
    assert bring("net.pt", *flags) == 0
    spec = brought().spec
    assert (spec.architecture.leads, spec.architecture.output_size, spec.architecture.residual) == (
        2,
        2,
        True,
    )
    assert (spec.inputs[0].unit, spec.inputs[0].mean, spec.inputs[0].std) == ("°C", 20.5, 3.0)
    assert spec.outputs[0] == spec.inputs[0]
    command = brought().training["command"]
    assert command.startswith("cellstate import net.pt --name brought")
    assert shlex.split(command)[-7:] == ["--unit", "a=°C", "--mean", "a=20.5", "--std", "a=3", "--residual"]


def test_float16_is_measured_as_it_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(make_net().state_dict(), "net.pt")
    assert bring("net.pt", "--dtype", "float16") == 0
    assert 1e-6 < brought().training["imported"]["largest_difference"] < 1e-2
    torch.save({**make_net().state_dict(), "out.bias": torch.full((4,), 1e6)}, "net.pt")
    assert bring("net.pt", "--dtype", "float16") == 2
    assert "head.bias reaches 1e+06, which float16 can't hold" in capsys.readouterr().err


QUANTISED = torch.zeros(32, 8, dtype=torch.int8)
LSTM, OUT = nn.LSTM(3, 8), nn.Linear(8, 4)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (state(rnn=nn.GRU(3, 8), out=OUT), "rnn.weight_ih_l0 is [24, 3], 3 row(s) a unit where an LSTM has"),
        (state(rnn=nn.RNN(3, 8), out=OUT), "rnn.weight_ih_l0 is [8, 3], 1 row(s) a unit where an LSTM has 4"),
        (state(rnn=nn.LSTM(3, 8, bidirectional=True)), "rnn.weight_ih_l0_reverse: a bidirectional LSTM read"),
        (state(rnn=LSTM, norm=nn.LayerNorm(8), out=OUT), "norm.weight [8] has no equivalent here (a normali"),
        (state(rnn=LSTM, mid=nn.Linear(8, 8), out=OUT), "which of mid, out is the head on the LSTM's 8 outp"),
        (state(rnn=LSTM, out=nn.Linear(7, 4)), "out.weight [4, 7] has no equivalent here: a network here is"),
        (state(front=nn.Conv1d(2, 3, 1), rnn=LSTM, out=OUT), "front.weight [3, 2, 1] has no equivalent here"),
        (state(out=OUT), "there is no LSTM in it"),
        ({**state(rnn=LSTM, out=OUT), "out.bias": torch.full((4,), torch.nan)}, "out.bias holds a number th"),
        ({**state(rnn=LSTM, out=OUT), "out.bias": torch.zeros(5)}, "out.bias is [5], must be [4]"),
        ({**state(rnn=LSTM, out=OUT), "rnn.weight_hh_l0": torch.zeros(32, 7)}, "rnn.weight_ih_l0 is [32, 3]"),
        ({**state(rnn=LSTM, out=OUT), "rnn.weight_hh_l0": QUANTISED}, "quantised weights"),
        ({**state(rnn=LSTM, out=OUT), "rnn.weight_hh_l0_raw": torch.zeros(32, 8)}, "take the weight's param"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent_is_named(
    tensors: State, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tensors, "net.pt")
    refused("net.pt", message, capsys)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def write_truncated(path: Path) -> None:
    torch.save(make_net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-900])


def write_module(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"rnn.weight_hh_l0": Harmful()}))


def write_torch_pickle(path: Path) -> None:
    torch.save({"rnn.weight_hh_l0": Harmful()}, path)


def write_script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_truncated, "net.pt: truncated or damaged"),
        (write_module, "holds an object (torch.nn.modules.linear.Linear) that only running code could read;"),
        (write_pickle, "save the state dict alone: torch.save(model.state_dict(), 'model.pt')"),
        (write_torch_pickle, "that only running code could read; save the state dict alone"),
        (write_script, "a TorchScript archive holds code, which is not run"),
        (lambda path: path.write_bytes(b""), "net.pt: the file is empty"),
        (lambda path: path.write_bytes(b"no checkpoint at all"), "net.pt: not a file that is known here"),
        (lambda path: path.write_bytes(b"PK\3\4garbage"), "net.pt: truncated or damaged"),
        (lambda path: path.write_bytes(b"\x80\x02garbage"), "net.pt: "),
        (lambda path: path.write_bytes(b"\x40\0\0\0\0\0\0\0{garbage"), "net.pt: not safetensors"),
        (lambda path: torch.save([1, 2], path), "holds a list, not a state dict"),
        (lambda path: path.mkdir(), "net.pt: Is a directory"),
        (lambda path: None, "net.pt: No such file or directory"),
    ],
)  # fmt: skip
def test_a_file_that_cant_be_read_is_one_line(
    write: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("net.pt"))
    refused("net.pt", message, capsys)
    assert not Path("executed").exists()


def refused(file: str, message: str, capsys: pytest.CaptureFixture[str], *flags: str) -> None:
    assert bring(file, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("cellstate: ")
    assert error.count("\n") == 1
    assert not Path("brought").exists()
