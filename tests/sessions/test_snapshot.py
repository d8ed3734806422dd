"""Snapshots: what is dumped is read again, and what is wrong with one is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from service.errors import BadRequest, CellstateError, InvalidValue
from service.sessions.memory import Form
from service.sessions.snapshot import FORMAT, Snapshot

LAYERS, HIDDEN, DIGEST = 2, 3, "ab" * 32
GOOD = {"format": FORMAT, "next_step": "5", "model": "tiny", "version": "1", "model_digest": DIGEST}


def make_state() -> NDArray[np.float32]:
    state = np.linspace(-1, 1, 2 * LAYERS * HIDDEN, dtype=np.float32).reshape(2, LAYERS, HIDDEN)
    state[1] *= 40  # c has no bound
    return state


def make_blob(changes: dict[str, str | None] | None = None, **tensors: NDArray[np.generic]) -> bytes:
    """A good snapshot with some metadata changed (None: left out) or some tensors."""
    metadata = {k: v for k, v in (GOOD | (changes or {})).items() if v is not None}
    state = make_state()
    return save({"h": state[0], "c": state[1]} | tensors, metadata)


def parse(blob: bytes) -> Snapshot:
    return Snapshot.parse(blob, Form((2, LAYERS, HIDDEN)), DIGEST)


def test_what_is_dumped_is_read_again() -> None:
    for next_step in (0, 7, 2**53 - 1):
        snapshot = Snapshot(make_state(), next_step, "tiny", "1", DIGEST)
        again = parse(snapshot.dump())
        np.testing.assert_array_equal(again.state, snapshot.state)
        assert again.state.dtype == np.float32
        assert (again.next_step, again.model, again.version) == (next_step, "tiny", "1")
        assert again.digest == DIGEST
        assert again.dump() == snapshot.dump()


@pytest.mark.parametrize(
    "blob",
    [
        b"", b"{}", b"\0" * 8, b"\xff" * 64, make_blob()[:-1], make_blob()[:40], make_blob() + b"x",
        (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}",
        save({"h": make_state()[0], "c": make_state()[1]}),
        *(make_blob({name: None}) for name in GOOD),
        *(make_blob({"next_step": text}) for text in ("five", "1.5", "9" * 5000)),
    ],
)  # fmt: skip
def test_what_is_not_a_snapshot_is_refused(blob: bytes) -> None:
    with pytest.raises(BadRequest, match="not a snapshot"):
        parse(blob)


@pytest.mark.parametrize(
    ("blob", "field"),
    [
        (make_blob({"format": "cellstate-snapshot-2"}), "format"),
        (make_blob({"model_digest": "cd" * 32}), "model_digest"),
        (make_blob({"model_digest": ""}), "model_digest"),
        (make_blob({"next_step": "-1"}), "next_step"),
        (make_blob({"next_step": str(2**63)}), "next_step"),
        (make_blob(extra=np.zeros(1, np.float32)), "tensors"),
        (save({"h": make_state()[0]}, GOOD), "tensors"),
        (make_blob(h=np.zeros((LAYERS, HIDDEN + 1), np.float32)), "h"),
        (make_blob(c=np.zeros((LAYERS * HIDDEN,), np.float32)), "c"),
        (make_blob(h=np.zeros((0, HIDDEN), np.float32)), "h"),
        (make_blob(c=np.zeros((LAYERS, HIDDEN), np.float64)), "c"),
        (make_blob(h=np.zeros((LAYERS, HIDDEN), np.int32)), "h"),
        (make_blob(h=np.full((LAYERS, HIDDEN), np.nan, np.float32)), "h"),
        (make_blob(c=np.full((LAYERS, HIDDEN), -np.inf, np.float32)), "c"),
        (make_blob(h=np.full((LAYERS, HIDDEN), 1.5, np.float32)), "h"),
        (make_blob(h=np.full((LAYERS, HIDDEN), -3e38, np.float32)), "h"),
    ],
)
def test_a_snapshot_that_is_not_this_models_is_refused_by_field(blob: bytes, field: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        parse(blob)
    assert raised.value.facts["field"] == field


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.float8_e4m3fn])
def test_tensors_of_types_that_numpy_may_not_know_are_refused(dtype: torch.dtype) -> None:
    zeros = torch.zeros(LAYERS, HIDDEN).to(dtype)
    with pytest.raises(BadRequest):
        parse(save_torch({"h": zeros, "c": zeros.clone()}, GOOD))


def test_the_edges_of_h_are_inside() -> None:
    h = np.ones((LAYERS, HIDDEN), np.float32)
    h[0] = -1
    np.testing.assert_array_equal(parse(make_blob(h=h)).state[0], h)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_byte_turned_over_is_refused_or_read_as_numbers(at: int, value: int) -> None:
    """Never another error than the tree's."""
    blob = bytearray(make_blob())
    blob[at % len(blob)] = value
    try:
        snapshot = parse(bytes(blob))
    except CellstateError:
        return
    assert np.isfinite(snapshot.state).all()


KEYS = st.sampled_from(["__metadata__", "h", "c", "dtype", "shape", "data_offsets"])
LEAVES = st.none() | st.integers() | st.text(max_size=3)


@given(st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3)))
def test_whatever_the_header_holds_it_is_refused(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(CellstateError):
        parse(len(text).to_bytes(8, "little") + text)
