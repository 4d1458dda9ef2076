"""The result of `strategy evolve`: what `--json` prints and result.json holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loop.compose.objective import Objective, window_value
from loop.compose.offline import Run
from loop.compose.offline_evolution import Split
from loop.compose.scoring import past_segments
from loop.contracts import PolicySource, RunResult
from loop.runner.evolution import PastWindow

HIDDEN_WORLDS = 2
"""Worlds of the final table that no search has seen."""


@dataclass(frozen=True, slots=True)
class Side:
    """One policy in one comparison."""

    objective: float
    total_s: float
    serving_s: float
    solve_s: float
    reconfiguration_s: float
    ttft_p99_s: float
    goodput: float
    device_hours: float
    joules: float
    faults: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """First and best policy on the same windows of the same world."""

    part: str
    """`train`, `validation`, `held-out`, or `hidden world K`."""
    windows: int
    first: Side
    best: Side
    ratio: float
    """Objective of the best against the first's; below 1 is better."""


@dataclass(frozen=True, slots=True)
class EvolveResult:
    """One run of evolution off line."""

    title: str
    setting: dict[str, object]
    synthesiser: str
    first: str
    first_digest: str
    best: str
    """The first policy itself when nothing was proven better."""
    best_digest: str
    best_note: str
    reason: str
    """Why the run ended."""
    resumed: bool
    steps: int
    evaluations: int
    candidates: int
    deaths: dict[str, int]
    promotions: tuple[str, ...]
    wall_s: float
    cpu_s: float
    requests: int = 0
    failures: int = 0
    tokens: int = 0
    usd: float = 0.0
    train_ratio: float = 1.0
    comparisons: tuple[Comparison, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One comparison to be made, and the runs that it takes: the first policy's, then the best's."""

    name: str
    windows: int
    first: tuple[Run, ...]
    best: tuple[Run, ...]


def comparison_parts(
    first: PolicySource, best: PolicySource, past: Sequence[PastWindow], split: Split, hidden: int
) -> list[Part]:
    """What is to be compared.

    Parts of the nominal world begin in the middle of what the first policy served, so that the change over to
    the best one is paid; hidden worlds are served from their beginning.
    """
    parts = []
    for name, indices in (
        ("train", split.train),
        ("validation", split.validation),
        ("held-out", split.held_out),
    ):
        if indices:
            segments = past_segments([past[i] for i in indices])
            runs = [tuple(Run(p, 0, segment) for segment in segments) for p in (first, best)]
            parts.append(Part(name, len(indices), *runs))
    for world in range(1, hidden + 1):
        parts.append(Part(f"hidden world {world}", len(past), (Run(first, world),), (Run(best, world),)))
    return parts


def compare(
    parts: Sequence[Part], replay_all: Callable[[Sequence[Run]], Sequence[RunResult]], objective: Objective
) -> tuple[Comparison, ...]:
    """Make all runs of the parts, and pair what comes of them."""
    runs = [run for part in parts for run in (*part.first, *part.best)]
    results = iter(replay_all(runs))
    found = []
    for part in parts:
        first, best = (side([next(results) for _ in which], objective) for which in (part.first, part.best))
        ratio = best.objective / first.objective if first.objective else 1.0
        found.append(Comparison(part.name, part.windows, first, best, ratio))
    return tuple(found)


def side(runs: Sequence[RunResult], objective: Objective) -> Side:
    """Runs on separate stretches of windows in the figures of the table. TTFT p99 is that of the worst."""
    stats = [run.stats for run in runs]
    asked = sum(s.finished + s.rejected + s.lost for s in stats)
    return Side(
        objective=sum(window_value(w, objective) for run in runs for w in run.windows),
        total_s=sum(run.total_execution_time_s for run in runs),
        serving_s=sum(run.serving_s for run in runs),
        solve_s=sum(run.solve_s for run in runs),
        reconfiguration_s=sum(run.reconfiguration_s for run in runs),
        ttft_p99_s=max(s.ttft_s.p99 for s in stats),
        goodput=sum(s.good for s in stats) / asked if asked else 1.0,
        device_hours=sum(run.resources.device_s for run in runs) / 3600,
        joules=sum(run.resources.joules for run in runs),
        faults=sum(run.faults.total for run in runs),
    )
