"""Steps on which a compiled decode step is proven: recorded ones, ordinary ones, and ones that hurt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from execution.live.decode.shape import DecodeShape


@dataclass(frozen=True, slots=True)
class Case:
    """One step: a token for each row, and what its lane holds."""

    name: str
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    lanes: tuple[int, ...]
    past: tuple[torch.Tensor, ...]
    """Of each layer [rows, 2 * kv_heads, positions, head_dim], float32."""
    speaks: bool = True
    """It counts for the typical error: recorded or ordinary values."""


def save_cases(cases: Sequence[Case], path: Path) -> None:
    """For another process."""
    torch.save(
        [(c.name, c.tokens, c.positions, c.lanes, list(c.past), c.speaks) for c in cases],
        path,
    )


def load_cases(path: Path) -> list[Case]:
    """Back again; plain tensors and numbers only."""
    told = torch.load(path, weights_only=True)
    return [Case(n, tuple(t), tuple(p), tuple(ln), tuple(kv), bool(s)) for n, t, p, ln, kv, s in told]


def synthetic_cases(shape: DecodeShape, length: int, lanes: int, most_rows: int, seed: int) -> Iterator[Case]:
    """Ordinary values in all sizes of a batch, and NaN, infinity, denormals, extremes, odd places.

    Positions stay within `length` and lanes within `lanes`, at least as many as rows.
    """
    draw = torch.Generator().manual_seed(seed)
    sizes = sorted({1, 2, 3, min(5, most_rows), min(8, most_rows), most_rows} & set(range(1, most_rows + 1)))
    for rows in sizes:
        yield _case(f"ordinary rows={rows}", shape, rows, _spread(rows, min(96, length)), lanes, draw)
    few = min(3, most_rows)
    yield _case("empty past", shape, few, [0] * few, lanes, draw)
    yield _case("one position", shape, few, [1] * few, lanes, draw)
    yield _case("last position", shape, 1, [length - 1], lanes, draw)
    yield _case("last lane", shape, 1, [min(7, length - 1)], lanes, draw, first_lane=lanes - 1)
    yield _case("far apart", shape, few, _spread(few, min(400, length)), lanes, draw)
    for name, factor in (("zeros", 0.0), ("denormals", 1e-40), ("large", 1e4), ("tiny", 1e-12)):
        yield _case(name, shape, few, _spread(few, min(33, length)), lanes, draw, factor=factor)
    for name, value in (("NaN", float("nan")), ("infinity", float("inf"))):
        case = _case(
            f"{name} in one lane", shape, few, _spread(few, min(33, length)), lanes, draw, speaks=False
        )
        if case.positions[0] > 0:
            case.past[-1][0, 0, case.positions[0] // 2] = value
        yield case


def _spread(rows: int, length: int) -> list[int]:
    return [max(0, (length - 1) * (i + 1) // rows) for i in range(rows)]


def _case(  # noqa: PLR0917 a case in one line each
    name: str,
    shape: DecodeShape,
    rows: int,
    positions: list[int],
    lanes: int,
    draw: torch.Generator,
    *,
    factor: float = 1.0,
    first_lane: int = 0,
    speaks: bool | None = None,
) -> Case:
    tokens = torch.randint(shape.vocabulary, (rows,), generator=draw).tolist()
    tokens[0], tokens[-1] = shape.vocabulary - 1, 0
    size = (rows, 2 * shape.kv_heads, max(positions), shape.head_dim)
    past = tuple(torch.randn(size, generator=draw) * factor for _ in range(shape.layers))
    gaps = (lanes - first_lane) // rows
    places = tuple(first_lane + gaps * i for i in range(rows))
    return Case(
        name, tuple(tokens), tuple(positions), places, past, factor == 1.0 if speaks is None else speaks
    )
