"""What an evolution tells of itself, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from execution.compiler.port import Bucket
from execution.live.sampler import HotPath, group_of
from execution.live.swap import Guarded, GuardedDecode
from execution.live.variants import Table

if TYPE_CHECKING:
    from execution.live.service import ExecutionEvolution

_MOST_LINES = 40


def report_of(evolution: ExecutionEvolution) -> dict[str, Any]:
    """What is hot, in force, refused, and why."""
    guards: list[Guarded | GuardedDecode] = [*evolution.module_guards.values()]
    if evolution.guard is not None:
        guards.append(evolution.guard)
    sampler = evolution.sampler
    return {
        "state": evolution.state,
        "steps": sampler.steps,
        "sampling_overhead": sampler.overhead,
        "sampled_every": sampler.every,
        "hot": evolution.hot,
        "in_force": in_force(evolution.guard, {name: g.table for name, g in evolution.module_guards.items()}),
        "shadow_checks": sum(len(g.checks) for g in guards),
        "worst_shadow_error": max((c.error for g in guards for c in list(g.checks)), default=0.0),
        "int8": evolution.int8,
        "quality": evolution.quality,
        "pauses_ms": list(evolution.pauses_ms),
    }


def in_force(guard: GuardedDecode | None, modules: Mapping[str, Table]) -> dict[str, str]:
    """Who serves: the decode step by batch sizes, then each kind of module by its rows (all layers are alike)."""
    found = {} if guard is None else dict(_buckets(guard.table))
    for name, table in modules.items():
        for bucket, variant in _buckets(table):
            found[f"{group_of(name)} {bucket}"] = variant
    return found


def hot_lines(paths: Sequence[HotPath]) -> list[dict[str, Any]]:
    """The first of a profile."""
    return [
        {
            "unit": p.unit, "rows": list(p.rows), "threads": p.threads, "calls": p.calls, "spent_s": p.spent_s,
            "floor_s": p.floor_s, "could_win_s": p.could_win_s, "share": p.share,
        }
        for p in paths[:_MOST_LINES]
    ]  # fmt: skip


def _buckets(table: Table) -> Iterable[tuple[str, str]]:
    """Batch sizes and who serves them."""
    start = 1
    for rows in range(1, len(table.by_rows)):
        variant = table.by_rows[rows]
        if rows + 1 == len(table.by_rows) or table.by_rows[rows + 1] is not variant:
            if variant is not None:
                yield str(Bucket(start, rows)), variant.name
            start = rows + 1
