"""All that a session remembers, apart from where it is: h and c, and the carry of a model that has one."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import ModelSpec
from model.watch.watcher import CARRY
from service.engine.engine import Engine
from service.engine.jobs import StateHandle
from service.sessions.record import CorruptRecord


@dataclass(slots=True, frozen=True)
class Memory:
    """state [2, layers, hidden] float32: h and c. carry [n] float64, or None."""

    state: NDArray[np.float32]
    carry: NDArray[np.float64] | None = None

    def pack(self) -> bytes:
        """As a snapshot's bytes in a store: a checksum, and the numbers."""
        data = np.ascontiguousarray(self.state, "<f4").tobytes()
        if self.carry is not None:
            data += np.ascontiguousarray(self.carry, "<f8").tobytes()
        return zlib.crc32(data).to_bytes(4, "little") + data


@dataclass(slots=True, frozen=True)
class Form:
    """The sizes of one model's memories. shape: of h and c; carry: numbers in it, 0 for a model without."""

    shape: tuple[int, int, int]
    carry: int = 0

    @classmethod
    def of(cls, spec: ModelSpec) -> Form:
        arch = spec.architecture
        return cls((2, arch.num_layers, arch.hidden_size), 0 if spec.rules is None else CARRY)

    def zeros(self) -> Memory:
        """What every sequence starts from."""
        return Memory(np.zeros(self.shape, np.float32), np.zeros(self.carry) if self.carry else None)

    def unpack(self, data: bytes, session_id: str) -> Memory:
        """What was packed. Raises CorruptRecord."""
        if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            raise CorruptRecord(f"the snapshot of session {session_id} is damaged: its checksum does not fit")
        numbers = int(np.prod(self.shape))
        if len(data) != 4 + 4 * numbers + 8 * self.carry:
            raise CorruptRecord(f"the snapshot of session {session_id} is of another size")
        state = np.frombuffer(data, "<f4", numbers, 4).reshape(self.shape)
        carry = np.frombuffer(data, "<f8", self.carry, 4 + 4 * numbers) if self.carry else None
        return Memory(state, carry)


def read(engine: Engine, state: StateHandle) -> Memory:
    """A session's, at rest. Raises RuntimeError if its state is in the store."""
    return Memory(engine.read(state), state.carry)


def adopt(engine: Engine, memory: Memory, name: str) -> StateHandle:
    """A state that goes on from a memory; it stays on the host until it is stepped."""
    state = engine.adopt(memory.state, name)
    state.carry = memory.carry
    return state
