"""Loops, registers and vectors of one kernel, written down as TIR by ordinary Python.

    def body(k: Emit) -> None:
        rows = k.symbol("rows")
        x, y = k.tensor("x", (rows, 64)), k.tensor("y", (rows, 64))
        with k.loop(rows, Loop.PARALLEL) as i:
            k.strips(64, 1, lambda at, lanes: k.store(y, k.load(x, i, at, lanes=lanes) * 2.0, i, at))

    function = emit(body, lanes=8)

Everything is explicit: a vector is an expression of `lanes` numbers, a `Cell` lives in a register as long as it is
addressed by constants, what Python loops over is unrolled. So a template says exactly what the processor does, and
builds in a tenth of a second; nothing is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as build

from execution.compiler.backends.tvm import maths
from execution.compiler.backends.tvm.artifact import ENTRY
from execution.compiler.backends.tvm.maths import Expr, lanes_of

Buffer = Any


class Loop(Enum):
    """How a loop runs."""

    SERIAL = "serial"
    PARALLEL = "parallel"


class Cell:
    """A vector (or a number) that changes: a register."""

    __slots__ = ("_buffer", "_dtype", "_lanes")

    def __init__(self, dtype: str, lanes: int) -> None:
        # scope "global" it must be: TVM puts small buffers of that scope on the stack, and LLVM then into registers;
        # a "local" one it would ask the run-time's allocator for
        self._buffer = build.alloc_buffer((lanes,), dtype, scope="global", layout=None)
        self._dtype, self._lanes = dtype, lanes

    def get(self) -> Expr:
        """Its value now, [lanes]."""
        return self._buffer[0] if self._lanes == 1 else self._buffer.vload([tirx.Ramp(0, 1, self._lanes)])

    def lane(self, number: int) -> Expr:
        """One of its numbers."""
        return self._buffer[number]

    def set(self, value: Expr) -> None:
        """Overwrite it; a single number fills all lanes."""
        if self._lanes == 1:
            build.buffer_store(self._buffer, value, [0])
        else:
            build.buffer_store(
                self._buffer, wide(value, self._lanes, self._dtype), [tirx.Ramp(0, 1, self._lanes)]
            )


class Emit:
    """Writes statements into the function under construction."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.math = maths

    def symbol(self, name: str) -> Expr:
        """A size that is known when the kernel is called: it is read off the shapes of the arguments."""
        return tirx.Var(name, "int32")

    def tensor(
        self,
        name: str,
        shape: Sequence[Expr],
        dtype: str = "float32",
        *,
        strides: Sequence[Expr] | None = None,
    ) -> Buffer:
        """The next argument. Aligned to its elements only: a row of a slice may begin anywhere."""
        sizes = {"float32": 4, "int8": 1, "uint8": 1, "int32": 4, "int64": 8}
        handle = build.arg(name, build.handle())
        more: dict[str, Any] = {} if strides is None else {"strides": list(strides)}
        buffer = build.match_buffer(handle, list(shape), dtype, align=sizes[dtype], layout=None, **more)
        IRBuilder.name(name, buffer)
        return buffer

    def rows_of(self, name: str, shape: Sequence[Expr], dtype: str = "float32") -> Buffer:
        """The next argument, whose rows (dimension 0) may stand apart in memory."""
        inner: list[Expr] = [1]
        for size in reversed(shape[2:]):
            inner.insert(0, inner[0] * size)
        return self.tensor(name, shape, dtype, strides=[tirx.Var(f"{name}_stride", "int32"), *inner])

    @contextmanager
    def loop(self, count: Expr, kind: Loop = Loop.SERIAL, first: Expr = 0) -> Iterator[Expr]:
        """Run the body for first..count; gives the loop's variable."""
        make = build.parallel if kind is Loop.PARALLEL else build.serial
        with make(first, count) as variable:
            yield variable

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Run the body if the condition holds."""
        with build.If(condition), build.Then():
            yield

    def choose(self, cases: Sequence[tuple[Expr, Callable[[], None]]]) -> None:
        """The body of the first condition that holds; the last condition is taken for granted."""
        (condition, body), *others = cases
        if not others:
            body()
            return
        with build.If(condition):
            with build.Then():
                body()
            with build.Else():
                self.choose(others)

    def cell(self, init: Expr, *, lanes: int | None = None, dtype: str = "float32") -> Cell:
        """A register of `lanes` numbers (default: a full vector)."""
        cell = Cell(dtype, self.lanes if lanes is None else lanes)
        cell.set(init)
        return cell

    def array(self, size: int, dtype: str = "float32") -> Buffer:
        """Scratch memory of the running thread; above 1 KiB in all TVM asks its run-time for it, at some cost."""
        return build.alloc_buffer((size,), dtype, scope="global", layout=None)

    def load(self, buffer: Buffer, *index: Expr, lanes: int = 1) -> Expr:
        """`lanes` numbers from there on along the last dimension."""
        if lanes == 1:
            return buffer[tuple(index)] if len(index) > 1 else buffer[index[0]]
        return buffer.vload([*index[:-1], tirx.Ramp(index[-1], 1, lanes)])

    def store(self, buffer: Buffer, value: Expr, *index: Expr, lanes: int = 1) -> None:
        """Write `lanes` numbers from there on along the last dimension."""
        last = index[-1] if lanes == 1 else tirx.Ramp(index[-1], 1, lanes)
        build.buffer_store(buffer, value if lanes == 1 else wide(value, lanes), [*index[:-1], last])

    @contextmanager
    def rows(self, count: Expr, *, parallel: bool) -> Iterator[Expr]:
        """Run the body for each of `count` rows, shared out among the threads or not."""
        with self.loop(count, Loop.PARALLEL if parallel else Loop.SERIAL) as row:
            yield row

    def bind(self, value: Expr) -> Expr:
        """The value computed here, once."""
        return maths.bind(value)

    def constant(self, value: float, lanes: int) -> Expr:
        """A number in all of `lanes` lanes."""
        return wide(float(value), lanes) if lanes > 1 else self.math.number(value)

    def bind_integer(self, value: Expr) -> Expr:
        """The same for sizes and offsets, which TVM may reason about."""
        return build.Bind(value)

    def as_float(self, value: Expr) -> Expr:
        """Integers as float32."""
        return self.math.as_kind("float32", value)

    def as_integer(self, value: Expr, dtype: str) -> Expr:
        """Numbers as integers of another width; fractions are cut off."""
        return self.math.as_kind(dtype, value)

    def spread(self, value: Expr, lanes: int | None = None) -> Expr:
        """A number in all lanes (default: of a full vector)."""
        return tirx.Broadcast(value, self.lanes if lanes is None else lanes)

    def total(self, sums: Sequence[Cell], rest: Cell) -> Expr:
        """The sum of all lanes of `sums`, and of `rest`, as one number."""
        level = [cell.get() for cell in sums]
        while len(level) > 1:
            level = [a + b for a, b in zip(level[::2], level[1::2], strict=False)] + level[len(level) & ~1 :]
        sums[0].set(level[0])
        numbers = [sums[0].lane(i) for i in range(self.lanes)]
        while len(numbers) > 1:
            numbers = [a + b for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
        return self.bind(numbers[0] + rest.get())

    def sum_of_lanes(self, vectors: Sequence[Expr]) -> Expr:
        """As many vectors as they have lanes: one vector of their sums, in their order.

        Shuffles stay within groups of four lanes as long as they can, which costs one instruction each on x86.
        """
        level = list(vectors)
        while len(level) > 1:
            width = 1 if len(level) > self.lanes // 4 else 4
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [self.bind(_fold(a, b, self.lanes, width)) for a, b in pairs]
        return level[0]

    def within(self, first: Expr, end: Expr) -> Expr:
        """For each lane, whether first + lane < end."""
        return tirx.Ramp(first, 1, self.lanes) < tirx.Broadcast(end, self.lanes)

    def ask_for(self, buffer: Buffer, *index: Expr) -> None:
        """Have what is there fetched into the cache; it may lie beyond the end."""
        address = tirx.address_of(buffer[tuple(index)])
        build.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *map(_int32, (0, 3, 1))))

    def least(self, a: Expr, b: Expr) -> Expr:
        """The lesser of two sizes."""
        return tirx.min(a, b)

    def pairwise(self, columns: Expr, pair: Expr) -> Expr:
        """int16 columns times the two int16 in each int32 of `pair`, neighbours added: int32 (x86's pmaddwd)."""
        lanes = self.lanes
        name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
        factors = tirx.reinterpret(f"int16x{2 * lanes}", pair)
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.{name}", columns, factors)

    def strips(self, size: int, unroll: int, body: Callable[[Expr, int], None], *, abreast: int = 1) -> None:
        """Walk 0..size in vectors, `unroll` of them a turn, then in single numbers: body(offset, lanes).

        `size` is a constant; the body is written `unroll` times for the loop, and once for each kind of rest. With
        `abreast` so many vectors are one of more lanes, which LLVM takes apart operation by operation: long chains of
        dependent operations then run side by side, where one after the other they fill the processor's window.
        """
        wide = abreast * self.lanes
        if abreast > 1 and size >= wide:
            with self.loop(size // wide) as turn:
                body(turn * wide, wide)
            done = size - size % wide
            if done < size:
                self.strips(size - done, 1, lambda at, lanes: body(at + done, lanes))
            return
        step = self.lanes * unroll
        turns = size // step
        if turns:
            with self.loop(turns) as turn:
                for u in range(unroll):
                    body(turn * step + u * self.lanes, self.lanes)
        rest = turns * step
        for at in range(rest, size - self.lanes + 1, self.lanes):
            body(at, self.lanes)
        singles = size % self.lanes
        if singles:
            with self.loop(singles) as turn:
                body(size - singles + turn, 1)


def _int32(value: int) -> Expr:
    return tirx.const(value, "int32")


def wide(value: Expr, lanes: int, dtype: str = "float32") -> Expr:
    """The value in all lanes, if it is a single number."""
    expr = tirx.const(value, dtype) if isinstance(value, float | int) else value
    return expr if lanes_of(expr) > 1 else tirx.Broadcast(expr, lanes)


def _fold(a: Expr, b: Expr, lanes: int, width: int) -> Expr:
    """Neighbours of a and of b added up; neighbours are numbers (width 1) or groups of four lanes (width 4)."""
    if width == 4:
        first = [g + i for g in range(0, 2 * lanes, 8) for i in range(4)]
        return tirx.Shuffle([a, b], first) + tirx.Shuffle([a, b], [i + 4 for i in first])
    first = [base + g + i for g in range(0, lanes, 4) for base in (0, lanes) for i in (0, 2)]
    return tirx.Shuffle([a, b], first) + tirx.Shuffle([a, b], [i + 1 for i in first])


def emit(body: Callable[[Emit], None], lanes: int) -> Any:
    """The function that the body writes, as a TIR PrimFunc named `main`."""
    with IRBuilder() as builder, build.prim_func(s_tir=False):
        build.func_name(ENTRY)
        build.func_attr({"tirx.noalias": True})
        body(Emit(lanes))
    return builder.get()
