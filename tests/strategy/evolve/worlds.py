"""A synthetic evaluator: the objective of a policy is a known function of its constants, no twin needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from loop.contracts import Death, Evaluation, EvaluationTask, PolicySource, Score
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
    return abs(math.log(weight / 3.0)) + abs(math.log(limit / 64.0))


Judge = Callable[[PolicySource, int, int], float]
"""(policy, window, world) -> objective of that window."""


class SyntheticEvaluator:
    """Implements Evaluator. Counts what it was asked; `on_evaluate` may move a fake clock."""

    def __init__(self, judge: Judge | None = None, on_evaluate: Callable[[], None] | None = None) -> None:
        self._judge = judge or (lambda policy, window, world: 10.0 + distance(policy))
        self._on_evaluate = on_evaluate or (lambda: None)
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
        return Evaluation(policy.digest, score_of(values), wall_s=0.1)


def score_of(values: Sequence[float], faults: int = 0) -> Score:
    total = sum(values)
    return Score(total, total, 1.0, 1.0, 1.0, 1.0, tuple(values), faults)
