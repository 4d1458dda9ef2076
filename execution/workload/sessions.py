"""Conversations with shared prefixes: fitted from block hashes, and generated again.

A request continues an earlier one when more than the common blocks at its head were seen before; its parent is
the latest request that held the deepest of these blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from execution.workload import lengths
from execution.workload.errors import WorkloadError
from execution.workload.profiles import Sessions, Stream
from loop.contracts import Request

MAX_TURNS = 1000


@dataclass(frozen=True, slots=True)
class Turn:
    """How one request hangs on an earlier one; `parent` None: it opens a conversation."""

    parent: int | None
    shared_blocks: int
    depth: int
    """1 for the first turn."""


def turns(requests: Sequence[Request], common_blocks: int) -> list[Turn]:
    """The place of each request in its conversation."""
    holder: dict[int, int] = {}
    found: list[Turn] = []
    for index, request in enumerate(requests):
        blocks = request.block_hashes
        shared = 0
        while shared < len(blocks) and blocks[shared] in holder:
            shared += 1
        parent = holder[blocks[shared - 1]] if shared > common_blocks else None
        found.append(Turn(parent, shared, 1 if parent is None else found[parent].depth + 1))
        for block in blocks:
            holder[block] = index
    return found


def common_prefix(requests: Sequence[Request]) -> int:
    """Number of head blocks that at least 95 % of the requests share."""
    with_blocks = [r.block_hashes for r in requests if r.block_hashes]
    depth = 0
    while with_blocks:
        at_depth = [blocks[depth] for blocks in with_blocks if len(blocks) > depth]
        _, counts = np.unique(np.array(at_depth, dtype=object), return_counts=True) if at_depth else (0, [0])
        if max(counts) < 0.95 * len(with_blocks):
            break
        depth += 1
    return depth


def fit(
    requests: Sequence[Request], found: Sequence[Turn], common_blocks: int, block_tokens: int
) -> Sessions:
    """Parameters of the conversations in a trace.

    Raises:
        WorkloadError: when nothing in the trace continues anything.
    """
    think = [
        max(requests[i].arrival_s - requests[turn.parent].arrival_s, 1e-3)
        for i, turn in enumerate(found)
        if turn.parent is not None
    ]
    if not think:
        raise WorkloadError("no request continues another: there are no sessions to fit")
    # What follows the last turns is cut off by the end of the trace: they say nothing about going on.
    last_s = requests[-1].arrival_s - float(np.quantile(think, 0.95))
    early = max(1, sum(request.arrival_s <= last_s for request in requests))
    able = [requests[i].input_tokens // block_tokens > common_blocks for i in range(early)]
    later = [
        (request, turn) for request, turn in zip(requests, found, strict=True) if turn.parent is not None
    ]
    keeps_all, kept, added, branch = _growth(requests, later, block_tokens)
    return Sessions(
        common_blocks=common_blocks,
        continues=tuple(_continuation(able, found)),
        keeps_all=tuple(keeps_all),
        kept_share=tuple(lengths.quantile_table(kept)),
        think_s=tuple(lengths.quantile_table(think)),
        added_tokens=tuple(lengths.quantile_table(added)),
        branch_tokens=tuple(lengths.quantile_table(branch)),
        output_tokens=tuple(lengths.quantile_table([request.output_tokens for request, _ in later])),
    )


def _growth(
    requests: Sequence[Request], later: Sequence[tuple[Request, Turn]], block_tokens: int
) -> tuple[list[float], list[float], list[int], list[int]]:
    """How prompts grow: share that keeps all by size class; share kept, and fresh tokens, of the two kinds."""
    classes = 1 + max(_size_class(len(request.block_hashes)) for request in requests)
    whole, every = np.zeros(classes), np.zeros(classes)
    kept: list[float] = []
    added: list[int] = []
    branch: list[int] = []
    for request, turn in later:
        parent = requests[turn.parent or 0]
        size = _size_class(len(parent.block_hashes))
        every[size] += 1
        fresh = max(request.input_tokens - turn.shared_blocks * block_tokens, 1)
        if turn.shared_blocks >= len(parent.block_hashes) - 1:
            whole[size] += 1
            added.append(fresh)
        else:
            kept.append(turn.shared_blocks / len(parent.block_hashes))
            branch.append(fresh)
    # A class without turns takes the share of all, as if it had one.
    shares = (whole + whole.sum() / every.sum()) / (every + 1)
    # A kind that never comes is never drawn either: its tables only have to be there.
    return [round(float(share), 4) for share in shares], kept or [0.5], added or [1], branch or [1]


def _continuation(able: Sequence[bool], found: Sequence[Turn]) -> list[float]:
    """Share of the turns at each depth that were continued, up to the depth where they become few.

    Only turns that are `able` count: those with a whole block beyond the common ones. Whether the others went
    on cannot be seen in block hashes; their next turns look like first ones, here and in what is generated.
    """
    reached = np.bincount([turn.depth for turn, counts in zip(found, able, strict=False) if counts])
    continued = {turn.parent for turn in found if turn.parent is not None and turn.parent < len(able)}
    continued = {parent for parent in continued if able[parent]}
    parents = np.bincount([found[i].depth for i in continued], minlength=len(reached))
    shares: list[float] = []
    for depth in range(1, len(reached)):
        if reached[depth] < 30 and shares:
            deep_reached, deep_parents = reached[depth:].sum(), parents[depth:].sum()
            shares.append(round(float(deep_parents / deep_reached), 4))
            break
        shares.append(round(float(parents[depth] / reached[depth]), 4))
    return shares


def generate(
    rng: np.random.Generator,
    stream: Stream,
    starts_s: Sequence[float],
    *,
    model: str,
    block_tokens: int,
    end_s: float,
    longest_tokens: int,
) -> list[Request]:
    """All requests before `end_s` of the conversations that start at `starts_s`; ids are not in order."""
    sessions = stream.sessions
    if sessions is None:
        raise WorkloadError(f"stream {stream.name} has no sessions")
    inputs, outputs = lengths.sample_pairs(
        rng, stream.input_tokens, stream.output_tokens, stream.rank_correlation, len(starts_s)
    )
    common = tuple(range(sessions.common_blocks))
    fresh = len(common)
    requests: list[Request] = []
    for start_s, first_input, first_output in zip(starts_s, inputs.tolist(), outputs.tolist(), strict=True):
        time_s, tokens, output, blocks = float(start_s), first_input, first_output, common
        for depth in range(1, MAX_TURNS):
            count = -(-tokens // block_tokens)
            new = max(0, count - len(blocks))
            blocks = (*blocks[:count], *range(fresh, fresh + new))
            fresh += new
            requests.append(Request(len(requests), time_s, model, tokens, output, blocks))
            able = tokens // block_tokens > sessions.common_blocks
            go_on = sessions.continues[min(depth, len(sessions.continues)) - 1]
            if not able or rng.random() >= go_on:
                break
            time_s += _draw(rng, sessions.think_s)
            if time_s >= end_s:
                break
            tokens, kept = _next_prompt(rng, sessions, tokens, len(blocks), block_tokens)
            if tokens > longest_tokens:
                break
            blocks = blocks[:kept]
            output = max(1, round(_draw(rng, sessions.output_tokens)))
    return requests


def _next_prompt(
    rng: np.random.Generator, sessions: Sessions, tokens: int, blocks: int, block_tokens: int
) -> tuple[int, int]:
    """(prompt tokens, blocks kept) of the turn after one of `tokens` tokens."""
    share = sessions.keeps_all[min(_size_class(blocks), len(sessions.keeps_all) - 1)]
    if rng.random() < share:
        kept, table = tokens // block_tokens, sessions.added_tokens
    else:
        kept, table = int(_draw(rng, sessions.kept_share) * blocks), sessions.branch_tokens
    kept = max(kept, min(sessions.common_blocks + 1, blocks))
    return kept * block_tokens + max(1, round(_draw(rng, table))), kept


def _size_class(blocks: int) -> int:
    """The k of [2^k, 2^(k+1)) blocks."""
    return max(blocks, 1).bit_length() - 1


def _draw(rng: np.random.Generator, table: Sequence[float]) -> float:
    return float(lengths.at(table, np.array(rng.random())))
