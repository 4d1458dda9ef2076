"""Linear layers of few rows: x @ weight [+ bias], then maybe an activation.

    linear       (x [rows, inputs]), weight and maybe bias; attributes `layout`: `inputs_outputs` (the engine's
                 Projection) or `outputs_inputs` (nn.Linear), told by the shape where absent; `epilogue`: absent, `relu`, `silu`, `gelu`

Few rows are bound by reading weights, so these stand in memory in the order in which they are read: panels of a
few vectors' width, each row of a panel one step of the sum. The sums of a tile (`tile` rows, `width` vectors) are in
registers (Goto and van de Geijn, 2008). Rows that fill no tile get a smaller one, written out for each number of
rows that can be left. Many rows are for a proper GEMM: from 32 rows on nothing is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from execution.compiler.backends.tvm.cpu import Cpu
from execution.compiler.backends.tvm.template import Allocate, Settings, attrs_of, only_float32, parallel_ways
from execution.compiler.port import Subject, Tensor

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Buffer, Cell, Emit
    from execution.compiler.backends.tvm.maths import Expr

LAYOUTS = ("inputs_outputs", "outputs_inputs")
EPILOGUES = ("", "relu", "silu", "gelu")
MOST_ROWS = 32
CACHE_LINE = 64


class Linear:
    """The family."""

    ops = ("linear",)

    def refuse(self, subject: Subject) -> str | None:
        """One input of few rows, a weight of its width, float32."""
        shape = refuse_shapes(subject, weights=1)
        if shape is not None:
            return shape
        return only_float32((*subject.inputs, *subject.params))

    def settings(self, subject: Subject, cpu: Cpu) -> Sequence[Settings]:
        """Tiles that fit into the registers, and threads."""
        inputs, outputs = sizes(subject)
        ways = parallel_ways(subject, 4.0 * inputs * outputs)
        tiles = _tiles(subject.bucket.most, outputs, cpu)
        return ways_of(
            [{"tile": t, "width": w, "unroll": u} for t, w, u in tiles], ways, cpu, 4 * inputs, outputs
        )

    def prepare(self, subject: Subject, settings: Settings, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The weight in panels; columns that fill no panel are made up with zeros."""
        from execution.compiler.backends.tvm.cpu import detect  # noqa: PLC0415

        width = int(settings["width"]) * detect().lanes
        return (panels(by_inputs(subject, params[0]), width), *(filled_up(p, width) for p in params[1:]))

    def outputs(self, subject: Subject) -> int:  # noqa: ARG002
        """One."""
        return 1

    def allocate(self, subject: Subject, settings: Settings) -> Allocate:  # noqa: ARG002
        """[rows, outputs]."""
        outputs = sizes(subject)[1]
        return lambda x, *_: (x.new_empty((x.shape[0], outputs)),)

    def body(self, subject: Subject, settings: Settings, cpu: Cpu) -> Callable[[Emit], None]:
        """Panel by panel, tile by tile."""
        return lambda k: _linear(k, subject, settings, cpu)


TEMPLATE = Linear()


