"""A synthetic evaluator: the objective of a policy is a known function of its constants, no twin needed."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from loop.contracts import (
    Death,
    Evaluation,
    EvaluationTask,
    Observation,
    Parent,
    PolicySource,
    Score,
    SynthesisCost,
)
from strategy.evolve.source import make_source
from strategy.evolve.synthesise.constants import find_constants

TEMPLATE = '''"""A policy with two knobs, of which only the right setting is any good."""

from strategy.policy_api import Memo, Observation, Plan, ReplicaView, RequestView, Sequence, fill, loads

WEIGHT = {weight}  # 0.01 to 100: best at 3
LIMIT = {limit}  # 16 to 1024: best at 64


def should_replan(obs: Observation, memo: Memo) -> bool:
    """Never."""
    return False


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Fill all."""
    return Plan(fill(obs, loads(obs), (), LIMIT))


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least weighted."""
    return min(range(len(replicas)), key=lambda i: WEIGHT * replicas[i].waiting + i)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served."""
    return request.arrival_s
'''


def knobs(weight: float = 30.0, limit: int = 500, name: str = "knobs") -> PolicySource:
    return make_source(TEMPLATE.format(weight=weight, limit=limit), name=name)


def distance(policy: PolicySource) -> float:
    """0 at the best setting of the knobs; grows with the logarithmic distance from it."""
    values = {c.name: c.value for c in find_constants(policy.source)}
    weight, limit = values.get("WEIGHT", 100.0), values.get("LIMIT", 1024.0)
    return abs(math.log(max(weight, 1e-3) / 3.0)) + abs(math.log(max(limit, 1.0) / 64.0))


Judge = Callable[[PolicySource, int, int], float]
"""(policy, window, world) -> objective of that window."""
Behave = Callable[[PolicySource], tuple[float, float]]
"""policy -> (replan rate, scaling)."""


class SyntheticEvaluator:
    """Implements Evaluator. Counts what it was asked; `on_evaluate` may move a fake clock. With
    `fingerprints`, policies of the same values did the same."""

    def __init__(
        self,
        judge: Judge | None = None,
        on_evaluate: Callable[[], None] | None = None,
        *,
        behave: Behave | None = None,
        fingerprints: bool = False,
    ) -> None:
        self._judge = judge or (lambda policy, window, world: 10.0 + distance(policy))
        self._on_evaluate = on_evaluate or (lambda: None)
        self._behave = behave or (lambda policy: (0.0, 0.0))
        self._fingerprints = fingerprints
        self.jobs: list[tuple[PolicySource, EvaluationTask]] = []

    def evaluate(
        self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]
    ) -> Iterator[tuple[int, Evaluation]]:
        for index, (policy, task) in reversed(list(enumerate(jobs))):
            self.jobs.append((policy, task))
            self._on_evaluate()
            yield index, self._evaluation(policy, task)

    def _evaluation(self, policy: PolicySource, task: EvaluationTask) -> Evaluation:
        try:
            values = tuple(self._judge(policy, window, task.world) for window in task.windows)
        except TimeoutError:
            return Evaluation(policy.digest, None, Death.TIMEOUT, "too slow")
        replan_rate, scaling = self._behave(policy)
        score = replace(
            score_of(values),
            replan_rate=replan_rate,
            scaling=scaling,
            fingerprint=hashlib.sha256(repr(values).encode()).hexdigest()[:16] if self._fingerprints else "",
        )
        return Evaluation(policy.digest, score, wall_s=0.1)


def score_of(values: Sequence[float], faults: int = 0) -> Score:
    total = sum(values)
    return Score(total, total, 1.0, 1.0, 1.0, 1.0, tuple(values), faults)


class Scripted:
    """A synthesiser that has its candidates ready."""

    def __init__(self, *batches: Sequence[PolicySource]) -> None:
        self.batches = list(batches)
        self.parents: list[Sequence[Parent]] = []
        self.told: list[tuple[PolicySource, Evaluation, float | None]] = []
        self.pending = 0
        self.cost = SynthesisCost()

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        self.parents.append(parents)
        return list(self.batches.pop(0)) if self.batches else []

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        self.told.append((candidate, evaluation, parent_objective))

    def close(self) -> None:
        """Nothing is under way."""


class Stepping(Scripted):
    """A quick synthesiser: the knobs of a parent, moved at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        self.parents.append(parents)
        return [self._child(self._rng.choice(parents).policy) for _ in range(count)]

    def _child(self, parent: PolicySource) -> PolicySource:
        values = {c.name: c.value for c in find_constants(parent.source)}
        weight = values["WEIGHT"] * math.exp(self._rng.gauss(0.0, 0.3))
        limit = values["LIMIT"] * math.exp(self._rng.gauss(0.0, 0.3))
        source = TEMPLATE.format(weight=round(weight, 3), limit=max(16, round(limit)))
        return make_source(source, parents=(parent.digest,), operator="step")
