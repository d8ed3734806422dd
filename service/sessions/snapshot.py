"""A session's memory on the wire and on disk: h, c, perhaps a carry, and next_step at one step, as
safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from model.watch.watcher import check_carry
from service.errors import BadRequest, InvalidValue
from service.sessions.memory import Form, Memory

FORMAT = "cellstate-snapshot-1"


@dataclass(slots=True, frozen=True)
class Snapshot:
    """state [2, layers, hidden] float32 (h, c) before step `next_step`, of the model with that digest. carry
    [n] float64, of a watch model."""

    state: NDArray[np.float32]
    next_step: int
    model: str
    version: str
    digest: str
    carry: NDArray[np.float64] | None = None

    @property
    def memory(self) -> Memory:
        return Memory(self.state, self.carry)

    def dump(self) -> bytes:
        """As safetensors: tensors h and c [layers, hidden], perhaps carry [n], the rest as metadata.

        Written by hand: the library puts metadata in another order each time, and equal states should be
        equal files.
        """
        metadata = {
            "format": FORMAT,
            "next_step": str(self.next_step),
            "model": self.model,
            "version": self.version,
            "model_digest": self.digest,
        }
        data = self.state.astype("<f4").tobytes()
        shape, half = list(self.state.shape[1:]), len(data) // 2
        header = {
            "__metadata__": metadata,
            "h": {"dtype": "F32", "shape": shape, "data_offsets": [0, half]},
            "c": {"dtype": "F32", "shape": shape, "data_offsets": [half, len(data)]},
        }
        if self.carry is not None:
            end = len(data) + 8 * len(self.carry)
            header["carry"] = {"dtype": "F64", "shape": [len(self.carry)], "data_offsets": [len(data), end]}
            data += self.carry.astype("<f8").tobytes()
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + data

    @staticmethod
    def digest_in(blob: bytes) -> str:
        """The digest of the model that a snapshot says it is of; empty if it can't be read."""
        try:
            header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
            digest = header["__metadata__"]["model_digest"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        return digest if isinstance(digest, str) else ""

    @classmethod
    def parse(cls, blob: bytes, form: Form, digest: str) -> Snapshot:
        """Reads a snapshot for the model of that form and digest. Raises BadRequest for what is not a
        snapshot, InvalidValue for one of another model or with bad numbers."""
        try:
            tensors = load_tensors(blob)
            header = int.from_bytes(blob[:8], "little")
            metadata = json.loads(blob[8 : 8 + header])["__metadata__"]
            next_step = int(metadata["next_step"])
            found = (metadata["format"], metadata["model_digest"], metadata["model"], metadata["version"])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BadRequest(f"the body is not a snapshot in safetensors: {error}") from error
        if found[0] != FORMAT:
            raise InvalidValue(f"the snapshot's format is {found[0]!r}, not {FORMAT!r}", field="format")
        if found[1] != digest:
            raise InvalidValue(
                f"the snapshot is of the model with digest {found[1][:16]}…, this one's is {digest[:16]}…",
                field="model_digest",
            )
        if not 0 <= next_step < 2**53:  # a step number must be exact in every client's JSON
            raise InvalidValue(f"next_step is {next_step}, must be from 0 to 2**53-1", field="next_step")
        expected: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "h": (np.float32, form.shape[1:]),
            "c": (np.float32, form.shape[1:]),
        }
        if form.carry:
            expected["carry"] = (np.float64, (form.carry,))
        if set(tensors) != set(expected):
            told = f"the snapshot holds {sorted(tensors)}, must hold {sorted(expected)}"
            raise InvalidValue(told, field="tensors")
        for name, tensor in tensors.items():
            dtype, shape = expected[name]
            if tensor.shape != shape or tensor.dtype != dtype:
                must = f"{np.dtype(dtype)} {list(shape)}"
                raise InvalidValue(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, must be {must}", field=name
                )
            if not np.isfinite(tensor).all():
                raise InvalidValue(f"{name} holds a number that is not finite", field=name)
        # No step gives an h beyond 1; a huge one would make the next step's gates inf - inf = NaN
        if np.abs(tensors["h"]).max() > 1:
            raise InvalidValue("h holds a number beyond -1 to 1, which no LSTM gives", field="h")
        carry = tensors.get("carry")
        if carry is not None:
            try:
                check_carry(carry)
            except ValueError as error:
                raise InvalidValue(f"carry is not of any session: {error}", field="carry") from error
        state = np.stack((tensors["h"], tensors["c"]))
        return cls(state, next_step, found[2], found[3], digest, carry)
