"""The tuned-static baseline: one policy, its constants set by search on the past, and then left alone."""

from __future__ import annotations

from collections.abc import Sequence

from loop.contracts import EvaluationTask, Evaluator, PolicySource
from strategy.evolve.source import make_source
from strategy.evolve.static import check_policy
from strategy.evolve.synthesise.constants import Tuner, find_constants, with_constants


def tune_constants(
    policy: PolicySource,
    evaluator: Evaluator,
    tasks: Sequence[EvaluationTask],
    evaluations: int,
    seed: int,
) -> PolicySource:
    """The policy with the constants of the least mean objective over the tasks, each relative to the policy
    as it was; the policy itself when nothing better was found, or when it has no score to compare with. At most `evaluations` evaluations are used,
    the policy's own included.

    Raises:
        ValueError: no tasks.
    """
    if not tasks:
        raise ValueError("there are no tasks to tune on")
    base = _objectives(evaluator, [policy], tasks)[0]
    constants = find_constants(policy.source)
    if base is None or not constants:
        return policy
    tuner = Tuner(constants, seed)
    best, least, spent = policy, 1.0, len(tasks)
    while spent + len(tasks) <= evaluations:
        points = [tuner.ask()]
        while tuner.left and spent + (len(points) + 1) * len(tasks) <= evaluations:
            points.append(tuner.ask())
        candidates = [_with(policy, values) for _, values in points]
        results = _objectives(evaluator, candidates, tasks)
        spent += len(points) * len(tasks)
        for (number, _), candidate, objectives in zip(points, candidates, results, strict=True):
            worth = _relative(objectives, base)
            tuner.tell(number, worth)
            if worth is not None and worth < least and not check_policy(candidate.source):
                best, least = candidate, worth
    return best


def _with(policy: PolicySource, values: dict[str, float]) -> PolicySource:
    changed = {c.name: c.value for c in find_constants(policy.source) if values[c.name] != c.value}
    note = ", ".join(f"{name} {value:g} -> {values[name]:g}" for name, value in changed.items())
    return make_source(
        with_constants(policy.source, values),
        name=f"{policy.name}-tuned",
        parents=(policy.digest,),
        operator="cma",
        note=f"tuned {note}",
    )


def _objectives(
    evaluator: Evaluator, policies: Sequence[PolicySource], tasks: Sequence[EvaluationTask]
) -> list[tuple[float, ...] | None]:
    """Objectives of each policy on all tasks; None when one of them has none."""
    jobs = [(policy, task) for policy in policies for task in tasks]
    found: dict[int, float] = {}
    for index, evaluation in evaluator.evaluate(jobs):
        if evaluation.score is not None and evaluation.death is None:
            found[index] = evaluation.score.objective
    rows = [range(i * len(tasks), (i + 1) * len(tasks)) for i in range(len(policies))]
    return [tuple(found[i] for i in row) if all(i in found for i in row) else None for row in rows]


def _relative(objectives: tuple[float, ...] | None, base: tuple[float, ...]) -> float | None:
    if objectives is None:
        return None
    return sum(o / b if b > 0 else 1.0 for o, b in zip(objectives, base, strict=True)) / len(base)
