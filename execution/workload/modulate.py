"""Combinators that change how many requests arrive, and when: pure, deterministic for their seed.

All of them thin and copy: at a local factor of 2.3, each request is kept, copied once, and copied once more
with probability 0.3. A copy has the lengths of its original, comes up to `jitter_s` before or after it, and
has prefixes of its own (a copied customer does not hit the cache of the original).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from execution.workload.errors import WorkloadError
from loop.contracts import Request, Workload

Floats = NDArray[np.float64]
MAX_REQUESTS = 20_000_000
JITTER_S = 5.0


def noted(workload: Workload, operation: str, what: str) -> dict[str, str]:
    """The notes of a workload with one more step."""
    return {**workload.notes, f"{len(workload.notes) + 1:02d}.{operation}": what}


def first_free_hash(workload: Workload) -> int:
    """A number above every block hash of a workload: adding it makes prefixes that are shared with none."""
    return 1 + max((max(r.block_hashes) for r in workload.requests if r.block_hashes), default=-1)


def interval(start_s: float, end_s: float) -> None:
    """Refuse an interval that is none."""
    if not (math.isfinite(start_s) and 0 <= start_s < end_s):
        raise WorkloadError(
            f"interval [{start_s:g}, {end_s:g}) s: must start at 0 or later and before its end"
        )


def modulate(
    workload: Workload,
    factor: Callable[[Floats], Floats],
    *,
    seed: int,
    operation: str,
    note: str,
    jitter_s: float = JITTER_S,
    start_s: float = 0.0,
    end_s: float = math.inf,
) -> Workload:
    """Multiply the arrival rate in [start_s, end_s) by `factor(arrival times)`; copies stay in the interval.

    Raises:
        WorkloadError: when a factor is negative or not finite, or the result has over 20 million requests.
    """
    interval(start_s, end_s)
    requests = workload.requests
    times = np.array([request.arrival_s for request in requests], dtype=np.float64)
    inside = (times >= start_s) & (times < end_s)
    factors = np.where(inside, factor(times), 1.0)
    if not np.isfinite(factors).all() or (factors < 0).any():
        raise WorkloadError(
            f"{operation} of {workload.name}: the rate factor must be finite and not negative"
        )
    if factors.sum() > MAX_REQUESTS:
        raise WorkloadError(
            f"{operation} of {workload.name}: makes {factors.sum():.3g} requests; the limit is {MAX_REQUESTS}"
        )
    rng = np.random.default_rng(seed)
    base = np.floor(factors)
    counts = (base + (rng.random(len(times)) < factors - base)).astype(np.int64)
    index = np.repeat(np.arange(len(times)), counts)
    copy = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    moved = times[index]
    shift = rng.uniform(-jitter_s, jitter_s, len(index))
    last = min(end_s, max(float(times[-1]), start_s) if len(times) else 0.0)
    moved = np.where(copy > 0, _reflected(moved + shift, start_s, last, end_s), moved)
    order = np.argsort(moved, kind="stable")
    return replace(
        workload,
        requests=_pick(workload, moved[order], index[order], copy[order]),
        notes=noted(workload, operation, note),
    )


def _reflected(times: Floats, low: float, high: float, end_s: float) -> Floats:
    """Times reflected at the ends of [low, high] and kept below `end_s`."""
    times = low + np.abs(times - low)
    times = high - np.abs(high - times)
    return np.clip(times, low, min(high, float(np.nextafter(end_s, -math.inf))))


def _pick(
    workload: Workload, times: Floats, index: NDArray[np.int64], copy: NDArray[np.int64]
) -> tuple[Request, ...]:
    space = first_free_hash(workload) if copy.any() else 0
    picked = []
    rows = zip(times.tolist(), index.tolist(), copy.tolist(), strict=True)
    for number, (time, source, nth) in enumerate(rows):
        _, _, model, inputs, outputs, hashes, tier = workload.requests[source]
        if nth and hashes:
            hashes = tuple(block + nth * space for block in hashes)
        picked.append(Request(number, time, model, inputs, outputs, hashes, tier))
    return tuple(picked)


def scale(
    workload: Workload, factor: float, *, seed: int = 0, method: str = "rate", jitter_s: float = JITTER_S
) -> Workload:
    """Multiply the load by `factor`: by `rate` (thin or copy requests) or by `time` (compress the clock).

    Raises:
        WorkloadError: for a factor that is not positive, or another method.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise WorkloadError(f"scale by {factor:g}: must be positive")
    if method == "time":
        requests = tuple(Request(i, r[1] / factor, *r[2:]) for i, r in enumerate(workload.requests))
        note = f"clock compressed {factor:g} times"
        return replace(workload, requests=requests, notes=noted(workload, "scale", note))
    if method != "rate":
        raise WorkloadError(f"scale by {method!r}: must be 'rate' or 'time'")
    return modulate(
        workload,
        lambda times: np.full_like(times, factor),
        seed=seed,
        operation="scale",
        note=f"rate x {factor:g}, seed {seed}",
        jitter_s=jitter_s,
    )


