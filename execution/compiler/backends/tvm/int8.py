"""Linear layers with int8 weights: one scale for each output, activations in float32.

    int8_linear  (x [rows, inputs]), weight int8, scale [outputs], maybe bias; attributes `layout` and `epilogue` as of
                 `linear`: y = x @ weight * scale + bias

The default is exact but for rounding in float32: weights become float32 in registers, and are read as a quarter of
the bytes. With `fast_math` also `activations=int8`: each row is quantised by its greatest number (symmetric, 127
steps; as in Dettmers et al., 2022), products are summed in int32, two and two (pmaddwd). Error of a sum of n terms:
at most n * max|x| / 254 * max|w|; in the root mean square 0.3 % of max|x| * |w| for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from execution.compiler.backends.tvm import matmul, panels
from execution.compiler.backends.tvm.cpu import Cpu, detect
from execution.compiler.backends.tvm.template import Allocate, Settings, parallel_ways
from execution.compiler.port import Subject, Tensor

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Emit
    from execution.compiler.backends.tvm.maths import Expr

MOST_ROWS = 32
STEPS = 127.0
"""Of a quantised activation, to each side of 0."""


class Int8Linear:
    """The family."""

    ops = ("int8_linear",)

    def refuse(self, subject: Subject) -> str | None:
        """As of `linear`, with a matrix of int8 and its scales."""
        shape = matmul.refuse_shapes(subject, weights=2, most_rows=MOST_ROWS)
        if shape is not None:
            return shape
        kinds = [spec.dtype for spec in (*subject.inputs, *subject.params)]
        wanted = ["float32", "int8", "float32", "float32"][: len(kinds)]
        return None if kinds == wanted else f"int8_linear takes {', '.join(wanted)}; not {', '.join(kinds)}"

    def settings(self, subject: Subject, cpu: Cpu) -> Sequence[Settings]:
        """Tiles as of `linear`; by integers first, where that is allowed and the processor can."""
        inputs, outputs = matmul.sizes(subject)
        ways = parallel_ways(subject, 1.0 * inputs * outputs)
        found: list[Settings] = []
        for kind in ("int8", "float32") if subject.fast_math and "avx2" in cpu.features else ("float32",):
            tiles = _tiles(subject.bucket.most, cpu, kind)
            cut: list[Settings] = [
                {"activations": kind, "tile": t, "width": w, "unroll": u} for t, w, u in tiles
            ]
            found += matmul.ways_of(cut, ways, cpu, 1.0 * inputs * outputs, in_streams=kind == "float32")
        return found

    def prepare(self, subject: Subject, settings: Settings, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The weight in panels; for integers pairs of inputs side by side."""
        lanes = detect().lanes
        weight, width = matmul.by_inputs(subject, params[0]), int(settings["width"]) * lanes
        vectors = [panels.filled_up(param, width) for param in params[1:]]
        if settings["activations"] == "float32":
            return (panels.packed(weight, width, int(settings["streams"])), *vectors)
        if weight.shape[0] % 2:
            weight = _with_row_of_zeros(weight)
        packed = panels.packed(weight, width)
        paired = packed.unflatten(1, (-1, 2)).transpose(2, 3)
        return (paired.flatten(2).contiguous(), *vectors)

    def outputs(self, subject: Subject) -> int:  # noqa: ARG002
        """One."""
        return 1

    def allocate(self, subject: Subject, settings: Settings) -> Allocate:
        """[rows, outputs]; for integers also room for quantised rows and their steps."""
        inputs, outputs = matmul.sizes(subject)
        if settings["activations"] == "float32":
            return lambda x: (x.new_empty(x.shape[0], outputs),)
        import torch  # noqa: PLC0415

        pairs = -(-inputs // 2)

        def room(x: Tensor) -> tuple[Tensor, ...]:
            rows = x.shape[0]
            return (
                x.new_empty(rows, outputs),
                x.new_empty(rows, pairs, dtype=torch.int32),
                x.new_empty(rows),
            )

        return room

    def body(self, subject: Subject, settings: Settings, cpu: Cpu) -> Callable[[Emit], None]:
        """By float32, or by integers."""
        if settings["activations"] == "float32":
            return lambda k: _by_floats(k, subject, settings, cpu)
        return lambda k: _by_integers(k, subject, settings)


TEMPLATE = Int8Linear()


def _tiles(rows: int, cpu: Cpu, kind: str) -> list[tuple[int, int, int]]:
    if kind == "int8":
        return {1: [(1, 4, 2), (1, 8, 1)], 2: [(2, 4, 2), (2, 2, 2)]}.get(
            rows, [(min(4, rows), 2, 2), (min(4, rows), 3, 1)]
        )
    if rows <= 2:
        return [(rows, 4, 4), (rows, 8 // rows, 2)] if rows == 1 else [(2, 4, 2), (2, 2, 4)]
    if cpu.registers > 16:
        return [(min(rows, 6), 4, 2), (min(rows, 4), 4, 2)]
    return [(min(rows, 4), 2, 2), (min(rows, 4), 3, 2)] if rows not in {6, 12} else [(6, 2, 2), (4, 2, 2)]


def _by_floats(k: Emit, subject: Subject, settings: Settings, cpu: Cpu) -> None:
    inputs, outputs = matmul.sizes(subject)
    width, streams = int(settings["width"]) * cpu.lanes, int(settings["streams"])
    count = -(-outputs // width)
    rows = k.symbol("rows")
    x = k.rows_of("x", (rows, inputs))
    weight = k.tensor("weight", (count * streams, inputs, width // streams), "int8")
    scale = k.tensor("scale", (count * width,))
    bias = k.tensor("bias", (count * width,)) if len(subject.params) > 2 else None
    y = k.tensor("y", (rows, outputs))

    def done(value: Expr, at: Expr) -> Expr:
        value = value * k.load(scale, at, lanes=cpu.lanes)
        return matmul.epilogue(
            k, subject, value if bias is None else value + k.load(bias, at, lanes=cpu.lanes)
        )

    def column(panel: Expr, at: Expr, offset: int) -> Expr:
        return k.as_float(k.load(weight, *panels.place(panel, at, offset, width, streams), lanes=cpu.lanes))

    def ask(panel: Expr, at: Expr) -> None:
        panels.ask_for_row(k, weight, panel, at, width, streams, 1)

    matmul.product(k, subject, settings, rows, x, column, y, done, ask)


def _by_integers(k: Emit, subject: Subject, settings: Settings) -> None:
    inputs, outputs = matmul.sizes(subject)
    vectors, pairs = int(settings["width"]), -(-inputs // 2)
    count = -(-outputs // (vectors * k.lanes))
    rows = k.symbol("rows")
    x = k.rows_of("x", (rows, inputs))
    weight = k.tensor("weight", (count, pairs, 2 * vectors * k.lanes), "int8")
    scale = k.tensor("scale", (count * vectors * k.lanes,))
    bias = k.tensor("bias", (count * vectors * k.lanes,)) if len(subject.params) > 2 else None
    y = k.tensor("y", (rows, outputs))
    quantised = k.tensor("quantised", (rows, pairs), "int32")
    step_of = k.tensor("steps", (rows,))
    _quantise(k, rows, inputs, x, quantised, step_of)

    with k.rows(count, parallel=settings["threads"] != 1) as panel:

        def write(first: Expr, number: int) -> None:
            sums = [[k.cell(0, dtype="int32") for _ in range(vectors)] for _ in range(number)]

            def step(at: Expr) -> None:
                if settings["ahead"]:
                    ahead = at + int(settings["ahead"])
                    panels.ask_for_row(k, weight, panel, ahead, 2 * vectors * k.lanes, 1, 1)
                columns = [
                    k.bind(
                        k.as_integer(k.load(weight, panel, at, 2 * v * k.lanes, lanes=2 * k.lanes), "int16")
                    )
                    for v in range(vectors)
                ]
                for r in range(number):
                    pair = k.bind(k.spread(k.load(quantised, first + r, at)))
                    for v in range(vectors):
                        sums[r][v].set(sums[r][v].get() + k.pairwise(columns[v], pair))

            matmul.steps(k, pairs, int(settings["unroll"]), step)
            for r in range(number):
                unit = k.bind(k.load(step_of, first + r))

                def done(value: Expr, at: Expr, unit: Expr = unit) -> Expr:
                    value = k.as_float(value) * unit * k.load(scale, at, lanes=k.lanes)
                    shifted = value if bias is None else value + k.load(bias, at, lanes=k.lanes)
                    return matmul.epilogue(k, subject, shifted)

                matmul.finish(k, sums[r : r + 1], panel, done, y, first + r, outputs)

        matmul.row_tiles(k, rows, int(settings["tile"]), subject.bucket.least, subject.bucket.most, write)


def _quantise(k: Emit, rows: Expr, inputs: int, x: Expr, quantised: Expr, step_of: Expr) -> None:  # noqa: PLR0917
    """Each row in steps of max|x| / 127, two int16 in one int32; rows that hold NaN or inf have NaN for a step."""
    with k.rows(rows, parallel=False) as row:
        tops, rest = k.cell(0.0), k.cell(0.0, lanes=1)

        def raise_to(at: Expr, lanes: int) -> None:
            cell = tops if lanes > 1 else rest
            cell.set(k.math.maximum(k.math.absolute(k.load(x, row, at, lanes=lanes)), cell.get()))

        k.strips(inputs, 2, raise_to)
        for lane in range(k.lanes):
            rest.set(k.math.maximum(tops.lane(lane), rest.get()))
        top = k.bind(rest.get())
        spoilt = k.math.choose(k.math.is_finite(top), top, k.math.like(float("nan"), top))
        k.store(step_of, spoilt * (1.0 / STEPS), row)
        usable = k.math.choose(k.math.is_finite(top) & (top > 0.0), top, k.math.like(1.0, top))
        inverse = k.bind(STEPS / usable)

        def whole(at: Expr) -> Expr:
            return k.math.nearest(k.load(x, row, at) * inverse)

        with k.loop(inputs // 2) as pair:
            k.store(quantised, k.math.two_in_one(whole(2 * pair), whole(2 * pair + 1)), row, pair)
        if inputs % 2:
            k.store(quantised, k.math.two_in_one(whole(inputs - 1), 0), row, inputs // 2)


def _with_row_of_zeros(weight: Tensor) -> Tensor:
    import torch  # noqa: PLC0415

    return torch.cat([weight, weight.new_zeros((1, weight.shape[1]))])