def ways_of(
    tiles: Sequence[Settings], threads: Sequence[int], cpu: Cpu, bytes_of_column: int, outputs: int
) -> list[Settings]:
    """Recipes: tiles, likely ones first; with all numbers of threads for the best; asking ahead or not.

    Weights that outgrow the second-level cache are asked for some steps before they are used (`ahead`): the processor
    alone stops guessing at the end of each page.
    """
    far = bytes_of_column * outputs > cpu.l2_bytes

    def with_more(tile: Settings, count: int, *, ahead: bool) -> Settings:
        step = int(tile["width"]) * cpu.lanes * _bytes_of(tile)
        return {**tile, "ahead": max(8, min(32, 4096 // step)) if ahead else 0, "threads": count}

    best, *others = tiles
    found = [with_more(best, count, ahead=far) for count in threads]
    found += [with_more(other, threads[0], ahead=far) for other in others]
    if far:
        found.insert(1, with_more(best, threads[0], ahead=False))
    return found


def _bytes_of(tile: Settings) -> int:
    return 1 if "activations" in tile else 4


def sizes(subject: Subject) -> tuple[int, int]:
    """(inputs, outputs) of the subject's weight."""
    a, b = subject.params[0].shape
    return (a, b) if layout_of(subject) == LAYOUTS[0] else (b, a)


def layout_of(subject: Subject) -> str:
    """Of the weight: as said; else as its shape says; else as usual, the engine's for float32, nn.Linear's for int8."""
    said = attrs_of(subject).get("layout")
    if said is not None:
        return str(said)
    (a, b), inputs = subject.params[0].shape, subject.inputs[0].shape[-1]
    if a != b:
        return LAYOUTS[0] if a == inputs else LAYOUTS[1]
    return LAYOUTS[1] if subject.op == "int8_linear" else LAYOUTS[0]


def refuse_shapes(subject: Subject, *, weights: int) -> str | None:  # noqa: PLR0911 - one for each reason
    """Why these shapes are not a linear layer's of few rows. `weights`: parameters before the bias."""
    attrs = attrs_of(subject)
    if attrs.get("layout", LAYOUTS[0]) not in LAYOUTS:
        return f"layout {attrs['layout']!r}: {' or '.join(LAYOUTS)} are possible"
    if attrs.get("epilogue", "") not in EPILOGUES:
        return f"epilogue {attrs['epilogue']!r}: {', '.join(EPILOGUES[1:])} are possible"
    if len(subject.inputs) != 1 or len(subject.inputs[0].shape) != 2:
        return f"{subject.op} takes one input of [rows, inputs]"
    if not weights <= len(subject.params) <= weights + 1 or len(subject.params[0].shape) != 2:
        return f"{subject.op} takes a matrix{' with scales' * (weights > 1)} and maybe a bias"
    inputs, outputs = sizes(subject)
    if subject.inputs[0].shape[1] != inputs or any(spec.shape != (outputs,) for spec in subject.params[1:]):
        return (
            f"{subject.op}: shapes do not fit: {subject.inputs[0].shape}, {[p.shape for p in subject.params]}"
        )
    if subject.bucket.most > MOST_ROWS:
        return f"{subject.op} of up to {subject.bucket.most} rows: templates are for {MOST_ROWS} at most"
    return None


def by_inputs(subject: Subject, weight: Tensor) -> Tensor:
    """The weight as [inputs, outputs]."""
    return weight if layout_of(subject) == LAYOUTS[0] else weight.t()


def panels(weight: Tensor, width: int) -> Tensor:
    """[inputs, outputs] as [panels, inputs, width]; the last panel is filled up with zeros."""
    inputs, outputs = weight.shape
    count = -(-outputs // width)
    packed = weight.new_zeros((count, inputs, width))
    whole = outputs // width
    packed[:whole] = weight[:, : whole * width].reshape(inputs, whole, width).transpose(0, 1)
    if whole != count:
        packed[whole, :, : outputs - whole * width] = weight[:, whole * width :]
    return packed


def filled_up(vector: Tensor, width: int) -> Tensor:
    """[outputs], filled up with zeros to whole panels."""
    outputs = vector.shape[0]
    full = vector.new_zeros(-(-outputs // width) * width)
    full[:outputs] = vector
    return full


def _tiles(rows: int, outputs: int, cpu: Cpu) -> list[tuple[int, int, int]]:
    """(rows, vectors, unrolled steps) of tiles whose sums fit into the registers, likely ones first.

    A fused multiply-add takes four cycles and two can begin in each: eight sums at least keep a core busy.
    """
    wanted = {1: [(1, 8), (1, 4)], 2: [(2, 4), (2, 6)], 3: [(3, 4), (3, 2)], 4: [(4, 2), (4, 3)]}
    few = cpu.registers <= 16
    if not few:
        wanted[3], wanted[4] = [(3, 6), (3, 4)], [(4, 6), (4, 4)]
    deep = [(6, 2), (4, 3), (8, 1)] if few else [(8, 3), (6, 4), (4, 6)]
    if rows in {5, 7, 8} and few:
        deep = [(4, 3), (6, 2), (8, 1)]
    found = []
    for tile, vectors in wanted.get(rows, deep):
        width = min(vectors, max(1, -(-outputs // cpu.lanes)))
        if (min(tile, rows), width, 4 if tile * width <= 8 else 2) not in found:
            found.append((min(tile, rows), width, 4 if tile * width <= 8 else 2))
    return found


def row_tiles(  # noqa: PLR0917
    k: Emit, rows: Expr, tile: int, least: int, most: int, write: Callable[[Expr, int], None]
) -> None:
    """write(first row, rows) for all rows: whole tiles, then what is left.

    Any number of rows is right; `least` and `most` only spare code for what cannot be.
    """
    if least == most and most <= tile:
        k.choose(
            [(rows == most, lambda: write(0, most)), (rows != most, lambda: _one_by_one(k, rows, write))]
        )
        return
    with k.loop(rows // tile) as turn:
        write(turn * tile, tile)
    left, first = k.bind_integer(rows % tile), k.bind_integer(rows - rows % tile)
    for number in range(1, tile):
        with k.when(left == number):
            write(first, number)


def _one_by_one(k: Emit, rows: Expr, write: Callable[[Expr, int], None]) -> None:
    with k.loop(rows) as row:
        write(row, 1)


def epilogue(k: Emit, subject: Subject, value: Expr) -> Expr:
    """The activation behind the product."""
    kind = attrs_of(subject).get("epilogue", "")
    if kind == "relu":
        return k.math.maximum(value, k.math.like(0.0, value))
    if kind == "silu":
        return k.math.silu(value, fast=subject.fast_math)
    if kind == "gelu":
        return k.math.gelu(value, fast=subject.fast_math)
    return value


def _linear(k: Emit, subject: Subject, settings: Settings, cpu: Cpu) -> None:
    inputs, outputs = sizes(subject)
    width = int(settings["width"]) * cpu.lanes
    count = -(-outputs // width)
    rows = k.symbol("rows")
    x = k.rows_of("x", (rows, inputs))
    weight = k.tensor("weight", (count, inputs, width))
    bias = k.tensor("bias", (count * width,)) if len(subject.params) > 1 else None
    y = k.tensor("y", (rows, outputs))

    def done(value: Expr, at: Expr) -> Expr:
        return epilogue(k, subject, value if bias is None else value + k.load(bias, at, lanes=cpu.lanes))

    def column(*at: Expr) -> Expr:
        return k.load(weight, *at, lanes=cpu.lanes)

    product(k, subject, settings, rows, x, column, y, done, lambda *at: ask_for_row(k, weight, at, width, 4))


def ask_for_row(k: Emit, weight: Buffer, at: tuple[Expr, ...], width: int, size: int) -> None:
    """Have `width` numbers of `size` bytes fetched, a cache line at a time."""
    for offset in range(0, width, CACHE_LINE // size):
        k.ask_for(weight, *at, offset)


def product(  # noqa: PLR0917 - written once, called twice
    k: Emit,
    subject: Subject,
    settings: Settings,
    rows: Expr,
    x: Buffer,
    column: Callable[..., Expr],
    y: Buffer,
    done: Callable[[Expr, Expr], Expr],
    ask: Callable[..., None],
) -> None:
    """Y = done(x @ weight): column(panel, input, offset) is a vector of the weight, as float32.

    `ask(panel, input)` has a row of a panel fetched.
    """
    inputs, outputs = sizes(subject)
    vectors = int(settings["width"])

    with k.rows(-(-outputs // (vectors * k.lanes)), parallel=settings["threads"] != 1) as panel:

        def write(first: Expr, number: int) -> None:
            sums = [[k.cell(0.0) for _ in range(vectors)] for _ in range(number)]

            def step(at: Expr) -> None:
                if settings["ahead"]:
                    ask(panel, at + int(settings["ahead"]))
                columns = [k.bind(column(panel, at, v * k.lanes)) for v in range(vectors)]
                for r in range(number):
                    factor = k.bind(k.spread(k.load(x, first + r, at)))
                    for v in range(vectors):
                        sums[r][v].set(sums[r][v].get() + columns[v] * factor)

            steps(k, inputs, int(settings["unroll"]), step)
            finish(k, sums, panel, done, y, first, outputs)

        row_tiles(k, rows, int(settings["tile"]), subject.bucket.least, subject.bucket.most, write)


def steps(k: Emit, count: int, unroll: int, step: Callable[[Expr], None]) -> None:
    """step(0) to step(count - 1), `unroll` of them a turn."""
    turns = count // unroll
    if turns:
        with k.loop(turns) as turn:
            for u in range(unroll):
                step(turn * unroll + u)
    for at in range(turns * unroll, count):
        step(at)


def finish(  # noqa: PLR0917
    k: Emit,
    sums: Sequence[Sequence[Cell]],
    panel: Expr,
    done: Callable[[Expr, Expr], Expr],
    y: Buffer,
    first: Expr,
    outputs: int,
) -> None:
    """Write the tile's sums to y; of the last panel only the columns that there are."""
    lanes = k.lanes
    width = lanes * len(sums[0])
    whole = outputs // width

    def columns(there: int) -> None:
        for r, row in enumerate(sums):
            for v, cell in enumerate(row):
                at, left = panel * width + v * lanes, there - v * lanes
                if left >= lanes:
                    k.store(y, done(cell.get(), at), first + r, at, lanes=lanes)
                elif left > 0:
                    last = k.cell(done(cell.get(), at))
                    for lane in range(left):
                        k.store(y, last.lane(lane), first + r, at + lane)

    if whole * width == outputs:
        columns(width)
    elif whole == 0:
        columns(outputs)
    else:
        k.choose(
            [(panel < whole, lambda: columns(width)), (panel == whole, lambda: columns(outputs % width))]
        )
