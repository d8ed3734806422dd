"""The processor that is found, and the ones that tests make of it."""

from __future__ import annotations

import ctypes
import gc
import re
import weakref
from functools import cache

import llvmlite.ir as ll
import numpy as np
import pytest

from service.engine.native.host import Library, Processor, processor
from service.engine.native.ir import POINTER, Kernel
from service.engine.native.kernels import Shapes, kernels
from service.engine.native.product import Unit
from tests.engine.native.making import PATHS, PROCESSORS

SHAPES = Shapes(3, 20, 2, 3)


@cache
def assembly(path: str) -> str:
    target, kind = PATHS[path]
    return str(kernels(SHAPES, kind, target).library.assembly)


def test_a_function_outlives_all_that_it_came_from() -> None:
    """A worker is in one for as long as its team; kernels are forgotten when many others were made."""
    kernel = Kernel(ll.Module("test"), "made", {"out": POINTER})
    kernel.store(kernel.number(7), kernel.arguments["out"], align=8)
    kernel.end()
    library = Library(kernel.module, processor())
    alive, function = weakref.ref(library), library.function("made", ctypes.c_void_p)
    del library
    gc.collect()
    out = np.zeros(1, np.int64)
    function(out.ctypes.data)
    assert alive() is not None
    assert out.tolist() == [7]
    del function
    gc.collect()
    assert alive() is None


def test_this_machines_processor_is_the_same_every_time() -> None:
    assert processor() == processor()
    assert hash(processor()) == hash(processor())


def test_a_processor_without_a_feature_has_less() -> None:
    whole = processor()
    assert not processor(("amx-tile",)).amx
    assert not processor(("amx-bf16",)).amx
    assert not processor(("avx512bf16",)).dot
    for name in ("avx512f", "avx512vl", "avx512bw"):
        less = processor((name,))
        assert not any((less.amx, less.dot, less.estimates))
        assert less.lanes <= min(whole.lanes, 8)
    for name in ("avx2", "fma"):
        assert processor(("avx512f", name)).lanes == 4
    assert "-avx2" in processor(("avx2",)).features.split(",")


@pytest.mark.parametrize("target", PROCESSORS.values(), ids=list(PROCESSORS))
def test_a_processor_is_one_thing(target: Processor) -> None:
    assert target.lanes in (4, 8, 16)
    assert target.estimates == (target.lanes == 16)
    if target.dot or target.amx:
        assert target.lanes == 16


@pytest.mark.skipif(processor().lanes == 4, reason="has no instructions to do without")
@pytest.mark.parametrize("path", list(PATHS))
def test_kernels_have_no_instruction_that_their_processor_lacks(path: str) -> None:
    """So that what runs here for a lesser processor is what runs there."""
    target, kind = PATHS[path]
    registers = {"x": 4, "y": 8, "z": 16}
    used = {registers[letter] for letter in re.findall(r"%([xyz])mm\d", assembly(path))}
    assert max(used) == target.lanes
    assert ("tdpbf16ps" in assembly(path)) == (kind.unit is Unit.TILE)
    assert ("vdpbf16ps" in assembly(path)) == (kind.unit is Unit.DOT)
    assert ("vrcp14ps" in assembly(path)) == target.estimates
    assert ("vfmadd" in assembly(path)) == (target.lanes > 4)
