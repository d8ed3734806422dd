"""The processors that kernels are compiled for, and small kernels of a test's own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ll
import numpy as np
from numpy.typing import NDArray

from service.engine.native.host import Library, Processor, processor
from service.engine.native.ir import POINTER, Kernel
from service.engine.native.product import Kind, Unit

Call = Callable[..., None]  # takes arrays for addresses, and numbers


def _named(*prefixes: str) -> tuple[str, ...]:
    """All features of this machine's that begin so: one alone would come back with what implies it."""
    return tuple(name for name in llvm.get_host_cpu_features() if name.startswith(prefixes))


def _processors() -> dict[str, Processor]:
    """This machine's processor, and the lesser ones it can stand for."""
    found = {
        "tiles": processor(),
        "dot": processor(_named("amx")),
        "vectors of 16": processor(_named("amx", "avx512bf16")),
        "vectors of 8": processor(_named("amx", "avx512", "avx10")),
        "vectors of 4": processor(_named("amx", "avx", "fma", "f16c", "vaes", "vpclmulqdq")),
    }
    return {name: p for name, p in found.items() if list(found.values()).index(p) == list(found).index(name)}


PROCESSORS = _processors()
#: The widest vectors without a unit for bf16, and narrower ones
VECTORS = {p.lanes: p for p in PROCESSORS.values() if not p.amx and not p.dot}


def _paths() -> dict[str, tuple[Processor, Kind]]:
    """Every processor and kind that kernels differ by."""
    paths = {
        f"{precision} on vectors of {lanes}": (target, Kind(precision, Unit.VECTOR))
        for lanes, target in VECTORS.items()
        for precision in ("fp32", "bf16", "int8")
    }
    for target in PROCESSORS.values():
        if target.amx or target.dot:
            unit = Unit.TILE if target.amx else Unit.DOT
            paths[f"bf16 on {unit.value}s"] = (target, Kind("bf16", unit))
    return paths


PATHS = _paths()


def make_function(target: Processor, arguments: dict[str, ll.Type], write: Callable[[Kernel], None]) -> Call:
    """Compiles a kernel that `write` fills in."""
    kernel = Kernel(ll.Module("test"), "made", arguments)
    write(kernel)
    kernel.end()
    return function_of(Library(kernel.module, target), "made", arguments)


def function_of(library: Library, name: str, arguments: dict[str, ll.Type]) -> Call:
    types = [ctypes.c_void_p if type_ is POINTER else ctypes.c_int64 for type_ in arguments.values()]
    function = library.function(name, *types)

    def call(*values: NDArray[Any] | int) -> None:
        function(*(v.ctypes.data if isinstance(v, np.ndarray) else v for v in values))
        assert library  # the code lives as long

    return call
