"""The tensors of one step: what every module of the model may know of the batch.

Rows are tokens: first one for each sequence that decodes, in the order of their lanes, then prompt chunks one after
the other. KV of layer i is `kv[i]`: [lanes, keys then values of each head, positions, head_dim].
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from execution.engines.torch.kv import LaneCache


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence that decodes: its latest token, to be put at `position` of its lane."""

    token: int
    position: int
    lane: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a prompt: tokens for the positions from `start` on."""

    tokens: Seq[int]
    start: int
    lane: int
    last: bool
    """The prompt ends here: its next token is wanted."""


@dataclass(slots=True)
class DecodeGroup:
    """Attention of all sequences that decode, in one call over the lanes 0 to `lanes`."""

    rows: int
    lanes: int
    length: int
    """Positions that any of them sees."""
    lengths: torch.Tensor
    """Positions that each row sees [rows], int64."""
    mask: torch.Tensor
    """0 where a lane may look, -inf elsewhere [lanes, 1, 1, length]."""
    scatter: torch.Tensor | None
    """Lane of each row [rows]; None: row i is lane i."""


@dataclass(slots=True)
class PromptGroup:
    """Attention of one prompt chunk: rows `first` to `last` see positions up to their own."""

    first: int
    last: int
    lane: int
    start: int
    mask: torch.Tensor | None
    """0 or -inf [rows, start + rows]; None: causal from position 0."""


@dataclass(slots=True)
class Step:
    """One batch on its way through the model."""

    tokens: torch.Tensor
    """[rows], int64."""
    positions: torch.Tensor
    """[rows, 1], int64."""
    lanes: torch.Tensor
    """[rows, 1], int64."""
    rotations: torch.Tensor
    """Of each row's position [rows, 1, head_dim / 2], complex64."""
    kv: list[torch.Tensor]
    heads: torch.Tensor
    """0 to twice the number of key-value heads [1, heads]: for writing KV."""
    wanted: torch.Tensor | None
    """Rows whose next token is wanted; None: all."""
    decode: DecodeGroup | None
    prompts: tuple[PromptGroup, ...]


def build_step(rows: Seq[Row], chunks: Seq[Chunk], cache: LaneCache, table: torch.Tensor) -> Step:
    """Tensors of a step. `rows` are sorted by lane; `table`: rotations of all positions."""
    count = len(rows)
    numbers = [[r.token for r in rows], [r.position for r in rows], [r.lane for r in rows]]
    groups, wanted = [], list(range(count))
    for chunk in chunks:
        first, size = len(numbers[0]), len(chunk.tokens)
        numbers[0] += chunk.tokens
        numbers[1] += range(chunk.start, chunk.start + size)
        numbers[2] += [chunk.lane] * size
        mask = _chunk_mask(chunk.start, size, cache) if chunk.start else None
        groups.append(PromptGroup(first, first + size, chunk.lane, chunk.start, mask))
        if chunk.last:
            wanted.append(first + size - 1)
    device = cache.device
    packed = torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)
    tokens, positions, lanes = packed.unbind(0)
    return Step(
        tokens=tokens,
        positions=positions.unsqueeze(1),
        lanes=lanes.unsqueeze(1),
        rotations=table.index_select(0, positions),
        kv=cache.layers,
        heads=cache.heads,
        wanted=None
        if len(wanted) == len(numbers[0])
        else torch.tensor(wanted, dtype=torch.int64, device=device),
        decode=_decode_group(rows, positions, lanes, cache) if rows else None,
        prompts=tuple(groups),
    )


def _decode_group(
    rows: Seq[Row], positions: torch.Tensor, lanes: torch.Tensor, cache: LaneCache
) -> DecodeGroup:
    count = len(rows)
    span = rows[-1].lane + 1
    length = max(row.position for row in rows) + 1
    lengths = positions[:count] + 1
    scatter = None if span == count else lanes[:count]
    by_lane = lengths if scatter is None else lengths.new_zeros(span).index_copy_(0, scatter, lengths)
    mask = cache.mask_of(by_lane, length)
    return DecodeGroup(count, span, length, lengths, mask.view(span, 1, 1, length), scatter)


def _chunk_mask(start: int, size: int, cache: LaneCache) -> torch.Tensor:
    ends = torch.arange(start + 1, start + size + 1, device=cache.device)
    return cache.mask_of(ends, start + size)
