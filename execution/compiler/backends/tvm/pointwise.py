"""Kernels without sums: swiglu, gelu, and any chain of pointwise operators.

swiglu        (x [rows, 2 n]) -> silu(first half) * second half
gelu          (x [rows, n]); attribute `approximate`: absent or `tanh`
elementwise   what the subject's source says (chain.py): inputs and weights of [rows, n], [n], [rows, 1], or
              one number; results of [rows, n]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from execution.compiler.backends.tvm import chain as chains
from execution.compiler.backends.tvm.chain import Chain, ChainError, Reach
from execution.compiler.backends.tvm.cpu import Cpu
from execution.compiler.backends.tvm.template import Allocate, Settings, attrs_of, only_float32, parallel_ways
from execution.compiler.port import CompileError, Subject, Tensor

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Buffer, Emit
    from execution.compiler.backends.tvm.maths import Expr

MOST_COLUMNS = 1_000_000
ABREAST = (3, 4)
"""Vectors side by side: an activation is a chain of some 30 dependent operations, of which one vector at a time leaves the
processor waiting (AVX2: 1.2 to 1.3 times slower, measured)."""


class Pointwise:
    """The family."""

    ops = ("swiglu", "gelu", "elementwise")

    def refuse(self, subject: Subject) -> str | None:
        """What is not pointwise, by name."""
        if subject.op == "elementwise":
            try:
                columns = chains.read(subject).columns
            except ChainError as error:
                return str(error)
        else:
            if len(subject.inputs) != 1 or len(subject.inputs[0].shape) != 2 or subject.params:
                return f"{subject.op} takes one input of [rows, columns]"
            columns = subject.inputs[0].shape[1]
            if subject.op == "swiglu" and columns % 2:
                return f"swiglu of {columns} columns: two halves are needed"
        if not 1 <= columns <= MOST_COLUMNS:
            return f"rows of {columns} numbers: 1 to {MOST_COLUMNS} are possible"
        return only_float32((*subject.inputs, *subject.params))

    def settings(self, subject: Subject, cpu: Cpu) -> Sequence[Settings]:  # noqa: ARG002
        """Vectors side by side, and threads."""
        numbers = sum(_size(spec.shape) for spec in subject.inputs)
        ways = parallel_ways(subject, 12.0 * numbers) if subject.bucket.most > 1 else [1]
        return [{"abreast": a, "threads": t} for a in ABREAST for t in ways]

    def prepare(self, subject: Subject, settings: Settings, params: Sequence[Tensor]) -> tuple[Tensor, ...]:  # noqa: ARG002
        """As they are."""
        return tuple(p.contiguous() for p in params)

    def outputs(self, subject: Subject) -> int:
        """As many as the chain has."""
        return len(chains.read(subject).results) if subject.op == "elementwise" else 1

    def allocate(self, subject: Subject, settings: Settings) -> Allocate:  # noqa: ARG002
        """[rows, columns] for each."""
        from torch import empty_like  # noqa: PLC0415

        if subject.op == "gelu":
            return lambda x: (empty_like(x),)
        if subject.op == "swiglu":
            half = subject.inputs[0].shape[1] // 2
            return lambda x: (x.new_empty(x.shape[0], half),)
        chain = chains.read(subject)
        columns = chain.columns
        if len(chain.results) == 1:
            return lambda x: (x.new_empty(x.shape[0], columns),)
        count = len(chain.results)
        return lambda x: tuple(x.new_empty(x.shape[0], columns) for _ in range(count))

    def body(self, subject: Subject, settings: Settings, cpu: Cpu) -> Callable[[Emit], None]:  # noqa: ARG002
        """One loop over all."""
        abreast, parallel = int(settings["abreast"]), settings["threads"] != 1
        if subject.op == "elementwise":
            chain = chains.read(subject)
            return lambda k: _chain(k, subject, chain, abreast, parallel=parallel)
        return lambda k: _one(k, subject, abreast, parallel=parallel)


TEMPLATE = Pointwise()


def _one(k: Emit, subject: Subject, abreast: int, *, parallel: bool) -> None:
    columns = subject.inputs[0].shape[1]
    width = columns // 2 if subject.op == "swiglu" else columns
    rows = k.symbol("rows")
    x, y = k.rows_of("x", (rows, columns)), k.tensor("y", (rows, width))
    fast = subject.fast_math
    gelu = k.math.gelu_tanh if attrs_of(subject).get("approximate") == "tanh" else k.math.gelu
    with k.rows(rows, parallel=parallel) as row:

        def write(at: Expr, lanes: int) -> None:
            value = k.load(x, row, at, lanes=lanes)
            if subject.op == "gelu":
                value = gelu(value, fast=fast)
            else:
                value = k.math.silu(value, fast=fast) * k.load(x, row, at + width, lanes=lanes)
            k.store(y, value, row, at, lanes=lanes)

        k.strips(width, 1, write, abreast=abreast)


def _chain(k: Emit, subject: Subject, chain: Chain, abreast: int, *, parallel: bool) -> None:
    rows = k.symbol("rows")
    buffers: list[tuple[Buffer, int]] = []
    for number, spec in enumerate((*subject.inputs, *subject.params)):
        shape = list(spec.shape)
        if len(shape) == 2:
            buffers.append((k.rows_of(f"a{number}", (rows, shape[1])), 2))
        else:
            buffers.append((k.tensor(f"a{number}", shape), len(shape)))
    results = [k.tensor(f"y{i}", (rows, chain.columns)) for i in range(len(chain.results))]

    with k.rows(rows, parallel=parallel) as row:

        def write(at: Expr, lanes: int) -> None:
            values: dict[int, Expr] = {}

            def value_of(ref: chains.Ref) -> Expr:
                if isinstance(ref, float):
                    return k.constant(ref, lanes)
                if ref not in values:
                    if chains.is_step(ref):
                        values[ref] = k.bind(_compute(k, chain, ref, value_of, fast=subject.fast_math))
                    else:
                        values[ref] = k.bind(_read(k, chain.operands[ref], buffers, row, at, lanes))
                return values[ref]

            for result, ref in zip(results, chain.results, strict=True):
                k.store(result, value_of(ref), row, at, lanes=lanes)

        k.strips(chain.columns, 1, write, abreast=abreast)


def _read(  # noqa: PLR0917
    k: Emit, operand: chains.Operand, buffers: Sequence[tuple[Buffer, int]], row: Expr, at: Expr, lanes: int
) -> Expr:
    buffer, dimensions = buffers[operand.argument]
    if operand.reach is Reach.ALL:
        return k.load(buffer, row, at + operand.offset, lanes=lanes)
    if operand.reach is Reach.COLUMNS:
        return k.load(buffer, at + operand.offset, lanes=lanes)
    number = k.load(buffer, row, 0) if dimensions == 2 else k.load(buffer, *([0] * max(dimensions, 1)))
    return number if lanes == 1 else k.spread(number, lanes)


def _compute(k: Emit, chain: Chain, ref: int, value_of: Callable[[chains.Ref], Expr], *, fast: bool) -> Expr:
    step = chain.steps[chains.step_number(ref)]
    values = [value_of(argument) for argument in step.arguments]
    m, a = k.math, values[0]
    zero, one = m.like(0.0, a), m.like(1.0, a)
    simple: dict[str, Callable[[], Expr]] = {
        "add": lambda: a + values[1],
        "sub": lambda: a - values[1],
        "mul": lambda: a * values[1],
        "div": lambda: a / values[1],
        "maximum": lambda: m.maximum(a, values[1]),
        "minimum": lambda: m.minimum(a, values[1]),
        "neg": lambda: m.negative(a),
        "relu": lambda: m.maximum(a, zero),
        "leaky_relu": lambda: m.choose(a > zero, a, a * m.like(step.settings[0], a)),
        "sqrt": lambda: m.square_root(a),
        "rsqrt": lambda: one / m.square_root(a),
        "reciprocal": lambda: one / a,
        "abs": lambda: m.absolute(a),
        "square": lambda: a * a,
        "cube": lambda: a * a * a,
    }
    if step.op in simple:
        return simple[step.op]()
    functions = {
        "sigmoid": m.sigmoid,
        "silu": m.silu,
        "tanh": m.tanh,
        "exp": m.exp,
        "erf": m.erf,
        "gelu": m.gelu,
        "gelu_tanh": m.gelu_tanh,
    }
    if step.op not in functions:
        raise CompileError(f"tvm: no expression for {step.op}")
    return functions[step.op](a, fast=fast)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
