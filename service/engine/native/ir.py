"""Words for writing kernels: LLVM's instructions as Python's operators, on numbers and vectors of them.

A kernel is a Python function that runs once and leaves instructions behind; what it computes with are
`Value`s, which stand for numbers that will be there when the kernel runs. Python's own numbers and loops are
gone by then: they unroll.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import llvmlite.ir as ll

INT, BYTE, HALF, WORD = (ll.IntType(bits) for bits in (64, 8, 16, 32))
FLOAT, POINTER, VOID = ll.FloatType(), ll.PointerType(), ll.VoidType()


class _BFloat(ll.Type):  # type: ignore[misc]
    """LLVM's bfloat, for which llvmlite has no class."""

    def __str__(self) -> str:
        return "bfloat"


BFLOAT = _BFloat()


def floats(lanes: int) -> ll.Type:
    return ll.VectorType(FLOAT, lanes)


class Value:
    """A number, a vector of them, or an address that a kernel computes with. Arithmetic goes by type;
    integers are signed, and a Python number takes the type of its partner."""

    __slots__ = ("_k", "ssa")

    def __init__(self, kernel: Kernel, ssa: ll.Value) -> None:
        self._k, self.ssa = kernel, ssa

    def _with(self, other: Value | float, on_floats: str, on_ints: str) -> Value:
        is_int = isinstance(getattr(self.ssa.type, "element", self.ssa.type), ll.IntType)
        operation = getattr(self._k.builder, on_ints if is_int else on_floats)
        return Value(self._k, operation(self.ssa, self._k.like(other, self).ssa))

    def __add__(self, other: Value | float) -> Value:
        return self._with(other, "fadd", "add")

    def __sub__(self, other: Value | float) -> Value:
        return self._with(other, "fsub", "sub")

    def __mul__(self, other: Value | float) -> Value:
        return self._with(other, "fmul", "mul")

    def __truediv__(self, other: Value | float) -> Value:
        return self._with(other, "fdiv", "")

    def __floordiv__(self, other: int) -> Value:
        return self._with(other, "", "sdiv")

    def __lshift__(self, bits: int) -> Value:
        return self._with(bits, "", "shl")

    def __rshift__(self, bits: int) -> Value:
        """Zeros come in from above."""
        return self._with(bits, "", "lshr")

    def shifted_right(self, bits: int) -> Value:
        """The sign comes in from above."""
        return self._with(bits, "", "ashr")

    def __and__(self, mask: int) -> Value:
        return self._with(mask, "", "and_")

    def less(self, other: Value | float) -> Value:
        right = self._k.like(other, self)
        return Value(self._k, self._k.builder.icmp_signed("<", self.ssa, right.ssa))

    def both(self, other: Value) -> Value:
        return Value(self._k, self._k.builder.and_(self.ssa, other.ssa))

    def either(self, other: Value) -> Value:
        return Value(self._k, self._k.builder.or_(self.ssa, other.ssa))

    def bits(self, type_: ll.Type) -> Value:
        """The same bits, taken for another type."""
        return Value(self._k, self._k.builder.bitcast(self.ssa, type_))


