"""The gate arithmetic: from a layer's products to its new cell and hidden state, on vectors of float32.

    c' = sigmoid(f) c + sigmoid(i) tanh(g)        h' = sigmoid(o) tanh(c')

Both functions come from one exponential, E(x) = exp(-x): sigmoid(x) = 1 / (1 + E(x)) and
tanh(x) = (1 - E(2x)) / (1 + E(2x)). Of five quotients three are left: two that are multiplied share
one. From the true functions c' is at most 3e-7 (1 + |c|) away, and h' at most 3e-7 while c is within +-2,
6e-7 within +-100 (`tests/engine/native/test_gates.py`). A forget gate of 1 keeps c to the bit.
"""

from __future__ import annotations

import math

import llvmlite.ir as ll

from service.engine.native.ir import WORD, Kernel, Value

#: exp2 on [-1/2, 1/2] by interpolation of (2^x - 1) / x at Chebyshev's points, highest power first:
#: relative error 5e-9, and 7e-8 in float32; exp2(0) is 1
EXP2 = (1.54614475e-4, 1.33908674e-3, 9.61805667e-3, 5.5503571e-2, 0.240226509, 0.693147188, 1.0)
#: Adding 1.5 * 2^23 to a float32 leaves its rounded value in the low bits
ROUNDER = 12582912.0
#: Beyond 2^-40 and 2^40 a float32 sigmoid or tanh changes no more, and products of two stay finite
LARGEST = 40.0


def exp_minus(k: Kernel, x: Value, times: float = 1.0) -> Value:
    """exp(-times x), clipped to 2^-40 ... 2^40. Not for NaN: what comes in is finite."""
    y = k.clipped(x * (-times / math.log(2)), -LARGEST, LARGEST)
    shifted = y + ROUNDER
    fraction = y - (shifted - ROUNDER)
    power = k.like(EXP2[0], y)
    for coefficient in EXP2[1:]:
        power = k.fma(power, fraction, k.like(coefficient, y))
    words = ll.VectorType(WORD, y.ssa.type.count)
    return (power.bits(words) + (shifted.bits(words) << 23)).bits(y.ssa.type)


def reciprocal(k: Kernel, x: Value, exact: bool) -> Value:
    """1 / x. A division, or the processor's estimate of 14 bits and one step of Newton's: thrice as fast."""
    if exact:
        return k.like(1.0, x) / x
    parts = k.split(x, x.ssa.type.count // 16)
    mask = Value(k, ll.Constant(ll.IntType(16), -1))
    name = "llvm.x86.avx512.rcp14.ps.512"
    estimate = k.join([k.intrinsic(name, part.ssa.type, part, part, mask) for part in parts])
    error = k.fma(x * -1.0, estimate, k.like(1.0, x))
    return k.fma(estimate, error, estimate)


def cell(k: Kernel, gates: tuple[Value, Value, Value, Value], c: Value, exact: bool) -> tuple[Value, Value]:
    """The new h and c. gates: the products i, f, g, o with their biases."""
    i, f, g, o = gates
    e_i, e_f, e_g, e_o = exp_minus(k, i), exp_minus(k, f), exp_minus(k, g, 2.0), exp_minus(k, o)
    forget = reciprocal(k, e_f + 1.0, exact)
    write = (k.like(1.0, g) - e_g) * reciprocal(k, (e_i + 1.0) * (e_g + 1.0), exact)
    c = k.fma(forget, c, write)
    e_c = exp_minus(k, c, 2.0)
    h = (k.like(1.0, c) - e_c) * reciprocal(k, (e_o + 1.0) * (e_c + 1.0), exact)
    return h, c