def burst(
    workload: Workload,
    factor: float,
    start_s: float,
    end_s: float,
    *,
    seed: int = 0,
    jitter_s: float = JITTER_S,
) -> Workload:
    """`factor` times the arrivals in [start_s, end_s); nothing changes outside."""
    return modulate(
        workload,
        lambda times: np.full_like(times, factor),
        seed=seed,
        operation="burst",
        note=f"rate x {factor:g} from {start_s:g} s to {end_s:g} s, seed {seed}",
        jitter_s=jitter_s,
        start_s=start_s,
        end_s=end_s,
    )


def flash_crowd(
    workload: Workload,
    factor: float,
    at_s: float,
    decay_s: float,
    *,
    rise_s: float = 10.0,
    seed: int = 0,
    jitter_s: float = 2.0,
) -> Workload:
    """A crowd from `at_s` on: up to `factor` times the rate within `rise_s`, then decaying by 1/e per decay_s."""
    if not (factor >= 1 and decay_s > 0 and rise_s >= 0):
        raise WorkloadError(
            f"flash crowd x {factor:g}, rise {rise_s:g} s, decay {decay_s:g} s: needs factor >= 1, times > 0"
        )

    def crowd(times: Floats) -> Floats:
        since = times - at_s
        rise = np.clip(since / rise_s, 0.0, 1.0) if rise_s > 0 else (since >= 0).astype(np.float64)
        return 1.0 + (factor - 1.0) * rise * np.exp(-np.maximum(since - rise_s, 0.0) / decay_s)

    return modulate(
        workload,
        crowd,
        seed=seed,
        operation="flash-crowd",
        note=f"up to x {factor:g} at {at_s:g} s, rise {rise_s:g} s, decay {decay_s:g} s, seed {seed}",
        jitter_s=jitter_s,
        start_s=at_s,
    )


def diurnal(
    workload: Workload,
    period_s: float,
    amplitude: float,
    *,
    phase_s: float = 0.0,
    seed: int = 0,
    jitter_s: float = JITTER_S,
) -> Workload:
    """Modulate the rate by `1 + amplitude * sin(2 pi (t - phase_s) / period_s)`; amplitude in [0, 1]."""
    if not (period_s > 0 and 0 <= amplitude <= 1):
        raise WorkloadError(
            f"diurnal with period {period_s:g} s, amplitude {amplitude:g}: needs period > 0, amplitude 0 to 1"
        )
    return modulate(
        workload,
        lambda times: 1.0 + amplitude * np.sin(2 * np.pi * (times - phase_s) / period_s),
        seed=seed,
        operation="diurnal",
        note=f"period {period_s:g} s, amplitude {amplitude:g}, phase {phase_s:g} s, seed {seed}",
        jitter_s=jitter_s,
    )