class Kernel:
    """One native function under construction. `arguments`: name to type, in order; results go to memory."""

    def __init__(self, module: ll.Module, name: str, arguments: dict[str, ll.Type]) -> None:
        self.module = module
        self.function = ll.Function(module, ll.FunctionType(VOID, list(arguments.values())), name)
        self.builder = ll.IRBuilder(self.function.append_basic_block("entry"))
        self.arguments = {
            name: Value(self, ssa) for name, ssa in zip(arguments, self.function.args, strict=True)
        }

    def end(self) -> ll.Function:
        self.builder.ret_void()
        return self.function

    # Numbers

    def number(self, number: int) -> Value:
        return Value(self, ll.Constant(INT, number))

    def like(self, number: Value | float, model: Value) -> Value:
        """A Python number as a constant of the model's type; a Value as it is."""
        if isinstance(number, Value):
            return number
        type_ = model.ssa.type
        if isinstance(type_, ll.VectorType):
            return Value(self, ll.Constant(type_, [ll.Constant(type_.element, number)] * type_.count))
        return Value(self, ll.Constant(type_, number))

    def zeros(self, type_: ll.Type, count: int) -> Value:
        return Value(self, ll.Constant(ll.VectorType(type_, count), None))

    def spread(self, number: Value, lanes: int) -> Value:
        """One number in every lane."""
        type_ = ll.VectorType(number.ssa.type, lanes)
        nothing = ll.Constant(type_, ll.Undefined)
        first = self.builder.insert_element(nothing, number.ssa, ll.Constant(WORD, 0))
        return self._shuffle(first, nothing, [0] * lanes)

    def join(self, vectors: list[Value]) -> Value:
        """One vector of two, or the one there is."""
        if len(vectors) == 1:
            return vectors[0]
        a, b = (v.ssa for v in vectors)
        return self._shuffle(a, b, list(range(2 * a.type.count)))

    def split(self, vector: Value, parts: int) -> list[Value]:
        """What `join` joined."""
        if parts == 1:
            return [vector]
        lanes = vector.ssa.type.count // parts
        numbers = [list(range(part * lanes, (part + 1) * lanes)) for part in range(parts)]
        return [self._shuffle(vector.ssa, vector.ssa, n) for n in numbers]

    def _shuffle(self, a: ll.Value, b: ll.Value, lanes: list[int]) -> Value:
        mask = ll.Constant(ll.VectorType(WORD, len(lanes)), [ll.Constant(WORD, n) for n in lanes])
        return Value(self, self.builder.shuffle_vector(a, b, mask))

    def intrinsic(self, name: str, result: ll.Type, *operands: Value) -> Value:
        type_ = ll.FunctionType(result, [v.ssa.type for v in operands])
        function = self.module.globals.get(name) or ll.Function(self.module, type_, name)
        return Value(self, self.builder.call(function, [v.ssa for v in operands]))

    def _float_intrinsic(self, name: str, *operands: Value) -> Value:
        type_ = operands[0].ssa.type
        suffix = f"v{type_.count}f32" if isinstance(type_, ll.VectorType) else "f32"
        return self.intrinsic(f"llvm.{name}.{suffix}", type_, *operands)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self._float_intrinsic("fma", a, b, c)

    def dot(self, total: Value, a: Value, b: Value) -> Value:
        """total [16] + the sums of the pairs of a * b, bf16 [32]."""
        return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", total.ssa.type, total, a, b)

    def clipped(self, a: Value, least: float, most: float) -> Value:
        """NaN becomes `most`."""
        below = self._float_intrinsic("minnum", a, self.like(most, a))
        return self._float_intrinsic("maxnum", below, self.like(least, a))

    def to_float(self, words: Value) -> Value:
        return Value(self, self.builder.sitofp(words.ssa, floats(words.ssa.type.count)))

    def narrowed(self, words: Value, element: ll.IntType) -> Value:
        """The lower bits of every lane."""
        return Value(self, self.builder.trunc(words.ssa, ll.VectorType(element, words.ssa.type.count)))

    def least(self, a: Value, b: Value) -> Value:
        """The smaller of two integers."""
        return self.select(a.less(b), a, b)

    def most(self, a: Value, b: Value) -> Value:
        """The larger of two integers."""
        return self.select(a.less(b), b, a)

    def select(self, flag: Value, a: Value, b: Value) -> Value:
        return Value(self, self.builder.select(flag.ssa, a.ssa, b.ssa))

    def given(self, address: Value) -> Value:
        """Whether an address is not null."""
        return Value(self, self.builder.icmp_unsigned("!=", address.ssa, ll.Constant(POINTER, None)))

    # Memory

    def at(self, address: Value, offset: Value | int, unit: int = 1) -> Value:
        """The address `offset * unit` bytes on."""
        offset = offset if isinstance(offset, Value) else self.number(offset)
        offset = offset * unit if unit != 1 else offset
        return Value(self, self.builder.gep(address.ssa, [offset.ssa], source_etype=BYTE))

    def load(self, address: Value, type_: ll.Type, align: int = 4) -> Value:
        return Value(self, self.builder.load(address.ssa, typ=type_, align=align))

    def store(self, value: Value, address: Value, align: int = 4) -> None:
        self.builder.store(value.ssa, address.ssa, align=align)

    def load_int(self, address: Value, index: Value | int = 0) -> Value:
        return self.load(self.at(address, index, 8), INT, 8)

    def load_address(self, address: Value, index: Value | int = 0) -> Value:
        return self.load(self.at(address, index, 8), POINTER, 8)

    # Memory that other threads look at, in the order of the program

    def seen(self, address: Value) -> Value:
        """The integer that is there now."""
        return Value(self, self.builder.load_atomic(address.ssa, "seq_cst", 8, typ=INT))

    def show(self, number: Value, address: Value) -> None:
        # an exchange, for llvmlite knows no atomic store to an address without a type
        self.builder.atomic_rmw("xchg", address.ssa, number.ssa, "seq_cst")

    def count_up(self, address: Value) -> None:
        self.builder.atomic_rmw("add", address.ssa, ll.Constant(INT, 1), "seq_cst")

    def pause(self) -> None:
        """Leaves the processor to its other thread for a moment, where there is an instruction for it."""
        if platform.machine() == "x86_64":
            self.intrinsic("llvm.x86.sse2.pause", VOID)

    def prefetch(self, address: Value) -> None:
        """Asks for a cache line to be read into the first-level cache."""
        read, first_level, data = (Value(self, ll.Constant(WORD, n)) for n in (0, 3, 1))
        self.intrinsic("llvm.prefetch.p0", VOID, address, read, first_level, data)

    def room(self, type_: ll.Type, count: int = 1) -> Value:
        """A place on the stack; one that holds a single vector becomes a register."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(type_, count)
        place.align = 64
        place.type = POINTER  # an address like any other, not one of this type alone
        return Value(self, place)

    # Flow

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: Value | int = 1) -> Iterator[Value]:
        """for i in range(start, stop, step), when the kernel runs."""
        first, last, stride = (n if isinstance(n, Value) else self.number(n) for n in (start, stop, step))
        head, body, after = (self.function.append_basic_block(n) for n in ("head", "body", "after"))
        before = self.builder.block
        self.builder.branch(head)
        self.builder.position_at_end(head)
        i = self.builder.phi(INT)
        i.add_incoming(first.ssa, before)
        self.builder.cbranch(self.builder.icmp_signed("<", i, last.ssa), body, after)
        self.builder.position_at_end(body)
        yield Value(self, i)
        following = self.builder.add(i, stride.ssa)
        i.add_incoming(following, self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(after)

    @contextmanager
    def as_long_as(self, condition: Callable[[], Value]) -> Iterator[None]:
        """while condition(), when the kernel runs."""
        head, body, after = (self.function.append_basic_block(n) for n in ("head", "body", "after"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(condition().ssa, body, after)
        self.builder.position_at_end(body)
        yield
        self.builder.branch(head)
        self.builder.position_at_end(after)

    @contextmanager
    def when(self, flag: Value) -> Iterator[None]:
        with self.builder.if_then(flag.ssa):
            yield

    def either(self, flag: Value, yes: Callable[[], None], no: Callable[[], None]) -> None:
        with self.builder.if_else(flag.ssa) as (then, otherwise):
            with then:
                yes()
            with otherwise:
                no()

    def choose(self, number: Value, cases: Mapping[int, Callable[[], None]]) -> None:
        """Runs the case of that number, when the kernel runs; none if there is none."""
        after = self.function.append_basic_block("after")
        switch = self.builder.switch(number.ssa, after)
        for case, write in cases.items():
            block = self.function.append_basic_block(f"case{case}")
            switch.add_case(ll.Constant(INT, case), block)
            self.builder.position_at_end(block)
            write()
            self.builder.branch(after)
        self.builder.position_at_end(after)

    def call(self, function: ll.Function, *operands: Value) -> None:
        self.builder.call(function, [v.ssa for v in operands])
