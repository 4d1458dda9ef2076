"""Candidates, their scores and what became of them: the values that evolution passes around."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Death(StrEnum):
    """Why a candidate went no further. None vanishes: each is archived with its reason."""

    STATIC = "static"  # does not parse, or breaks the rules of the policy API
    ERROR = "error"
    TIMEOUT = "timeout"
    INFEASIBLE = "infeasible"
    DUPLICATE = "duplicate"
    WORSE = "worse"  # beaten in an early stage of the cascade
    OVERFIT = "overfit"  # won on the windows it was made on, lost on the held-out one
    CRASH = "crash"  # its sandbox died
    UNUSABLE = (
        "unusable"  # the answer that should have held it cannot be used: no code, a diff that fits nowhere
    )


@dataclass(frozen=True, slots=True)
class PolicySource:
    """A policy as a value: its source text and where it came from."""

    name: str
    source: str
    digest: str
    """First 12 hex digits of the sha256 of the source."""
    parents: tuple[str, ...] = ()
    """Digests."""
    operator: str = "seed"
    """What made it, e.g. `cma`, `edit:swap-idiom`, `crossover`."""
    note: str = ""
    """What changed and why, in words."""


@dataclass(frozen=True, slots=True)
class Score:
    """One evaluation of one policy on some windows of some world. Lower `objective` is better."""

    objective: float
    total_execution_time_s: float
    ttft_p99_s: float
    goodput: float
    device_hours: float
    joules: float
    per_window: tuple[float, ...]
    """The objective of each window, aligned with the windows asked for: what a paired comparison needs."""
    faults: int = 0
    replan_rate: float = 0.0
    """Share of windows in which another plan was brought about."""
    scaling: float = 0.0
    """How much of the cluster is rearranged per window: mean share of its devices whose replica changed."""
    fingerprint: str = ""
    """Equal for policies that did the same: digest of the plans and results of all windows."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question to a language model and what came of it; none vanishes, failures least of all."""

    model: str
    prompt: str
    answer: str
    """Empty when none came."""
    outcome: str
    """`candidate`, or why there is none: `no-code`, `truncated`, `refusal`, `bad-diff`, `static`,
    `duplicate`, `timeout`, `rate-limit`, `server-error`, `connection`, `client-error`, `cancelled`."""
    detail: str = ""
    digest: str | None = None
    """Of the candidate that it gave, or repeated."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SynthesisCost:
    """What asking has cost since the start."""

    requests: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The Outcome of an evaluation: a score, or the reason why there is none."""

    digest: str
    score: Score | None
    death: Death | None = None
    detail: str = ""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """What to evaluate a policy on: windows that lie in the past, in a simulated world."""

    windows: tuple[int, ...]
    """Indices of windows in the run's history, ascending."""
    world: int = 0
    """0: the nominal world; k > 0: the k-th perturbed one."""
