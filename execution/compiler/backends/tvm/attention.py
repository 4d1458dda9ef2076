"""Attention of one new token a sequence over its KV, read in place from the engine's lanes.

    decode_attention  (queries [rows, heads, head_dim], kv [lanes, 2 kv_heads, positions, head_dim], lanes [rows] int64,
                      lengths [rows] int64) -> [rows, heads * head_dim]; attributes `heads`, `kv_heads`, `head_dim`

Row r looks at the first `lengths[r]` positions of lane `lanes[r]`: keys are kv[lane, :kv_heads], values
kv[lane, kv_heads:]; heads that share keys are neighbours. Queries may be a slice of a wider row. Lengths from 1 to
`positions`, lanes below kv.shape[0]: not checked, as nothing in a hot loop is.

One pass over the positions (online softmax: Milakov and Gimelshein, 2018), `block` at a time: keys of a block stay
in the first-level cache for all heads that share them. NaN in keys or values beyond the length is never seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from execution.compiler.backends.tvm.cpu import Cpu
from execution.compiler.backends.tvm.template import Allocate, Settings, attrs_of, parallel_ways
from execution.compiler.port import Subject, Tensor

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Buffer, Cell, Emit
    from execution.compiler.backends.tvm.maths import Expr

_LEAST = -3.0e38
"""Where the running maximum starts: finite, so that keys at -inf weigh nothing."""
MOST_ELEMENTS = 2**31 - 1


class DecodeAttention:
    """The family."""

    ops = ("decode_attention",)

    def refuse(self, subject: Subject) -> str | None:
        """Four inputs of the engine's shapes."""
        attrs = attrs_of(subject)
        missing = [name for name in ("heads", "kv_heads", "head_dim") if name not in attrs]
        if missing or len(subject.inputs) != 4 or subject.params:
            return f"decode_attention takes queries, kv, lanes, lengths and attributes heads, kv_heads, head_dim; missing: {missing}"
        heads, kv_heads, dim = (int(attrs[name]) for name in ("heads", "kv_heads", "head_dim"))
        queries, kv, lanes, lengths = subject.inputs
        kinds = [spec.dtype for spec in subject.inputs]
        if kinds != ["float32", "float32", "int64", "int64"]:
            return f"decode_attention takes float32, float32, int64, int64; not {', '.join(kinds)}"
        fits = (
            queries.shape[1:] == (heads, dim)
            and len(kv.shape) == 4
            and kv.shape[1] == 2 * kv_heads
            and kv.shape[3] == dim
            and len(lanes.shape) == len(lengths.shape) == 1
        )
        if not fits or heads % kv_heads:
            return f"decode_attention: shapes do not fit: {[spec.shape for spec in subject.inputs]}"
        if math.prod(kv.shape) > MOST_ELEMENTS:
            return f"kv of {kv.shape}: offsets are 32 bits"
        return None

    def settings(self, subject: Subject, cpu: Cpu) -> Sequence[Settings]:
        """Blocks of which keys and values fit into the first-level cache."""
        kv = subject.inputs[1].shape
        if kv[3] % cpu.lanes:
            return []
        half = cpu.l1_bytes // (2 * 4 * kv[3])
        blocks = [b for b in (64, 32, 128, 16) if b <= max(half, 16) and b % cpu.lanes == 0][:2]
        ways = parallel_ways(subject, 4.0 * subject.bucket.most * kv[1] * kv[2] * kv[3] / 2)
        return [{"block": b, "threads": t} for b in blocks for t in ways]

    def prepare(self, subject: Subject, settings: Settings, params: Sequence[Tensor]) -> tuple[Tensor, ...]:  # noqa: ARG002
        """There are no weights."""
        return tuple(params)

    def outputs(self, subject: Subject) -> int:  # noqa: ARG002
        """One."""
        return 1

    def allocate(self, subject: Subject, settings: Settings) -> Allocate:  # noqa: ARG002
        """[rows, heads * head_dim]."""
        width = int(attrs_of(subject)["heads"]) * int(attrs_of(subject)["head_dim"])
        return lambda queries: (queries.new_empty(queries.shape[0], width),)

    def body(self, subject: Subject, settings: Settings, cpu: Cpu) -> Callable[[Emit], None]:  # noqa: ARG002
        """Each pair of row and key head by itself."""
        return lambda k: _attend(k, subject, settings)


TEMPLATE = DecodeAttention()


