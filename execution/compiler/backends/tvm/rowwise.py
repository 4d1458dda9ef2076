"""Kernels in which each row is normalised by itself: rms_norm, layer_norm, softmax.

    rms_norm     (x[, residual]) and maybe a weight; attributes `eps`, `unit` (no sqrt(hidden): the engine's UnitNorm,
                 x / sqrt(sum(x^2) + hidden eps)), `residual` (x + residual is normalised; both are given back:
                 the sum, then its norm)
    layer_norm   (x), weight and bias or neither; attribute `eps`
    softmax      (x), over the last dimension

A row is read once from memory and again from the first-level cache; sums are kept in `unroll` registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from execution.compiler.backends.tvm.cpu import Cpu
from execution.compiler.backends.tvm.template import Allocate, Settings, attrs_of, only_float32, parallel_ways
from execution.compiler.port import Subject, Tensor

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Buffer, Emit
    from execution.compiler.backends.tvm.maths import Expr

PARAMS = {"rms_norm": (0, 1), "layer_norm": (0, 2), "softmax": (0,)}
MOST_COLUMNS = 65_536


class RowWise:
    """The family."""

    ops = ("rms_norm", "layer_norm", "softmax")

    def refuse(self, subject: Subject) -> str | None:
        """Rows of one width, float32."""
        shapes = {spec.shape for spec in subject.inputs}
        inputs = 2 if attrs_of(subject).get("residual") else 1
        if len(subject.inputs) != inputs or len(shapes) != 1 or len(subject.inputs[0].shape) != 2:
            return f"{subject.op} takes {inputs} input(s) of [rows, columns], not {sorted(shapes)}"
        if len(subject.params) not in PARAMS[subject.op]:
            return f"{subject.op} takes {PARAMS[subject.op]} parameters, not {len(subject.params)}"
        columns = subject.inputs[0].shape[1]
        if any(spec.shape != (columns,) for spec in subject.params):
            return f"parameters of {subject.op} must be of shape ({columns},)"
        if not 1 <= columns <= MOST_COLUMNS:
            return f"rows of {columns} numbers: 1 to {MOST_COLUMNS} are possible"
        return only_float32((*subject.inputs, *subject.params))

    def settings(self, subject: Subject, cpu: Cpu) -> Sequence[Settings]:
        """Unrolling by what fits into the registers, and threads."""
        rows, columns = subject.bucket.most, subject.inputs[0].shape[1]
        unrolls = [u for u in (4, 8, 2) if u * cpu.lanes <= columns] or [1]
        ways = parallel_ways(subject, 8.0 * rows * columns) if rows > 1 else [1]
        return [{"unroll": u, "threads": t} for u in unrolls[:2] for t in ways]

    def prepare(self, subject: Subject, settings: Settings, params: Sequence[Tensor]) -> tuple[Tensor, ...]:  # noqa: ARG002
        """As they are."""
        return tuple(p.contiguous() for p in params)

    def outputs(self, subject: Subject) -> int:
        """One, and the sum where there is a residual."""
        return 2 if attrs_of(subject).get("residual") else 1

    def allocate(self, subject: Subject, settings: Settings) -> Allocate:  # noqa: ARG002
        """Like the input."""
        from torch import empty_like  # noqa: PLC0415

        if self.outputs(subject) == 2:
            return lambda x: (empty_like(x), empty_like(x))
        return lambda x: (empty_like(x),)

    def body(self, subject: Subject, settings: Settings, cpu: Cpu) -> Callable[[Emit], None]:  # noqa: ARG002
        """One row after the other, or shared out."""
        write = {"rms_norm": _rms_norm, "layer_norm": _layer_norm, "softmax": _softmax}[subject.op]
        return lambda k: write(k, subject, int(settings["unroll"]), parallel=settings["threads"] != 1)


TEMPLATE = RowWise()


def _sum_over(k: Emit, columns: int, unroll: int, term: Callable[[Expr, int], Expr]) -> Expr:
    """The sum of term(offset, lanes) over a row, in a cell that holds one number."""
    sums = [k.cell(0.0) for _ in range(unroll)]
    rest = k.cell(0.0, lanes=1)
    turn = 0

    def add(at: Expr, lanes: int) -> None:
        nonlocal turn
        cell = sums[turn % unroll] if lanes > 1 else rest
        cell.set(cell.get() + term(at, lanes))
        turn += lanes > 1

    k.strips(columns, unroll, add)
    return k.total(sums, rest)


def _rms_norm(k: Emit, subject: Subject, unroll: int, *, parallel: bool) -> None:
    attrs, columns = attrs_of(subject), subject.inputs[0].shape[1]
    rows = k.symbol("rows")
    x = k.rows_of("x", (rows, columns))
    residual = k.rows_of("residual", (rows, columns)) if attrs.get("residual") else None
    weight = k.tensor("weight", (columns,)) if subject.params else None
    added = k.tensor("added", (rows, columns)) if residual is not None else None
    y = k.tensor("y", (rows, columns))
    share, eps = (
        (1.0, float(attrs["eps"]) * columns) if attrs.get("unit") else (1.0 / columns, float(attrs["eps"]))
    )

    with k.rows(rows, parallel=parallel) as row:

        def square(at: Expr, lanes: int) -> Expr:
            value = k.load(x, row, at, lanes=lanes)
            if residual is not None:
                value = k.bind(value + k.load(residual, row, at, lanes=lanes))
                k.store(added, value, row, at, lanes=lanes)
            return value * value

        total = _sum_over(k, columns, unroll, square)
        factor = k.bind(1.0 / k.math.square_root(total * share + eps))
        source: Buffer = x if added is None else added

        def scale(at: Expr, lanes: int) -> None:
            value = k.load(source, row, at, lanes=lanes) * factor
            k.store(
                y, value if weight is None else value * k.load(weight, at, lanes=lanes), row, at, lanes=lanes
            )

        k.strips(columns, unroll, scale)


def _layer_norm(k: Emit, subject: Subject, unroll: int, *, parallel: bool) -> None:
    columns = subject.inputs[0].shape[1]
    rows = k.symbol("rows")
    x = k.rows_of("x", (rows, columns))
    weight = k.tensor("weight", (columns,)) if subject.params else None
    bias = k.tensor("bias", (columns,)) if subject.params else None
    y = k.tensor("y", (rows, columns))
    with k.rows(rows, parallel=parallel) as row:
        mean = k.bind(
            _sum_over(k, columns, unroll, lambda at, n: k.load(x, row, at, lanes=n)) * (1.0 / columns)
        )

        def deviation(at: Expr, lanes: int) -> Expr:
            off = k.bind(k.load(x, row, at, lanes=lanes) - mean)
            return off * off

        variance = _sum_over(k, columns, unroll, deviation) * (1.0 / columns)
        factor = k.bind(1.0 / k.math.square_root(variance + float(attrs_of(subject)["eps"])))

        def scale(at: Expr, lanes: int) -> None:
            value = (k.load(x, row, at, lanes=lanes) - mean) * factor
            if weight is not None and bias is not None:
                value = value * k.load(weight, at, lanes=lanes) + k.load(bias, at, lanes=lanes)
            k.store(y, value, row, at, lanes=lanes)

        k.strips(columns, unroll, scale)


def _softmax(k: Emit, subject: Subject, unroll: int, *, parallel: bool) -> None:
    columns = subject.inputs[0].shape[1]
    rows = k.symbol("rows")
    x = k.rows_of("x", (rows, columns))
    y = k.tensor("y", (rows, columns))
    with k.rows(rows, parallel=parallel) as row:
        greatest = k.cell(k.load(x, row, 0), lanes=1)
        tops = k.cell(greatest.get())

        def raise_to(at: Expr, lanes: int) -> None:
            cell = tops if lanes > 1 else greatest
            cell.set(k.math.greater(k.load(x, row, at, lanes=lanes), cell.get()))

        k.strips(columns, unroll, raise_to)
        for lane in range(k.lanes):
            greatest.set(k.math.greater(tops.lane(lane), greatest.get()))
        top = k.bind(greatest.get())

        def power(at: Expr, lanes: int) -> Expr:
            value = k.bind(k.math.exp(k.load(x, row, at, lanes=lanes) - top, fast=subject.fast_math))
            k.store(y, value, row, at, lanes=lanes)
            return value

        factor = k.bind(1.0 / _sum_over(k, columns, unroll, power))
        k.strips(
            columns,
            unroll,
            lambda at, n: k.store(y, k.load(y, row, at, lanes=n) * factor, row, at, lanes=n),
        )
