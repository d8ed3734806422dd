"""The tables, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.bench.options import Options

Row = dict[str, Any]
NOT_INSTALLED = "not installed"
WHOLE = 0.97  # of a core's time: with less, the figures are not this program's alone


def step_table(rows: Sequence[Row], options: Options) -> str:
    onnx = rows[0]["onnx_us"] is not None
    absent = NOT_INSTALLED if options.device == "cpu" else "cpu only"
    heads = ("H", "B", "ours in", "ours us", "kernel us", "steps/s", "nn.LSTM us", "ORT us", "ORT int8 us",
             "GEMM us", "ours/ORT", "kernel/ORT", "kernel/GEMM")  # fmt: skip
    body = [
        (
            f"{row['hidden']}", f"{row['batch']}", row["precision"],
            _us(row["ours_us"]), _us(row["kernel_us"]), f"{row['session_steps_per_s']:,.0f}",
            _us(row["nn_lstm_us"]),
            _us(row["onnx_us"]) if onnx else absent, _us(row["onnx_int8_us"]) if onnx else absent,
            _us(row["gemm_us"]), _ratio(row["ours_to_onnx"]), _ratio(row["kernel_to_onnx"]),
            _ratio(row["kernel_to_gemm"]),
        )
        for row in rows
    ]  # fmt: skip
    title = (
        f"One step of B sessions, {options.layers} layers, inputs {options.inputs}, {options.device}, "
        f"{options.threads} thread(s): median microseconds, measured in turns"
    )
    notes = (
        "Ours: the runner's whole step, rows anywhere in the arena and the head with it; kernel: its native "
        "call alone.\nNobody else has rows to find, or a head. ORT: the faster of run and IOBinding; int8 "
        "against its int8,\nelse against its fp32. GEMM: the bare products in that precision, the "
        "fastest way torch has."
    )
    return "\n".join((title, "", _table(heads, body), "", notes))


def chunk_table(rows: Sequence[Row], options: Options) -> str:
    heads = ("H", "sessions", "lengths", "ours in", "ours us", "nn.LSTM us", "packed us", "waste", "nn.LSTM",
             "packed")  # fmt: skip
    body = [
        (
            f"{row['hidden']}", f"{row['sessions']}",
            f"{row['longest']}" if row["lengths"] == "equal" else f"ragged, to {row['longest']}",
            row["precision"],
            *(_us(row[f"{who}_us_per_step"], 2) for who in ("ours", "nn_lstm", "nn_lstm_packed")),
            *(_share(row[f"{who}_waste"]) for who in ("ours", "nn_lstm", "nn_lstm_packed")),
        )
        for row in rows
    ]  # fmt: skip
    title = (
        f"Whole sequences, {options.layers} layers, inputs {options.inputs}: microseconds of one step of one "
        "session,\nand the share of its rate that a ragged batch loses against one of equal lengths"
    )
    return "\n".join((title, "", _table(heads, body)))


def tick_table(rows: Sequence[Row], options: Options) -> str:
    heads = ("H", "B", "precision", "tick us", "outside run us", "a session", "outside kernels us",
             "a session")  # fmt: skip
    body = [
        (
            f"{row['hidden']}", f"{row['batch']}", row["precision"], _us(row["tick_us"]),
            _us(row["outside_run_us"]), _us(row["outside_run_us_per_session"], 2),
            _us(row["outside_kernels_us"]), _us(row["outside_kernels_us_per_session"], 2),
        )
        for row in rows
    ]  # fmt: skip
    title = "The engine's own work in a tick of B single steps: submit, tick, commit"
    return "\n".join((title, "", _table(heads, body)))


def machine_lines(machine: dict[str, Any]) -> str:
    """What it was measured on; and that others were at work, if they were."""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    what = machine["gpu"] or machine["processor"]
    sets = " ".join(machine["instruction_sets"])
    lines = [f"{what}; {machine['cores']} cores; {sets}", versions]
    lines.append(
        f"load average {machine['load_average'][0]} before, {machine['load_average_after'][0]} after"
    )
    if not machine["gpu"] and machine["core_share"] < WHOLE:
        lines.append(
            f"note: others had the core for {1 - machine['core_share']:.0%} of the time, which figures show: "
            "torch.nn.LSTM was seen at a third of its speed"
        )
    return "\n".join(lines)


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[n]) for line in (heads, *body)) for n in range(len(heads))]
    return "\n".join(
        "  ".join(entry.rjust(width) for entry, width in zip(line, widths, strict=True))
        for line in (heads, *body)
    )


def _us(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
