"""This machine's processor, and the step from LLVM's instructions to functions that can be called."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from functools import lru_cache

import llvmlite.binding as llvm
import llvmlite.ir as ll


@dataclass(frozen=True, slots=True)
class Processor:
    """What kernels are written for. lanes: float32 numbers in a vector register. registers: how many of them.
    estimates: has AVX-512's reciprocal estimate. dot: multiplies pairs of bf16. amx: has bf16 tiles."""

    name: str
    features: str
    lanes: int
    registers: int
    estimates: bool
    dot: bool
    amx: bool


def processor(disable: tuple[str, ...] = ()) -> Processor:
    """This machine's, without the features named: for tests of what other machines run."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    found = dict(llvm.get_host_cpu_features())
    found.update(dict.fromkeys(disable, False))
    tiles = found.get("amx-bf16") and found.get("amx-tile") and _may_use_tiles()
    wide = bool(found.get("avx512f") and found.get("avx512vl") and found.get("avx512bw"))
    lanes = 16 if wide else 8 if found.get("avx2") and found.get("fma") else 4
    return Processor(
        name=llvm.get_host_cpu_name(),
        features=",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(found.items())),
        lanes=lanes,
        registers=32 if wide or "neon" in found else 16,
        estimates=wide,
        dot=wide and bool(found.get("avx512bf16")),
        amx=wide and bool(tiles),
    )


@lru_cache(maxsize=1)
def _may_use_tiles() -> bool:
    """Linux gives a process AMX's large registers on request: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return int(ctypes.CDLL(None).syscall(158, 0x1023, 18)) == 0


class Library:
    """Compiled functions; they live as long as this object, which lives as long as any of them."""

    def __init__(self, module: ll.Module, target: Processor) -> None:
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        triple = llvm.Target.from_default_triple()
        machine = triple.create_target_machine(cpu=target.name, features=target.features, opt=3, jit=True)
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
        passes = llvm.create_pass_builder(machine, options)
        manager = passes.getModulePassManager()
        manager.run(parsed, passes)
        self.assembly = machine.emit_assembly(parsed)
        self._engine = llvm.create_mcjit_compiler(parsed, machine)
        self._engine.finalize_object()

    def function(self, name: str, *types: type) -> ctypes._FuncPointer:
        """A function without a result. It is called without Python's lock."""
        function = ctypes.CFUNCTYPE(None, *types)(self._engine.get_function_address(name))
        function.library = self  # type: ignore[attr-defined]  # its code must not go before it
        return function