def _attend(k: Emit, subject: Subject, settings: Settings) -> None:
    attrs = attrs_of(subject)
    heads, kv_heads, dim = (int(attrs[name]) for name in ("heads", "kv_heads", "head_dim"))
    shared = heads // kv_heads
    block = int(settings["block"])
    rows, lanes = k.symbol("rows"), k.symbol("lanes")
    queries = k.rows_of("queries", (rows, heads, dim))
    kv = k.tensor("kv", (lanes, 2 * kv_heads, subject.inputs[1].shape[2], dim))
    lane_of = k.tensor("lane_of", (rows,), "int64")
    lengths = k.tensor("lengths", (rows,), "int64")
    y = k.tensor("y", (rows, heads * dim))

    with k.rows(rows * kv_heads, parallel=settings["threads"] != 1) as task:
        row, head = k.bind_integer(task // kv_heads), k.bind_integer(task % kv_heads)
        lane = k.bind_integer(k.as_integer(k.load(lane_of, row), "int32"))
        length = k.bind_integer(k.as_integer(k.load(lengths, row), "int32"))
        # for each query head: scores of a block, running maximum, running sum, running output
        scores = [k.array(block) for _ in range(shared)]
        tops = [k.cell(_LEAST, lanes=1) for _ in range(shared)]
        totals = [k.cell(0.0) for _ in range(shared)]
        outs = [k.array(dim) for _ in range(shared)]
        for out in outs:
            for at in range(0, dim, k.lanes):
                k.store(out, 0.0, at, lanes=k.lanes)

        with k.loop((length + (block - 1)) // block) as turn:
            first = k.bind_integer(turn * block)
            count = k.bind_integer(k.least(block, length - first))
            groups = k.bind_integer((count + (k.lanes - 1)) // k.lanes)
            for g in range(shared):
                query = (queries, row, head * shared + g)
                top = _score(k, query, (kv, lane, head), first, count, groups, scores[g], dim)
                _weigh(k, scores[g], groups, top, tops[g], totals[g], outs[g], dim, fast=subject.fast_math)
            for g in range(shared):
                _gather(k, scores[g], (kv, lane, head + kv_heads), first, count, outs[g], dim)

        for g in range(shared):
            nothing = k.cell(0.0, lanes=1)
            factor = k.bind(1.0 / k.total([totals[g]], nothing))
            for at in range(0, dim, k.lanes):
                value = k.load(outs[g], at, lanes=k.lanes) * factor
                k.store(y, value, row, (head * shared + g) * dim + at, lanes=k.lanes)


def _score(  # noqa: PLR0917
    k: Emit,
    query: tuple[Buffer, Expr, Expr],
    keys: tuple[Buffer, Expr, Expr],
    first: Expr,
    count: Expr,
    groups: Expr,
    scores: Buffer,
    dim: int,
) -> Cell:
    """Scaled products of a query with the keys of a block, -inf beyond the end; gives their maximum in each lane."""
    top = k.cell(_LEAST)
    with k.loop(groups) as group:
        sums = [k.cell(0.0) for _ in range(k.lanes)]
        # beyond the end the last key is read again: what follows it may be another sequence's, or not there
        places = [first + k.least(group * k.lanes + i, count - 1) for i in range(k.lanes)]
        places = [k.bind_integer(place) for place in places]
        for at in range(0, dim, k.lanes):
            part = k.bind(k.load(*query, at, lanes=k.lanes))
            for cell, place in zip(sums, places, strict=True):
                cell.set(cell.get() + part * k.load(*keys, place, at, lanes=k.lanes))
        total = k.sum_of_lanes([cell.get() for cell in sums]) * (1.0 / math.sqrt(dim))
        inside = k.within(group * k.lanes, count)
        value = k.bind(k.math.choose(inside, total, k.spread(k.math.number(float("-inf")))))
        k.store(scores, value, group * k.lanes, lanes=k.lanes)
        top.set(k.math.greater(value, top.get()))
    return top


def _weigh(  # noqa: PLR0917
    k: Emit,
    scores: Buffer,
    groups: Expr,
    top: Cell,
    running: Cell,
    total: Cell,
    out: Buffer,
    dim: int,
    *,
    fast: bool,
) -> None:
    """Scores become weights relative to the maximum so far; what was summed before is scaled down to it."""
    before = k.bind(running.get())
    for lane in range(k.lanes):
        running.set(k.math.greater(top.lane(lane), running.get()))
    now = k.bind(running.get())
    with k.when(now > before):
        shrink = k.bind(k.spread(k.math.exp(before - now, fast=fast)))
        total.set(total.get() * shrink)
        for at in range(0, dim, k.lanes):
            k.store(out, k.load(out, at, lanes=k.lanes) * shrink, at, lanes=k.lanes)
    with k.loop(groups) as group:
        weight = k.bind(k.math.exp(k.load(scores, group * k.lanes, lanes=k.lanes) - now, fast=fast))
        k.store(scores, weight, group * k.lanes, lanes=k.lanes)
        total.set(total.get() + weight)


def _gather(  # noqa: PLR0917
    k: Emit,
    scores: Buffer,
    values: tuple[Buffer, Expr, Expr],
    first: Expr,
    count: Expr,
    out: Buffer,
    dim: int,
) -> None:
    """Add the block's values to the output, each by its weight; eight vectors of a row at a time."""
    step = 8 * k.lanes
    for begin in range(0, dim, step):
        places = range(begin, min(begin + step, dim), k.lanes)
        sums = [k.cell(k.load(out, at, lanes=k.lanes)) for at in places]
        with k.loop(count) as position:
            weight = k.bind(k.spread(k.load(scores, position)))
            for cell, at in zip(sums, places, strict=True):
                cell.set(cell.get() + weight * k.load(*values, first + position, at, lanes=k.lanes))
        for cell, at in zip(sums, places, strict=True):
            k.store(out, cell.get(), at, lanes=k.lanes)
