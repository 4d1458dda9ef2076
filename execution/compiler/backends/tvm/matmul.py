"""Linear layers: x @ weight [+ bias], then maybe an activation.

    linear       (x [rows, inputs]), weight and maybe bias; attributes `layout`: `inputs_outputs` (the engine's
                 Projection) or `outputs_inputs` (nn.Linear), told by the shape where absent; `epilogue`: absent, `relu`, `silu`, `gelu`

Few rows are bound by reading weights, so these stand in memory in the order in which they are read: panels of a
few vectors' width, each row of a panel one step of the sum. The sums of a tile (`tile` rows, `width` vectors) are in
registers (Goto and van de Geijn, 2008). Rows that fill no tile get a smaller one, written out for each number of
rows that can be left. All rows pass over a panel before the next: also for many rows that beats a GEMM that must pack
the weight at each call; panels are not cut into blocks of inputs, which was slower for panels of 64 and 128 KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from execution.compiler.backends.tvm import panels
from execution.compiler.backends.tvm.cpu import Cpu
from execution.compiler.backends.tvm.template import Allocate, Settings, attrs_of, only_float32, parallel_ways
from execution.compiler.port import Subject, Tensor

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Buffer, Cell, Emit
    from execution.compiler.backends.tvm.maths import Expr

LAYOUTS = ("inputs_outputs", "outputs_inputs")
EPILOGUES = ("", "relu", "silu", "gelu")
MOST_ROWS = 1024
MANY_ROWS = 32
"""Above it the weight is read so often that it is no longer what is waited for."""


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
        cut: list[Settings] = [{"tile": t, "width": w, "unroll": u} for t, w, u in tiles]
        if subject.bucket.most <= MANY_ROWS:
            return ways_of(cut, ways, cpu, 4.0 * inputs * outputs)
        return [{**c, "streams": 1, "ahead": 0, "threads": subject.threads} for c in cut]

    def prepare(self, subject: Subject, settings: Settings, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The weight in panels; columns that fill no panel are made up with zeros."""
        from execution.compiler.backends.tvm.cpu import detect  # noqa: PLC0415

        width, streams = int(settings["width"]) * detect().lanes, int(settings["streams"])
        packed = panels.packed(by_inputs(subject, params[0]), width, streams)
        return (packed, *(panels.filled_up(p, width) for p in params[1:]))

    def outputs(self, subject: Subject) -> int:  # noqa: ARG002
        """One."""
        return 1

    def allocate(self, subject: Subject, settings: Settings) -> Allocate:  # noqa: ARG002
        """[rows, outputs]."""
        outputs = sizes(subject)[1]
        return lambda x: (x.new_empty(x.shape[0], outputs),)

    def body(self, subject: Subject, settings: Settings, cpu: Cpu) -> Callable[[Emit], None]:
        """Panel by panel, tile by tile."""
        return lambda k: _linear(k, subject, settings, cpu)


TEMPLATE = Linear()


def ways_of(
    tiles: Sequence[Settings],
    threads: Sequence[int],
    cpu: Cpu,
    weight_bytes: float,
    *,
    in_streams: bool = True,
) -> list[Settings]:
    """Recipes: tiles, likely ones first; with all numbers of threads for the best; side by side, or asking ahead.

    Weights that outgrow the second-level cache are read in as many streams as the panel has vectors: each is one more that
    the processor's prefetcher follows, where a single one gets half of the memory's bandwidth. The other way is one
    stream, asked for some steps before it is used (`ahead`).
    """
    far = weight_bytes > cpu.l2_bytes

    def one(tile: Settings, count: int, *, ask: bool) -> Settings:
        step = int(tile["width"]) * cpu.lanes * _bytes_of(tile)
        ahead = max(8, min(32, 4096 // step)) if far and ask else 0
        streams = tile["width"] if far and in_streams and not ask else 1
        return {**tile, "streams": streams, "ahead": ahead, "threads": count}

    best, *others = tiles
    found = [one(best, count, ask=not in_streams) for count in threads]
    found += [one(other, threads[0], ask=not in_streams) for other in others]
    if far:
        found.append(one(best, threads[0], ask=in_streams))
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


def refuse_shapes(  # noqa: PLR0911 - one for each reason
    subject: Subject, *, weights: int, most_rows: int = MOST_ROWS
) -> str | None:
    """Why these shapes are not a linear layer's of so many rows. `weights`: parameters before the bias."""
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
    if subject.bucket.most > most_rows:
        return f"{subject.op} of up to {subject.bucket.most} rows: templates are for {most_rows} at most"
    return None


def by_inputs(subject: Subject, weight: Tensor) -> Tensor:
    """The weight as [inputs, outputs]."""
    return weight if layout_of(subject) == LAYOUTS[0] else weight.t()


def _tiles(rows: int, outputs: int, cpu: Cpu) -> list[tuple[int, int, int]]:
    """(rows, vectors, unrolled steps) of tiles whose sums fit into the registers, likely ones first.

    A fused multiply-add takes four cycles and two can begin in each: eight sums at least keep a core busy.
    """
    wanted = {1: [(1, 8), (1, 4)], 2: [(2, 4), (2, 6)], 3: [(3, 4), (3, 2)], 4: [(4, 3), (4, 2)]}
    few = cpu.registers <= 16
    if not few:
        wanted[3], wanted[4] = [(3, 6), (3, 4)], [(4, 6), (4, 4)]
    deep = [(6, 2), (4, 3), (8, 1)] if few else [(8, 3), (6, 4), (4, 6)]
    if rows in {5, 7, 8} and few:
        deep = [(4, 3), (6, 2), (8, 1)]
    if rows > MANY_ROWS:
        deep = deep[:2]
    found = []
    for tile, vectors in wanted.get(rows, deep):
        width = min(vectors, max(1, -(-outputs // cpu.lanes)))
        unroll = 8 if rows == 1 else 4 if tile * width <= 8 else 2
        if (min(tile, rows), width, unroll) not in found:
            found.append((min(tile, rows), width, unroll))
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
    width, streams = int(settings["width"]) * cpu.lanes, int(settings["streams"])
    count = -(-outputs // width)
    rows = k.symbol("rows")
    x = k.rows_of("x", (rows, inputs))
    weight = k.tensor("weight", (count * streams, inputs, width // streams))
    bias = k.tensor("bias", (count * width,)) if len(subject.params) > 1 else None
    y = k.tensor("y", (rows, outputs))

    def done(value: Expr, at: Expr) -> Expr:
        return epilogue(k, subject, value if bias is None else value + k.load(bias, at, lanes=cpu.lanes))

    def column(panel: Expr, at: Expr, offset: int) -> Expr:
        return k.load(weight, *panels.place(panel, at, offset, width, streams), lanes=cpu.lanes)

    def ask(panel: Expr, at: Expr) -> None:
        panels.ask_for_row(k, weight, panel, at, width, streams, 4)

    product(k, subject, settings, rows, x, column, y, done, ask)


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
