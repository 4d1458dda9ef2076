"""The outcome of an experiment: every system on the same windows of the same judged world."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from loop.contracts import PolicySource, RunResult
from loop.journal import EvolutionRecord


class SystemKind(StrEnum):
    """What a row of the table is."""

    BASELINE = "baseline"
    SEARCHED = "searched"  # found by search on the past: tuned static, best of random
    EVOLVING = "evolving"
    ORACLE = "oracle"  # sees each window's future: the limit, not a competitor
    USER = "user"


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system's run."""

    name: str
    kind: SystemKind
    run: RunResult
    note: str = ""


@dataclass(frozen=True, slots=True)
class WindowInfo:
    """What one window asked for, for plots."""

    index: int
    start_s: float
    requests: int
    input_tokens_mean: float
    output_tokens_mean: float
    events: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvolutionCost:
    """What evolution itself took."""

    evaluations: int = 0
    candidates: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of all evaluations."""


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """Everything that a report is drawn from."""

    title: str
    workload: str
    generated: bool
    cluster: str
    models: tuple[str, ...]
    mode: str
    seed: int
    windows: tuple[WindowInfo, ...]
    systems: tuple[SystemResult, ...]
    first: PolicySource
    """The policy that the evolving system began with."""
    last: PolicySource
    policies: tuple[PolicySource, ...]
    """Each policy that served, in order."""
    evolution: tuple[EvolutionRecord, ...]
    cost: EvolutionCost = field(default_factory=EvolutionCost)
    notes: tuple[str, ...] = ()
    requests: int = 0

    def system(self, kind: SystemKind) -> SystemResult | None:
        """The first system of a kind."""
        return next((s for s in self.systems if s.kind is kind), None)

    @property
    def rivals(self) -> tuple[SystemResult, ...]:
        """All that the evolving system is compared with; the oracle is no rival."""
        rivals = (SystemKind.BASELINE, SystemKind.SEARCHED, SystemKind.USER)
        return tuple(s for s in self.systems if s.kind in rivals)

    @property
    def fair_rivals(self) -> tuple[SystemResult, ...]:
        """The rivals that served at least as many requests as the evolving system did."""
        ours = self.system(SystemKind.EVOLVING)
        served = ours.run.stats.finished if ours is not None else 0
        return tuple(s for s in self.rivals if s.run.stats.finished >= served)


def saving(ours: SystemResult, other: SystemResult) -> float:
    """Share of the other's total execution time that ours saves; negative: ours is slower."""
    theirs = other.run.total_execution_time_s
    return 1 - ours.run.total_execution_time_s / theirs if theirs else 0.0
