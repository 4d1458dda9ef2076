"""Combinators that change what is asked for, and put workloads together: pure, deterministic for their seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from execution.workload.errors import WorkloadError
from execution.workload.modulate import first_free_hash, interval, noted
from loop.contracts import Request, Workload


def cut(workload: Workload, start_s: float = 0.0, end_s: float = math.inf) -> Workload:
    """The requests in [start_s, end_s), times counted from start_s."""
    interval(start_s, end_s)
    kept = (r for r in workload.requests if start_s <= r.arrival_s < end_s)
    requests = tuple(Request(i, r[1] - start_s, *r[2:]) for i, r in enumerate(kept))
    return replace(workload, requests=requests, notes=noted(workload, "cut", f"{start_s:g} s to {end_s:g} s"))


def take(workload: Workload, count: int) -> Workload:
    """The first `count` requests."""
    if count < 0:
        raise WorkloadError(f"take {count} requests: must not be negative")
    requests = tuple(Request(i, *r[1:]) for i, r in enumerate(workload.requests[:count]))
    return replace(workload, requests=requests, notes=noted(workload, "take", f"first {count}"))


def shift(workload: Workload, by_s: float) -> Workload:
    """Everything later by `by_s` (not negative)."""
    if not (math.isfinite(by_s) and by_s >= 0):
        raise WorkloadError(f"shift by {by_s:g} s: must not be negative")
    requests = tuple(Request(i, r[1] + by_s, *r[2:]) for i, r in enumerate(workload.requests))
    return replace(workload, requests=requests, notes=noted(workload, "shift", f"{by_s:g} s later"))


def merge(first: Workload, second: Workload, *, share_prefixes: bool = False) -> Workload:
    """The requests of both, in order of arrival.

    Equal block hashes of the two mean different prefixes, unless `share_prefixes` says that they come from the
    same source. Raises WorkloadError when both have prefixes in blocks of different size.
    """
    return _joined(
        first,
        second.requests,
        second,
        operation="merge",
        note=f"with {second.name}",
        share_prefixes=share_prefixes,
    )


def concat(
    first: Workload, second: Workload, *, gap_s: float = 0.0, share_prefixes: bool = False
) -> Workload:
    """`second` after the last request of `first` and a gap; prefixes as in `merge`."""
    if not (math.isfinite(gap_s) and gap_s >= 0):
        raise WorkloadError(f"concat with a gap of {gap_s:g} s: must not be negative")
    end_s = (first.requests[-1].arrival_s if first.requests else 0.0) + gap_s
    later = [Request(r[0], r[1] + end_s, *r[2:]) for r in second.requests]
    return _joined(
        first,
        later,
        second,
        operation="concat",
        note=f"{second.name} from {end_s:g} s",
        share_prefixes=share_prefixes,
    )


def splice(
    workload: Workload, insert: Workload, start_s: float, end_s: float, *, share_prefixes: bool = False
) -> Workload:
    """Replace what arrives in [start_s, end_s) by the head of `insert`; prefixes as in `merge`."""
    interval(start_s, end_s)
    kept = tuple(r for r in workload.requests if not start_s <= r.arrival_s < end_s)
    moved = (Request(r[0], r[1] + start_s, *r[2:]) for r in insert.requests)
    inserted = [r for r in moved if r.arrival_s < end_s]
    return _joined(
        replace(workload, requests=kept),
        inserted,
        insert,
        operation="splice",
        note=f"{insert.name} from {start_s:g} s to {end_s:g} s",
        share_prefixes=share_prefixes,
    )


def _joined(
    first: Workload,
    added: Iterable[Request],
    origin: Workload,
    *,
    operation: str,
    note: str,
    share_prefixes: bool,
) -> Workload:
    added = list(added)
    block_tokens = _block_tokens(first, origin)
    if not share_prefixes:
        added = apart(added, first_free_hash(first))
    ordered = sorted([*first.requests, *added], key=lambda request: request.arrival_s)
    return Workload(
        name=first.name,
        requests=tuple(Request(i, *r[1:]) for i, r in enumerate(ordered)),
        source=_sources(first, origin),
        generated=first.generated or origin.generated,
        block_tokens=block_tokens,
        notes=noted(first, operation, note),
    )


def _sources(first: Workload, second: Workload) -> str:
    return first.source if first.source == second.source else f"{first.source} + {second.source}"


def apart(requests: Iterable[Request], offset: int) -> list[Request]:
    """Requests with every block hash raised by `offset`: prefixes that are shared with no smaller hash."""
    return [
        r._replace(block_hashes=tuple(block + offset for block in r.block_hashes)) if r.block_hashes else r
        for r in requests
    ]


def _block_tokens(first: Workload, second: Workload) -> int:
    if first.block_tokens == second.block_tokens or not first_free_hash(second):
        return first.block_tokens
    if not first_free_hash(first):
        return second.block_tokens
    raise WorkloadError(
        f"{first.name} has prefix blocks of {first.block_tokens} tokens, {second.name} of "
        f"{second.block_tokens}: they cannot be put together"
    )


def mix_shift(
    workload: Workload,
    towards: Workload,
    start_s: float,
    ramp_s: float,
    *,
    share: float = 1.0,
    end_s: float = math.inf,
    seed: int = 0,
) -> Workload:
    """From `start_s` on, a growing share of the requests asks for what `towards` asks for.

    The share grows linearly over `ramp_s` up to `share` and drops to none at `end_s`. Arrival times, models and
    tiers stay; lengths and prefixes come from `towards`, in its order from a random place on (which keeps
    conversations together). The source then names both; `generated` still tells of the arrivals.

    Raises:
        WorkloadError: when `towards` is empty, or the numbers make no ramp.
    """
    interval(start_s, end_s)
    if not towards.requests or not 0 <= share <= 1 or not ramp_s >= 0:
        raise WorkloadError(
            f"mix shift of {workload.name} to {towards.name} ({len(towards.requests)} requests): needs "
            f"requests to draw from, share 0 to 1 (is {share:g}), ramp >= 0 (is {ramp_s:g} s)"
        )
    rng = np.random.default_rng(seed)
    times = np.array([request.arrival_s for request in workload.requests])
    chance = share * _ramp(times, start_s, ramp_s) * (times < end_s)
    replaced = rng.random(len(times)) < chance
    position = int(rng.integers(len(towards.requests)))
    source = apart(towards.requests, first_free_hash(workload))
    requests = []
    for number, request in enumerate(workload.requests):
        _, time, model, inputs, outputs, hashes, tier = request
        if replaced[number]:
            drawn = source[position % len(source)]
            position += 1
            inputs, outputs, hashes = drawn.input_tokens, drawn.output_tokens, drawn.block_hashes
        requests.append(Request(number, time, model, inputs, outputs, hashes, tier))
    until = f", until {end_s:g} s" if math.isfinite(end_s) else ""
    note = f"{share:g} of {towards.name} from {start_s:g} s, ramp {ramp_s:g} s{until}, seed {seed}"
    return replace(
        workload,
        requests=tuple(requests),
        source=_sources(workload, towards),
        block_tokens=_block_tokens(workload, towards),
        notes=noted(workload, "mix-shift", note),
    )


def _ramp(times: NDArray[np.float64], start_s: float, ramp_s: float) -> NDArray[np.float64]:
    """0 before start_s, 1 after the ramp, linear between."""
    if ramp_s <= 0:
        return (times >= start_s).astype(np.float64)
    ramp: NDArray[np.float64] = np.clip((times - start_s) / ramp_s, 0.0, 1.0)
    return ramp


def model_mix_shift(
    workload: Workload,
    before: Mapping[str, float],
    after: Mapping[str, float],
    start_s: float,
    ramp_s: float,
    *,
    seed: int = 0,
) -> Workload:
    """Draw each request's model from shares that move linearly from `before` to `after` over the ramp.

    Shares are weights; they need not sum to 1. Raises WorkloadError when they are negative or all zero.
    """
    interval(start_s, math.inf)
    models = sorted({*before, *after})
    old, new = _shares(before, models), _shares(after, models)
    times = np.array([request.arrival_s for request in workload.requests])
    weight = _ramp(times, start_s, ramp_s)[:, np.newaxis]
    edges = np.cumsum((1 - weight) * old + weight * new, axis=1)
    draws = np.random.default_rng(seed).random((len(times), 1))
    chosen = np.minimum((edges <= draws).sum(axis=1), len(models) - 1).tolist()
    requests = [
        Request(i, r[1], models[index], *r[3:])
        for i, (r, index) in enumerate(zip(workload.requests, chosen, strict=True))
    ]
    note = f"{_words(before)} to {_words(after)} from {start_s:g} s, ramp {ramp_s:g} s, seed {seed}"
    return replace(workload, requests=tuple(requests), notes=noted(workload, "model-mix-shift", note))


def _shares(weights: Mapping[str, float], models: list[str]) -> NDArray[np.float64]:
    values = np.array([weights.get(model, 0.0) for model in models], dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise WorkloadError(f"shares {_words(weights)}: must be positive numbers")
    normalised: NDArray[np.float64] = values / values.sum()
    return normalised


def _words(weights: Mapping[str, float] | Mapping[int, float]) -> str:
    return ", ".join(f"{key} {weight:g}" for key, weight in weights.items())


def rename_model(workload: Workload, model: str) -> Workload:
    """Every request asks for `model`."""
    requests = tuple(Request(i, r[1], model, *r[3:]) for i, r in enumerate(workload.requests))
    return replace(workload, requests=requests, notes=noted(workload, "rename-model", model))


def tiers(workload: Workload, shares: Mapping[int, float], *, seed: int = 0) -> Workload:
    """Draw each request's tier from weights, e.g. `{0: 0.8, 1: 0.2}`."""
    levels = sorted(shares)
    weights = np.array([shares[level] for level in levels], dtype=np.float64)
    if not levels or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise WorkloadError(f"tier shares {dict(shares)}: must be positive numbers")
    drawn = np.random.default_rng(seed).choice(levels, len(workload.requests), p=weights / weights.sum())
    requests = tuple(
        Request(i, *r[1:6], tier)
        for i, (r, tier) in enumerate(zip(workload.requests, drawn.tolist(), strict=True))
    )
    return replace(
        workload, requests=requests, notes=noted(workload, "tiers", f"{_words(shares)}, seed {seed}")
    )
