"""What happens to the hardware while a workload runs: losses, spot reclaims, throttling, stragglers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from execution.workload.errors import WorkloadError
from loop.contracts import ClusterEvent, EventKind


def ordered(events: Iterable[ClusterEvent]) -> tuple[ClusterEvent, ...]:
    """Events in order of time."""
    return tuple(sorted(events, key=lambda event: (event.at_s, event.target, event.kind)))


def node_loss(node: str, at_s: float, *, back_at_s: float | None = None) -> tuple[ClusterEvent, ...]:
    """A node (or device) fails at `at_s` and is there again at `back_at_s` (None: never)."""
    _check(node, at_s, back_at_s)
    down = ClusterEvent(at_s, EventKind.DOWN, node)
    return (down,) if back_at_s is None else (down, ClusterEvent(back_at_s, EventKind.UP, node))


def spot_preemption(
    target: str, at_s: float, *, notice_s: float = 120.0, back_at_s: float | None = None
) -> tuple[ClusterEvent, ...]:
    """A spot reclaim announced at `at_s`, carried out after `notice_s`; back at `back_at_s` (None: never)."""
    _check(target, at_s, back_at_s)
    if not notice_s >= 0 or (back_at_s is not None and back_at_s < at_s + notice_s):
        raise WorkloadError(
            f"{target}: notice of {notice_s:g} s at {at_s:g} s, back at {back_at_s}: too early"
        )
    notice = ClusterEvent(at_s, EventKind.PREEMPT, target, notice_s=notice_s)
    return (notice,) if back_at_s is None else (notice, ClusterEvent(back_at_s, EventKind.UP, target))


def throttle(
    target: str, at_s: float, factor: float, *, heals_at_s: float | None = None
) -> tuple[ClusterEvent, ...]:
    """From `at_s` on, the target runs at `factor` (0 to 1) of its speed; healed at `heals_at_s` (None: never)."""
    _check(target, at_s, heals_at_s)
    if not 0 < factor <= 1:
        raise WorkloadError(f"{target}: speed factor {factor:g}: must be above 0 and at most 1")
    slow = ClusterEvent(at_s, EventKind.SPEED, target, factor=factor)
    return (slow,) if heals_at_s is None else (slow, ClusterEvent(heals_at_s, EventKind.SPEED, target))


def spot_churn(
    targets: Sequence[str],
    duration_s: float,
    *,
    mean_up_s: float,
    mean_down_s: float,
    notice_s: float = 120.0,
    seed: int = 0,
) -> tuple[ClusterEvent, ...]:
    """Each target is reclaimed and returned again and again; times up and down are exponential."""
    _positive(duration_s=duration_s, mean_up_s=mean_up_s, mean_down_s=mean_down_s)
    events: list[ClusterEvent] = []
    for index, target in enumerate(targets):
        rng = np.random.default_rng([seed, index])
        at_s = float(rng.exponential(mean_up_s))
        while at_s < duration_s:
            back_at_s = at_s + notice_s + float(rng.exponential(mean_down_s))
            events += spot_preemption(
                target,
                at_s,
                notice_s=notice_s,
                back_at_s=back_at_s if back_at_s < duration_s else None,
            )
            at_s = back_at_s + float(rng.exponential(mean_up_s))
    return ordered(events)


def stragglers(
    targets: Sequence[str],
    duration_s: float,
    *,
    mean_between_s: float,
    mean_length_s: float,
    slowest: float = 0.3,
    fastest: float = 0.8,
    seed: int = 0,
) -> tuple[ClusterEvent, ...]:
    """Waves of slowness: each target now and then runs at a factor drawn from [slowest, fastest]."""
    _positive(duration_s=duration_s, mean_between_s=mean_between_s, mean_length_s=mean_length_s)
    if not 0 < slowest <= fastest <= 1:
        raise WorkloadError(f"straggler factors {slowest:g} to {fastest:g}: must ascend within (0, 1]")
    events: list[ClusterEvent] = []
    for index, target in enumerate(targets):
        rng = np.random.default_rng([seed, index])
        at_s = float(rng.exponential(mean_between_s))
        while at_s < duration_s:
            end_s = at_s + float(rng.exponential(mean_length_s))
            factor = round(float(rng.uniform(slowest, fastest)), 3)
            events += throttle(target, at_s, factor, heals_at_s=end_s if end_s < duration_s else None)
            at_s = end_s + float(rng.exponential(mean_between_s))
    return ordered(events)


def _check(target: str, at_s: float, later_s: float | None) -> None:
    if not (math.isfinite(at_s) and at_s >= 0) or (later_s is not None and not later_s > at_s):
        raise WorkloadError(
            f"{target}: event at {at_s:g} s, over at {later_s} s: must be at 0 or later, in order"
        )


def _positive(**times_s: float) -> None:
    for name, value in times_s.items():
        if not (math.isfinite(value) and value > 0):
            raise WorkloadError(f"{name} is {value:g}: must be positive")
